"""How fast a run's data comes, apart from its steps."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_FIRST = 3  # batches that fill buffers and start threads


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Batches read one after another by a reader that does nothing else.

    Attributes:
        batches, objects: how many.
        size: bytes of the arrays of a batch.
        seconds: all of it.
        longest: the longest wait for a batch, in seconds.
    """

    batches: int
    objects: int
    size: int
    seconds: float
    longest: float

    def text(self) -> str:
        """One line."""
        rate = self.batches / self.seconds
        return (
            f"{rate:.4g} batches/s, {self.objects / self.seconds:.4g} objects/s, "
            f"{rate * self.size / 1e6:.4g} MB/s; longest wait {1e3 * self.longest:.3g} "
            f"ms; a step that takes longer than {1e3 / rate:.3g} ms need not wait"
        )


def measure(data: Iterator[Any], batches: int, batch_size: int) -> Throughput:
    """Read batches, after a few that are not timed.

    Args:
        data: an endless iterator of trees of arrays.
        batches: how many to time.
        batch_size: objects in each.
    """
    size = 0
    for _ in range(_FIRST):
        leaves = jax.tree.leaves(next(data))
        size = sum(np.asarray(x).nbytes for x in leaves)
    waits, start = [], time.perf_counter()
    for _ in range(batches):
        clock = time.perf_counter()
        next(data)
        waits.append(time.perf_counter() - clock)
    seconds = time.perf_counter() - start
    return Throughput(batches, batches * batch_size, size, seconds, max(waits))
