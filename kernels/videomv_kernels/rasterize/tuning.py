"""Tile sizes by device: the one place for numbers that a sweep found.

`python benchmarks/rasterizer.py --sweep` measures what belongs here.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How the GPU kernels cut an image.

    Attributes:
        tile: height and width of a tile, which one warp blends.
        chunk: Gaussians between two checks of the stop rule.
    """

    tile: tuple[int, int]
    chunk: int


# By device kind: rows of (least image side, tuning), largest side first.
#
# NVIDIA H100 80GB HBM3, JAX 0.11.2, milliseconds forward / with gradients of 65,536
# Gaussians in 24 views. At 512^2: 8 by 16 takes 2.32 / 6.33, 8 by 8 2.66 / 6.07; at
# 256^2: 8 by 8 takes 1.53 / 3.79, 4 by 8 1.62 / 3.90. NVIDIA H200: the same tiles won
# with a prototype of these kernels. Not measured: sizes in between, other chunks than 8
_SIZES = ((384, Tuning((8, 16), 8)), (0, Tuning((8, 8), 8)))
_TUNED: dict[str, tuple[tuple[int, Tuning], ...]] = {
    "NVIDIA H100 80GB HBM3": _SIZES,
    "NVIDIA H200": _SIZES,
}
_DEFAULT = "NVIDIA H200"


def device_kind() -> str | None:
    """Kind of this process's first GPU, None without one."""
    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


def tuned(kind: str | None, height: int, width: int) -> Tuning:
    """Sizes for images on a kind of GPU, those of the H200 where it is unknown."""
    rows = _TUNED.get(kind or _DEFAULT, _TUNED[_DEFAULT])
    return next(tuning for side, tuning in rows if min(height, width) >= side)
