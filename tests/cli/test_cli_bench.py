"""`videomv bench`: a table, a file, and clear errors."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from videomv_jax.cli.main import app


def test_raster(tmp_path):
    out = tmp_path / "table.json"
    command = ["bench", "raster", "--case", "50,2,2,16", "--calls", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["case"] == "50 x 2 x 2 x 16^2" and row["overflow"] == 0
    assert row["forward_ms"] > 0 and row["both_ms"] > 0 and row["pairs_per_view"] > 10


@pytest.mark.parametrize(
    "options, message",
    [
        (["--case", "50,2"], "wanted n,scenes,views,size"),
        (["--case", "50,1,1,16", "--implementation", "cuda"], "choose from"),
        (["--case", "50,1,1,16", "--implementation", "gpu"], "not on cpu"),
    ],
)
def test_errors(options, message):
    result = CliRunner().invoke(app, ["bench", "raster", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_data(tmp_path):
    config = Path(__file__).parents[2] / "configs" / "tiny_text_to_views.py"
    command = ["bench", "data", "--config", str(config), "--batches", "3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rates = re.match(r"(\S+) batches/s, (\S+) objects/s", result.output)
    assert rates is not None
    # 128 objects a batch; figures have four digits.
    assert float(rates[2]) == pytest.approx(128 * float(rates[1]), rel=2e-3)
