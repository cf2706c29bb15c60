"""Sorting and blending on a GPU: the pipeline around `triton_kernels`.

Per view: order by depth, pack rows in that order and count the tiles of each Gaussian,
write a key `tile, depth rank` for each pair, sort the keys of all views at once, find
the tiles' borders, blend. The backward pass blends again front to back, writes a row
for each pair where it was emitted, so that a Gaussian's rows lie together, and adds
them. Two runs give the same bits.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt

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
    from_tiles,
    tile_boxes,
    to_tiles,
)
from videomv_kernels.rasterize.tuning import device_kind, tuned
from videomv_kernels.rasterize.vjp import Backend

_LOG2E = math.log2(math.e)
_MAX_SIDE = 1 << 16  # tiles along a side: boxes are packed into 16 bits each
_DEPTH_BITS = 27
_SORTED_VIEWS = 1 << (32 - _DEPTH_BITS)


class Saved(NamedTuple):
    """What the backward pass needs. Every array leads with views or scenes.

    Attributes:
        table: rows in depth order.
        order: Gaussian of each depth rank; start, count: its pairs within the view.
        ids, places: of all pairs, tile by tile: the key with the depth rank in its low
            bits, and where the pair was emitted within its view.
        edges: borders of the tiles' lists in `ids`, counted over all views.
        conic: in the order of the input.
        tiles: what was blended.
        scenes: zeros, one for each scene.
    """

    table: Float[Array, "g n f"]
    order: Int[Array, "g n"]
    start: Int[Array, "g n"]
    count: Int[Array, "g n"]
    ids: UInt[Array, "g pairs"]
    places: Int[Array, "g pairs"]
    edges: Int[Array, "g tiles+1"]
    conic: tuple[Float[Array, "g n"], ...]
    tiles: Float[Array, "g t c p"]
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


def _rank_bits(plan: Plan, views: int, n: int) -> int | None:
    """Bits of a depth rank in a packed key. None: tile and rank do not fit into 32."""
    bits = max(1, (n - 1).bit_length())
    # The key of all ones is for places without a pair.
    return bits if (views * plan.tiles) << bits < 1 << 32 else None


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


def _sort_pairs(keys, ranks, plan: Plan, bits: int | None, views: int):
    """Keys tile by tile, nearest first: ids, places and borders of `Saved`."""
    shape = (views, plan.capacity)
    place = lax.broadcasted_iota(jnp.int32, shape, 1).reshape(-1)
    borders = lax.iota(jnp.uint32, views * plan.tiles + 1)
    if bits is not None:
        # Without gradients XLA drops the second operand from the sort.
        keys, place = lax.sort((keys, place), num_keys=1, is_stable=False)
        ids, borders = keys, borders << np.uint32(bits)
    else:
        # Emitted in the order of rank, so a stable sort by tile is enough.
        index = lax.iota(jnp.int32, keys.shape[0])
        keys, index = lax.sort((keys, index), num_keys=1, is_stable=True)
        ids = ranks[0][index].astype(jnp.uint32)
        place = lax.rem(index, jnp.int32(plan.capacity))
    edges = jnp.searchsorted(keys, borders, method="scan_unrolled").astype(jnp.int32)
    by_view = lax.iota(jnp.int32, views)[:, None] * plan.tiles
    by_view = by_view + lax.iota(jnp.int32, plan.tiles + 1)[None]
    return ids.reshape(shape), place.reshape(shape), edges[by_view]


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
    table, boxes, count = kernels.pack(
        order, planes, packed, splats.colors, plan, interpret=interpret
    )
    count = count.reshape(views, n)
    if n * plan.tiles <= INT32_MAX:
        end = jnp.cumsum(count, axis=1, dtype=jnp.int32)
    else:
        end = lax.associative_scan(saturating_add, count, axis=1)
    start, total = end - count, end[:, -1]
    bits = _rank_bits(plan, views, n)
    keys, *ranks = kernels.emit(start, table, boxes, plan, bits, interpret=interpret)
    ids, places, edges = _sort_pairs(keys, ranks, plan, bits, views)
    tiles = kernels.blend(
        edges,
        ids.reshape(-1),
        table,
        plan,
        n,
        splats.colors.shape[-1],
        _mask(bits),
        interpret=interpret,
    )
    tiles = tiles.reshape(views, plan.tiles, *tiles.shape[1:])
    saved = Saved(
        table=table.reshape(views, n, -1),
        order=order,
        start=start,
        # Pairs beyond the capacity were not emitted and have no rows.
        count=jnp.clip(plan.capacity - start, 0, count),
        ids=ids,
        places=places,
        edges=edges,
        conic=splats.conic,
        tiles=tiles,
        scenes=jnp.zeros_like(splats.colors[:, 0, 0]),
    )
    return from_tiles(tiles, plan), (total - plan.capacity).clip(0), saved


def _mask(bits: int | None) -> int:
    return (1 << (bits or 32)) - 1


def _backward(saved: Saved, grad, plan: Plan, interpret: bool) -> Splats:
    views, n = saved.order.shape
    grad = to_tiles(grad, plan)
    channels, pixels = grad.shape[2:]
    rows = kernels.blend_gradient(
        saved.edges,
        saved.ids.reshape(-1),
        saved.places.reshape(-1),
        saved.table.reshape(views * n, -1),
        grad.reshape(-1, channels, pixels),
        (grad * saved.tiles).sum(2).reshape(-1, pixels),
        plan,
        n,
        _mask(_rank_bits(plan, views, n)),
        interpret=interpret,
    )
    sums = kernels.add_rows(
        saved.start, saved.count, saved.order, rows, plan, interpret=interpret
    )
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
