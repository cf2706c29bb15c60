"""Sorting and blending on a GPU: the pipeline around `triton_kernels`.

Per view: rank by depth, pack rows in that order and count the tiles of each Gaussian,
emit the pairs nearest first, sort them stably by tile, find the tiles' borders, blend.
The backward pass blends again front to back, writes a row for each pair where it was
emitted, so that a Gaussian's rows lie together, and adds them. Two runs give the same
bits.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize import triton_kernels as kernels
from videomv_kernels.rasterize.binning import saturating_add
from videomv_kernels.rasterize.config import (
    INT32_MAX,
    Plan,
    RasterConfig,
    Unsupported,
    make_plan,
)
from videomv_kernels.rasterize.splats import (
    Bounds,
    Splats,
    tile_boxes,
    to_tiles,
)
from videomv_kernels.rasterize.tuning import device_kind, tuned
from videomv_kernels.rasterize.vjp import Backend

_LOG2E = math.log2(math.e)
_MAX_SIDE = 1 << 16  # tiles along a side: boxes are packed into 16 bits each
_SHORT = (1 << 16) - 1  # tiles that a key of 16 bits tells apart, beside none
_DEPTH_BITS = 27
_SORTED_VIEWS = 1 << (32 - _DEPTH_BITS)


class Saved(NamedTuple):
    """What the backward pass needs. Every array leads with views or scenes.

    Attributes:
        table: rows in depth order.
        order: Gaussian of each depth rank; end: where its pairs end in the view.
        ids, places: of all pairs, tile by tile: row of the table, and where the pair
            was emitted within its view.
        edges: borders of the tiles' lists in `ids`, counted over all views.
        conic: in the order of the input.
        images: what was blended.
        scenes: zeros, one for each scene.
    """

    table: Float[Array, "g n f"]
    order: Int[Array, "g n"]
    end: Int[Array, "g n"]
    ids: Int[Array, "g pairs"]
    places: Int[Array, "g pairs"]
    edges: Int[Array, "g tiles+1"]
    conic: tuple[Float[Array, "g n"], ...]
    images: Float[Array, "g h w c"]
    scenes: Float[Array, "s"]


def _plan(config: RasterConfig, views, n, height, width) -> Plan:
    sizes = tuned(device_kind(), height, width)
    plan = make_plan(
        config, views, n, height, width, tile=sizes.tile, chunk=sizes.chunk
    )
    if config.extents != "exact":
        raise Unsupported("implementation 'gpu' has no extents='original'; use 'xla'")
    ty, tx = plan.tile
    warp = kernels.WARP
    if ty & (ty - 1) or tx & (tx - 1) or ty > warp or ty * tx < warp:
        raise Unsupported(
            f"tile is {plan.tile}; implementation 'gpu' wants powers of two, at most "
            f"{warp} high and at least {warp} pixels"
        )
    if max(plan.grid) >= _MAX_SIDE:
        raise Unsupported(
            f"image of {height} x {width} pixels has {plan.grid} tiles; implementation "
            f"'gpu' takes fewer than {_MAX_SIDE} along a side"
        )
    return plan


def _numbering(plan: Plan, views: int) -> tuple[int, DTypeLike]:
    """How many views' tiles are numbered and sorted together, and by which keys.

    Keys of 16 bits take half the passes of a sort, so there are groups of views whose
    tiles they can number. 32 bits where a single view has too many.
    """
    if plan.tiles > _SHORT:
        return views, jnp.uint32
    most = min(_SHORT // plan.tiles, views)
    return next(k for k in range(most, 0, -1) if views % k == 0), jnp.uint16


def _depth_order(depth, visible, near: float):
    """Stable argsort of depths beyond `near`, `[g, n]`; what is not visible comes last.

    One sort of 32-bit keys, view and depth, for up to 32 views at once. Depths keep
    all their bits up to 2^15 near, and 15 bits of the mantissa beyond.
    """
    views, n = depth.shape
    if views > _SORTED_VIEWS:
        group = next(k for k in range(_SORTED_VIEWS, 0, -1) if views % k == 0)
        cut = [x.reshape(-1, group, n) for x in (depth, visible)]
        return lax.map(lambda x: _depth_order(x[0], x[1], near), cut).reshape(views, n)
    bits = lax.bitcast_convert_type(depth, jnp.uint32)
    bits = bits - np.float32(near).view(np.uint32)
    fine = np.uint32(15 << 23)
    coarse = fine + ((bits - fine) >> np.uint32(8))
    bits = jnp.where(bits <= fine, bits, coarse)
    bits = jnp.where(visible, bits, np.uint32((1 << _DEPTH_BITS) - 1))
    view = lax.broadcasted_iota(jnp.uint32, depth.shape, 0) << np.uint32(_DEPTH_BITS)
    index = lax.broadcasted_iota(jnp.int32, depth.shape, 1)
    keys, index = ((view | bits).reshape(-1), index.reshape(-1))
    return lax.sort((keys, index), num_keys=1, is_stable=True)[1].reshape(views, n)


def _sort_pairs(keys, rows, plan: Plan, views: int):
    """Pairs tile by tile, nearest first: ids, places and borders of `Saved`.

    Pairs were emitted in the order of depth, so a stable sort by tile is enough.
    """
    group, _ = _numbering(plan, views)
    place = lax.broadcasted_iota(jnp.int32, (group, plan.capacity), 1).reshape(-1)
    local = lax.iota(jnp.int32, group * plan.tiles + 1)
    parts = []
    for number, (key, row) in enumerate(
        zip(*(x.reshape(views // group, -1) for x in (keys, rows)), strict=True)
    ):
        by_tile, ids = lax.sort((key, row), num_keys=1, is_stable=True)
        # A sort of its own: without gradients it goes.
        places = lax.sort((key, place), num_keys=1, is_stable=True)[1]
        edges = jnp.searchsorted(
            by_tile, local.astype(key.dtype), method="scan_unrolled"
        )
        parts.append((ids, places, edges.astype(jnp.int32) + number * key.size))
    ids, places, edges = (jnp.stack(x) for x in zip(*parts, strict=True))
    by_view = lax.iota(jnp.int32, group)[:, None] * plan.tiles
    by_view = by_view + lax.iota(jnp.int32, plan.tiles + 1)[None]
    shape = (views, plan.capacity)
    edges = edges[:, by_view].reshape(views, -1)
    return ids.reshape(shape), places.reshape(shape), edges


def _forward(splats: Splats, bounds: Bounds, plan: Plan, interpret: bool):
    views, n = splats.depth.shape
    a, b, c = splats.conic
    left, top, right, bottom = tile_boxes(bounds, plan)
    visible = (right > left) & (bottom > top)
    packed = [
        jnp.where(visible, low | (high << 16), jnp.zeros_like(low))
        for low, high in ((left, right), (top, bottom))
    ]
    planes = (
        *splats.mean,
        *(p * np.float32(k * _LOG2E) for p, k in ((a, -0.5), (b, -1), (c, -0.5))),
        splats.log_opacity * np.float32(_LOG2E),
        splats.depth,
    )
    # The projection ends here: XLA would compute it anew for each of its users.
    planes, packed, visible = lax.optimization_barrier((planes, packed, visible))
    order = _depth_order(planes[-1], visible, plan.config.near)
    by_view = lax.broadcasted_iota(jnp.int32, order.shape, 0)
    rank = lax.broadcasted_iota(jnp.int32, order.shape, 1)
    rank = rank.at[by_view, order].set(
        rank, unique_indices=True, mode="promise_in_bounds"
    )
    table, count = kernels.pack(
        rank, planes, packed, splats.colors, plan, interpret=interpret
    )
    count = count.reshape(views, n)
    if n * plan.tiles <= INT32_MAX:
        end = jnp.cumsum(count, axis=1, dtype=jnp.int32)
    else:
        end = lax.associative_scan(saturating_add, count, axis=1)
    start, total = end - count, end[:, -1]
    channels = splats.colors.shape[-1]
    keys, rows = kernels.emit(
        start, table, plan, channels, *_numbering(plan, views), interpret=interpret
    )
    ids, places, edges = _sort_pairs(keys, rows, plan, views)
    images = kernels.blend(
        edges, ids.reshape(-1), table, plan, channels, interpret=interpret
    )
    saved = Saved(
        table=table.reshape(views, n, -1),
        order=order,
        # Pairs beyond the capacity were not emitted and have no rows.
        end=jnp.minimum(end, plan.capacity),
        ids=ids,
        places=places,
        edges=edges,
        conic=splats.conic,
        images=images,
        scenes=jnp.zeros_like(splats.colors[:, 0, 0]),
    )
    return images, (total - plan.capacity).clip(0), saved


def _backward(saved: Saved, grad, plan: Plan, interpret: bool) -> Splats:
    views, n = saved.order.shape
    # Of slices: a reduction over few channels would be a pass of its own.
    products = (grad[..., k] * saved.images[..., k] for k in range(grad.shape[-1]))
    behind = functools.reduce(jnp.add, products)
    grad, behind = (
        tiles.reshape(-1, *tiles.shape[2:])
        for tiles in (to_tiles(x, plan) for x in (grad, behind[..., None]))
    )
    rows = kernels.blend_gradient(
        saved.edges,
        saved.ids.reshape(-1),
        saved.places.reshape(-1),
        saved.table.reshape(views * n, -1),
        grad,
        behind,
        plan,
        interpret=interpret,
    )
    sums = kernels.add_rows(saved.end, saved.order, rows, plan, interpret=interpret)
    sums = sums.reshape(views, n, -1)
    # The power is log_opacity - (a dx^2 + 2 b dx dy + c dy^2) / 2, dx = pixel - x.
    s, sx, sy, sxx, sxy, syy, depth = (sums[..., i] for i in range(kernels.MOMENTS + 1))
    a, b, c = saved.conic
    scenes = saved.scenes.shape[0]
    colors = sums[..., kernels.MOMENTS + 1 :]
    return Splats(
        mean=(a * sx + b * sy, b * sx + c * sy),
        conic=(-0.5 * sxx, -sxy, -0.5 * syy),
        log_opacity=s,
        depth=depth,
        colors=colors.reshape(scenes, views // scenes, n, -1).sum(1),
    )


def make_backend(*, interpret: bool = False) -> Backend:
    """The backend of this file.

    Args:
        interpret: run the kernels in Pallas' interpreter, on any device: for tests.
    """
    return Backend(
        _plan,
        functools.partial(_forward, interpret=interpret),
        functools.partial(_backward, interpret=interpret),
    )
