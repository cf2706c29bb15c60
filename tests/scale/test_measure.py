"""The benchmark of strategies, on fake devices."""

import csv
import dataclasses

import pytest
from typer.testing import CliRunner

from videomv_jax.cli.main import app
from videomv_jax.model_folder import read_config
from videomv_jax.scale import measure
from videomv_jax.training.config import TrainConfig
from videomv_jax.types import InputError

CONFIG = TrainConfig(
    stage="diffusion", model="small", batch_size=8, objects=8, warmup_steps=0
)


def test_refusals():
    with pytest.raises(InputError, match="this process has 8"):
        measure.measure(CONFIG, 9, 1, print)
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        measure.measure(dataclasses.replace(CONFIG, model="tinny"), 1, 1, print)


@pytest.mark.slow
def test_strategies_side_by_side(small_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "PRESETS", {"small": read_config(small_folder)})
    config = tmp_path / "run.py"
    config.write_text(
        "from videomv_jax.training.config import default_config\n"
        "def get_config():\n"
        "    config = default_config('diffusion')\n"
        "    config.model, config.batch_size, config.objects = 'small', 8, 8\n"
        "    return config\n"
    )
    out = tmp_path / "bench.csv"
    done = CliRunner().invoke(
        app,
        ["bench", "sharding", "--config", str(config), "--strategies", "dp,view"]
        + ["--devices", "1,4", "--per-device", "2", "--steps", "2"]
        + ["--out", str(out)],
    )
    assert done.exit_code == 0, done.output
    with out.open() as file:
        alone, dp, view = csv.DictReader(file)
    assert [one["batch"] for one in (alone, dp, view)] == ["2", "8", "8"]
    assert alone["of one device's, per device"] == "100.0%"
    assert (dp["mesh"], view["mesh"]) == ("data=4", "view=4")
    assert "all-to-all view" in view["sent MB by kind and axis"]
    assert "all-to-all" not in dp["sent MB by kind and axis"]
    assert float(dp["last loss"]) == pytest.approx(float(view["last loss"]), rel=1e-3)
