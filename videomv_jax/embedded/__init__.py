"""The models that come with the package, and where their folders are."""

import os
from pathlib import Path

from videomv_jax.types import InputError

_ROOT = Path(__file__).parent


def embedded() -> list[str]:
    """Names of the models."""
    return sorted(path.parent.name for path in _ROOT.glob("*/config.json"))


def find_model(name: str | os.PathLike[str]) -> Path:
    """The folder of an embedded model's name, or the folder given.

    Raises:
        InputError: neither; the closest name is told.
    """
    if os.fspath(name) in embedded():
        return _ROOT / name
    if Path(name).is_dir():
        return Path(name)
    raise InputError.unknown(
        "model, and no folder either,", os.fspath(name), embedded()
    )
