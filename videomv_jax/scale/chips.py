"""What a chip can do, and how long a step keeps it busy."""

import dataclasses
from collections.abc import Mapping

from videomv_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Vendor's figures of one chip (docs.cloud.google.com/tpu/docs, v5e, v5p, v6e).

    Attributes:
        flops: dense bf16 operations per second.
        memory: bytes of HBM.
        memory_rate: bytes per second between HBM and chip.
        link_rate: bytes per second a chip can send over all its links together: half
            of the bidirectional figure.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
        InputError: a chip without figures.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise InputError.unknown("chip in --topology", name, CHIPS)
    return CHIPS[name]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds that a step keeps each resource busy.

    Attributes:
        compute: operations over peak rate.
        memory: bytes between HBM and chip over HBM's rate.
        network: bytes a chip sends over the rate of all its links.
    """

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """If everything goes on at once: the roofline."""
        return max(self.compute, self.memory, self.network)

    @property
    def in_a_row(self) -> float:
        """If nothing is sent while the chip computes."""
        return max(self.compute, self.memory) + self.network


def bounds(chip: Chip, flops: float, memory: float, sent: float) -> Bounds:
    """Times of what one chip does in a step.

    Args:
        chip: the chip.
        flops: operations it executes.
        memory: bytes between its HBM and itself.
        sent: bytes it sends to others.
    """
    return Bounds(flops / chip.flops, memory / chip.memory_rate, sent / chip.link_rate)
