"""Checkpoints as lists of names and shapes, without any weights.

The lists under `tests/golden` come from the reference modules, made without memory.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def checkpoint():
    """Builder of a checkpoint of zeros that takes no memory, by the list's name."""

    def build(name: str) -> dict[str, np.ndarray]:
        with gzip.open(GOLDEN / f"{name}.json.gz") as file:
            shapes = json.load(file)
        zero = np.zeros((), np.float32)
        return {k: np.broadcast_to(zero, shape) for k, shape in shapes.items()}

    return build


@pytest.fixture(scope="session")
def numbered():
    """Arrays of the same shapes with distinct numbers, counting from 0."""

    def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        starts = np.cumsum([0, *sizes])
        return {
            name: np.arange(start, start + size, dtype=np.int64).reshape(shape)
            for (name, shape), start, size in zip(
                shapes.items(), starts, sizes, strict=False
            )
        }

    return fill
