"""What a render computes (`RasterConfig`) and the static sizes it needs (`Plan`)."""

import dataclasses
from typing import Literal

# The automatic pair capacity holds boxes of this many pixels a side, on average.
_AUTO_BOX = 32
# Below this many pairs every Gaussian may cover every tile.
_AUTO_MIN_PAIRS = 1 << 16
INT32_MAX = 2**31 - 1


class Unsupported(ValueError):
    """A backend that was asked for what it does not do."""


@dataclasses.dataclass(frozen=True)
class RasterConfig:
    """Settings of the rasterizer; hashable, static under `jit`.

    Attributes:
        tile: height and width of a tile in pixels. None: the backend's choice.
        chunk: Gaussians blended between two checks of the stop rule. None: the
            backend's choice.
        pairs_per_view: how many (Gaussian, tile) pairs a view may hold; the
            farthest Gaussians beyond it are dropped and counted as overflow. None:
            enough for boxes of 32 by 32 pixels on average.
        stop_transmittance: where the stop rule sees a pixel as opaque.
        stop_rule: "keep" (default): a tile stops once all its pixels are opaque,
            and whatever it has blended counts, so that the result is within
            `stop_transmittance` of the full sum. "drop": as the original, a pixel
            stops before the Gaussian that would make it opaque.
        alpha_max: upper limit of a Gaussian's alpha at a pixel.
        alpha_min: alphas below it count as zero.
        near: Gaussians at this view depth or nearer are culled.
        low_pass: variance in square pixels added to both axes of a projected
            Gaussian.
        extents: "exact" (default): a Gaussian reaches every pixel where its alpha
            is at least `alpha_min`, and the gradient is zero where `alpha_max`
            limits it. "original": it reaches the pixels of the 16 by 16 tiles that
            its radius of 3 standard deviations touches, and the gradient passes
            the limit unchanged.
    """

    tile: tuple[int, int] | None = None
    chunk: int | None = None
    pairs_per_view: int | None = None
    stop_transmittance: float = 1e-4
    stop_rule: Literal["keep", "drop"] = "keep"
    alpha_max: float = 0.99
    alpha_min: float = 1 / 255
    near: float = 0.2
    low_pass: float = 0.3
    extents: Literal["exact", "original"] = "exact"

    def __post_init__(self):
        for name, choices in (
            ("extents", ("exact", "original")),
            ("stop_rule", ("keep", "drop")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose from {choices}"
                )
        if self.extents == "original" and self.tile not in (None, (16, 16)):
            raise ValueError(
                f"tile is {self.tile}; extents='original' is defined on (16, 16)"
            )
        sizes = (*(self.tile or (1, 1)), self.chunk, self.pairs_per_view)
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                f"tile {self.tile}, chunk {self.chunk} and pairs_per_view "
                f"{self.pairs_per_view} must be positive"
            )
        if not 0 < self.alpha_min < self.alpha_max < 1:
            raise ValueError(
                f"alpha_min {self.alpha_min} and alpha_max {self.alpha_max} must "
                "satisfy 0 < alpha_min < alpha_max < 1"
            )
        if self.near <= 0 or self.low_pass <= 0:
            raise ValueError(
                f"near {self.near} and low_pass {self.low_pass} must be positive"
            )


ORIGINAL = RasterConfig(extents="original", stop_rule="drop")
"""The semantics of the original CUDA rasterizer (3DGS with depth and alpha)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config with every size settled.

    Attributes:
        config: the settings.
        height, width: image size in pixels.
        tile: height and width of a tile.
        chunk: Gaussians per step of a tile.
        capacity: pairs per view.
    """

    config: RasterConfig
    height: int
    width: int
    tile: tuple[int, int]
    chunk: int
    capacity: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.height // self.tile[0]), -(-self.width // self.tile[1])

    @property
    def tiles(self) -> int:
        """Tiles of one view, numbered row by row."""
        return self.grid[0] * self.grid[1]


def make_plan(
    config: RasterConfig,
    views: int,
    n: int,
    height: int,
    width: int,
    *,
    tile: tuple[int, int],
    chunk: int,
) -> Plan:
    """Settle the sizes of a render.

    Args:
        config: what was asked for.
        views: views of all scenes together.
        n: Gaussians in a view.
        height, width: image size in pixels.
        tile, chunk: the backend's choices, used where the config leaves them open.

    Raises:
        ValueError: more Gaussians or pairs than 32 bits can number.
    """
    tile = config.tile or ((16, 16) if config.extents == "original" else tile)
    plan = Plan(config, height, width, tile, config.chunk or chunk, 0)
    per_gaussian = (_AUTO_BOX // tile[0] + 1) * (_AUTO_BOX // tile[1] + 1)
    automatic = max(n * per_gaussian, _AUTO_MIN_PAIRS)
    capacity = min(n * plan.tiles, config.pairs_per_view or automatic)
    if max(n, capacity) * views > INT32_MAX:
        raise ValueError(
            f"{views} views of {n} Gaussians and {capacity} pairs are more than 32 "
            "bits can number; render fewer at once or set pairs_per_view"
        )
    return dataclasses.replace(plan, capacity=capacity)
