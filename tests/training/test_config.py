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
    config = load_config(TINY, ["steps=3", "learning_rate=1", "out=a=b"])
    assert (config.steps, config.learning_rate, config.out) == (3, 1.0, "a=b")
    assert isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    "override, words",
    [
        ("stepz=3", "did you mean 'steps'"),
        ("steps", "name=value"),
        ("steps=many", "want a int"),
        ("steps=1.5", "want a int"),
        ("steps=0", "want at least 1"),
        ("train_text=2", "want a bool"),
        ("stage=unet", "stage: 'unet'"),
        ("corrupted_inputs=1.5", "want 0 to 1"),
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
