"""`videomv data`."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from videomv_jax.cli.data import data
from videomv_jax.data.orbit_folder import OrbitFolderSource
from videomv_jax.data.synthetic import sample_descriptions
from videomv_jax.types import InputError

RUN = CliRunner()


def test_preview(tmp_path):
    out = tmp_path / "sheet.png"
    arguments = ["preview", "--out", str(out), "--size", "24", "--views", "2"]
    result = RUN.invoke(data, [*arguments, "--caption", "a red car"])
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        pixels = np.asarray(image)
    assert pixels.shape[1] == 48 and pixels.shape[0] > 24
    red = (pixels[:24, :, 0] > 150) & (pixels[:24, :, 1] < 80)
    assert red.sum() > 20
    # The caption is written under it.
    assert (pixels[24:] < 100).all(-1).sum() > 10


def test_write(tmp_path):
    arguments = ["write", "--out", str(tmp_path), "--count", "2", "--views", "2"]
    result = RUN.invoke(data, [*arguments, "--size", "24", "--split", "heldout"])
    assert result.exit_code == 0, result.output
    source = OrbitFolderSource(tmp_path, views=2)
    want = [one.text for one in sample_descriptions(2, 0, "heldout")]
    assert [source[i].caption for i in range(2)] == want
    assert source[0].views[..., 3].mean() > 5


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["preview", "--out", "sheet.jpg"], "png"),
        (["preview", "--out", "nowhere/sheet.png"], "nowhere"),
        (["preview", "--out", "sheet.png", "--split", "held"], "heldout"),
        (["preview", "--out", "sheet.png", "--caption", "a red chiar"], "chair"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(data, arguments)
    assert isinstance(result.exception, InputError) and told in str(result.exception)
