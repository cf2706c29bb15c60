"""The table over held-out captions, with models that know the truth or do not."""

import dataclasses
import json
import types

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from videomv_jax.cli.main import app
from videomv_jax.evaluation import held_out
from videomv_jax.model_folder import read_config
from videomv_jax.pipeline import VideoMV
from videomv_jax.types import InputError


class Oracle:
    """Answers each caption with its true views; notes how it was asked."""

    def __init__(self, config, data):
        self.config = config
        self.truth = dict(zip(data.captions, data.views, strict=True))
        self.asked = []

    def generate(self, captions, **options):
        self.asked.append((tuple(captions), options))
        views = np.stack([self.truth[caption] for caption in captions])
        return types.SimpleNamespace(views=views, gaussians=None)


@pytest.fixture(scope="module")
def data(small_model):
    return held_out.held_out(small_model, 4, seed=0)


def test_captions_come_with_their_truth(data, small_model):
    cameras = small_model.config.cameras
    shape = (4, cameras.views, cameras.size, cameras.size, 3)
    assert data.views.shape == data.between.shape == shape
    assert len(set(data.captions)) == 4
    assert not np.allclose(data.views, data.between)
    assert data.views.std((2, 3)).min() > 0  # something is seen in every view


def test_who_knows_the_truth_scores_full_marks(data, small_model):
    oracle = Oracle(small_model.config, data)
    rows = dict(held_out.table(oracle, data, batch=2, seed=5, steps=3))
    assert set(rows) == {"plain", "3D-aware"}
    for row in rows.values():
        assert row["psnr"] == pytest.approx(100)
        assert row["ssim"] == pytest.approx(1)
    captions = data.captions
    for asked, steps_3d in (
        (oracle.asked[:2], ()),
        (oracle.asked[2:], small_model.config.sampling.steps_3d),
    ):
        assert asked == [
            (tuple(captions[:2]), {"seed": 5, "steps": 3, "steps_3d": steps_3d}),
            (tuple(captions[2:]), {"seed": 7, "steps": 3, "steps_3d": steps_3d}),
        ]


def test_who_takes_captions_for_each_other_does_not(data, small_model):
    confused = Oracle(small_model.config, data)
    confused.truth = dict(zip(data.captions, data.views[::-1], strict=True))
    row = dict(held_out.table(confused, data, batch=4))["plain"]
    assert row["psnr"] < 30
    assert row["ssim"] < 0.95


def test_a_model_is_judged_with_its_gaussians(data, small_model):
    rows = dict(held_out.table(small_model, data, batch=4))
    wanted = {"psnr", "ssim", "gaussians_psnr", "gaussians_ssim"}
    assert set(rows["3D-aware"]) == wanted
    assert all(np.isfinite(list(row.values())).all() for row in rows.values())


def test_a_model_for_photos_gets_first_views(data, small_image_folder):
    class OfPhotos(Oracle):
        """Knows each object by its first view, and spoils that view alone."""

        def generate(self, prompts, *, images, **options):
            self.asked.append(prompts)
            index = [
                next(i for i, v in enumerate(data.views) if (v[0] == image).all())
                for image in images
            ]
            views = data.views[index].copy()
            views[:, 0] = 0
            return types.SimpleNamespace(views=views, gaussians=None)

    oracle = OfPhotos(read_config(small_image_folder), data)
    rows = dict(held_out.table(oracle, data, batch=2))
    assert all(row["psnr"] == pytest.approx(100) for row in rows.values())
    assert oracle.asked == [None] * 4
    dict(held_out.table(oracle, data, batch=4, captions=True))
    assert oracle.asked[4:] == [data.captions] * 2


def test_a_model_without_reconstructor_has_one_row(data, small_model):
    config = dataclasses.replace(small_model.config, reconstructor=None)
    assert [n for n, _ in held_out.table(Oracle(config, data), data, batch=4)] == [
        "plain"
    ]


def test_bad_input(data, small_model):
    with pytest.raises(InputError, match="batch: 3 does not divide 4"):
        dict(held_out.table(small_model, data, batch=3))
    config = dataclasses.replace(small_model.config, caption_grammar=None)
    with pytest.raises(InputError, match="no ground truth"):
        held_out.held_out(Oracle(config, data), 1, seed=0)


def test_command_writes_table_and_sheet(data, small_model, monkeypatch, tmp_path):
    oracle = Oracle(small_model.config, data)
    oracle.takes_photos = False
    monkeypatch.setattr(VideoMV, "from_pretrained", lambda name: oracle)
    table, sheet = tmp_path / "table.json", tmp_path / "sheet.jpg"
    options = ["--count", "4", "--batch", "2", "--fit", "0"]
    command = ["evaluate", *options, "--out", str(table), "--sheet", str(sheet)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = json.loads(table.read_text())["rows"]
    assert rows["3D-aware"]["psnr"] == pytest.approx(100)
    image = np.asarray(Image.open(sheet), np.float32) / 255
    size = small_model.config.cameras.size
    assert image.shape == (4 * size, 8 * size, 3)
    # Truth on the left, and here the same on the right.
    assert np.abs(image[:, : 4 * size] - image[:, 4 * size :]).mean() < 0.02
