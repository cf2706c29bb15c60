"""Configs: files, overrides, and what is said about mistakes."""

from pathlib import Path

import pytest

from videomv_jax.training.config import load_config
from videomv_jax.types import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = CONFIGS / "tiny_autoencoder.py"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_config_loads(path):
    config = load_config(path)
    assert config.out == f"runs/{path.stem}"


def test_overrides():
    config = load_config(
        TINY, ["steps=300", "learning_rate=1", "out=a=b", "train_text=false"]
    )
    assert (config.steps, config.learning_rate, config.out) == (300, 1.0, "a=b")
    assert config.train_text is False
    assert isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    "override, words",
    [
        ("stepz=3", "did you mean 'steps'"),
        ("steps", "name=value"),
        ("steps=many", "want a whole number"),
        ("steps=1.5", "want a whole number"),
        ("steps=0", "want at least 1"),
        ("train_text=2", "want true or false"),
        ("warmup_steps=100000", "warmup_steps: got 100000"),
        ("stage=unet", "stage: 'unet'"),
        ("corrupted_inputs=1.5", "want 0 to 1"),
        ("ema_decay=1.0", "want 0 to below 1"),
    ],
)
def test_mistakes(override, words):
    with pytest.raises(InputError, match=words):
        load_config(TINY, [override])


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_config(tmp_path / "none.py")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(InputError, match="get_config"):
        load_config(empty)
