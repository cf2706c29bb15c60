"""What every backend renders: Gaussians on the image plane, and the way to tiles."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize.config import Plan, RasterConfig
from videomv_kernels.rasterize.project import Projected

# Bounds end here: far beyond any image, and whole numbers in float32.
_FAR = 1 << 24


class Splats(NamedTuple):
    """Projected Gaussians of g views, g / s of each of s scenes. All finite.

    Attributes:
        mean: x, y in pixels.
        conic: a, b, c of the inverse covariance.
        log_opacity: logarithm of the opacity.
        depth: distance along the optical axis.
        colors: any channels, the same in every view of a scene.
    """

    mean: tuple[Float[Array, "g n"], ...]
    conic: tuple[Float[Array, "g n"], ...]
    log_opacity: Float[Array, "g n"]
    depth: Float[Array, "g n"]
    colors: Float[Array, "s n c"]

    @property
    def planes(self) -> tuple[Float[Array, "g n"], ...]:
        """x, y, a, b, c, logarithm of the opacity, depth."""
        return (*self.mean, *self.conic, self.log_opacity, self.depth)

    def rows(self) -> Float[Array, "g n f"]:
        """One row per Gaussian and view: the planes, then the colours."""
        views, (scenes, n, channels) = self.depth.shape[0], self.colors.shape
        shape = (scenes, views // scenes, n, channels)
        colors = jnp.broadcast_to(self.colors[:, None], shape)
        planes = jnp.stack(self.planes, -1)
        return jnp.concatenate([planes, colors.reshape(views, n, channels)], -1)


def splats_of_rows(rows: Float[Array, "g n f"], scenes: int) -> Splats:
    """The transpose of `Splats.rows`: gradients of the rows to those of the splats."""
    views, n, _ = rows.shape
    x, y, a, b, c, log_opacity, depth = (rows[..., i] for i in range(7))
    colors = rows[..., 7:].reshape(scenes, views // scenes, n, -1).sum(1)
    return Splats((x, y), (a, b, c), log_opacity, depth, colors)


class Bounds(NamedTuple):
    """Pixels a Gaussian may reach: left and top, and those after right and bottom."""

    left: Int[Array, "g n"]
    top: Int[Array, "g n"]
    right: Int[Array, "g n"]
    bottom: Int[Array, "g n"]


def pixel_bounds(projected: Projected, config: RasterConfig) -> Bounds:
    """Bounding boxes, empty for what is not visible. They carry no gradient."""
    xx, yy, det = projected.covariance
    x, y = (lax.stop_gradient(p) for p in projected.mean)
    if config.extents == "original":
        # The original has pixel centres at integers, a floor of 0.1 under the root,
        # and rounds the box outwards by 15 / 16 of a tile of 16 pixels.
        middle = (xx + yy) / 2
        largest = middle + jnp.sqrt(jnp.maximum(middle * middle - det, 0.1))
        radius = jnp.ceil(3 * jnp.sqrt(largest))
        first = [16 * jnp.trunc((p - 0.5 - radius) / 16) for p in (x, y)]
        end = [16 * jnp.trunc((p - 0.5 + radius + 15) / 16) for p in (x, y)]
    else:
        # opacity exp(-q / 2) = alpha_min on the ellipse of this q.
        q = 2 * jnp.log(lax.stop_gradient(projected.opacity) / config.alpha_min)
        reach = (jnp.sqrt(q * xx), jnp.sqrt(q * yy))
        both = list(zip((x, y), reach, strict=True))
        first = [jnp.ceil(p - r - 0.5) for p, r in both]
        end = [jnp.floor(p + r - 0.5) + 1 for p, r in both]

    def whole(p):
        # Clip before the cast: a float beyond int32 casts to anything.
        p = jnp.clip(p, 0, _FAR).astype(jnp.int32)
        return jnp.where(projected.visible, p, jnp.zeros_like(p))

    return Bounds(*(whole(p) for p in (*first, *end)))


def tile_boxes(bounds: Bounds, plan: Plan) -> tuple[Int[Array, "g n"], ...]:
    """Tiles that each bounding box touches.

    Returns:
        First column and row, and column and row after the last. Empty for what is not
        visible.
    """
    (rows, columns), (height, width) = plan.grid, plan.tile
    return (
        jnp.minimum(bounds.left // width, columns),
        jnp.minimum(bounds.top // height, rows),
        jnp.minimum((bounds.right + (width - 1)) // width, columns),
        jnp.minimum((bounds.bottom + (height - 1)) // height, rows),
    )


def from_tiles(tiles: Float[Array, "g t c p"], plan: Plan) -> Float[Array, "g h w c"]:
    """Images of what the pixels of all tiles hold, row by row."""
    views, _, channels, _ = tiles.shape
    (rows, columns), (ty, tx) = plan.grid, plan.tile
    tiles = tiles.reshape(views, rows, columns, channels, ty, tx)
    tiles = tiles.transpose(0, 1, 4, 2, 5, 3)
    images = tiles.reshape(views, rows * ty, columns * tx, channels)
    return images[:, : plan.height, : plan.width]


def to_tiles(images: Float[Array, "g h w c"], plan: Plan) -> Float[Array, "g t c p"]:
    """The transpose of `from_tiles`: zeros at pixels outside of the image."""
    views, height, width, channels = images.shape
    (rows, columns), (ty, tx) = plan.grid, plan.tile
    padding = ((0, 0), (0, rows * ty - height), (0, columns * tx - width), (0, 0))
    images = jnp.pad(images, padding)
    images = images.reshape(views, rows, ty, columns, tx, channels)
    tiles = images.transpose(0, 1, 3, 5, 2, 4)
    return tiles.reshape(views, rows * columns, channels, ty * tx)
