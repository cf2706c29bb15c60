"""Which Gaussians a tile blends, and in what order: static shapes, no atomics.

Per view: sort by depth, write one key `tile, depth rank` per pair, sort the keys.
A view's pairs then lie tile by tile, nearest first.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize.config import Plan

# Of a large pair capacity only the smallest of these shares that is enough for every
# view is filled and sorted: time follows the scene, not the bound.
_SHARES = (8, 3, 1)
_LARGE = 1 << 16
# Slots of all views that are filled at once.
_SLOTS = 1 << 22


class Bins(NamedTuple):
    """The pairs of g views.

    Attributes:
        ids: Gaussian of each pair, tile by tile, nearest first.
        edges: where each tile's pairs begin in `ids`, and where the last one's end.
        overflow: pairs that found no room.
    """

    ids: Int[Array, "g pairs"]
    edges: Int[Array, "g tiles+1"]
    overflow: Int[Array, "g"]


def bin_pairs(
    table: Float[Array, "g n f"], boxes: Int[Array, "g n 4"], plan: Plan
) -> Bins:
    """Sort the pairs of every view by tile and depth.

    Args:
        table: rows as `Splats.rows` makes them.
        boxes: what `tile_boxes` returns, stacked along the last axis.
        plan: sizes; pairs beyond `plan.capacity` are dropped, farthest first.
    """
    views = boxes.shape[0]
    depth = jnp.where(_area(boxes) > 0, table[..., 6], jnp.inf)
    order = _depth_order(depth)
    rows, boxes = (
        jnp.take_along_axis(x, order[..., None], 1) for x in (table[..., :6], boxes)
    )

    count = _area(boxes)
    end = lax.associative_scan(saturating_add, count, axis=1)
    total = end[:, -1]

    def fill(capacity):
        # Views in groups, to bound the memory of the slots.
        most = min(max(_SLOTS // capacity, 1), views)
        group = next(size for size in range(most, 0, -1) if views % size == 0)
        fill_view = functools.partial(_fill_view, capacity=capacity, plan=plan)
        inputs = (rows, boxes, order, count, end)
        ids, edges = lax.map(lambda x: fill_view(*x), inputs, batch_size=group)
        return jnp.pad(ids, ((0, 0), (0, plan.capacity - capacity))), edges

    shares = _SHARES if plan.capacity > _LARGE else (1,)
    rooms = [-(-plan.capacity // share) for share in shares]
    index = sum((total.max() > room).astype(jnp.int32) for room in rooms[:-1])
    fills = [functools.partial(fill, room) for room in rooms]
    ids, edges = lax.switch(index, fills) if len(fills) > 1 else fills[0]()
    return Bins(ids, edges, (total - plan.capacity).clip(0))


def _area(boxes):
    size = (boxes[..., 2:] - boxes[..., :2]).clip(0)
    return size[..., 0] * size[..., 1]


def saturating_add(a, b):
    """Sum of two counts that stops at the largest integer instead of wrapping."""
    return jnp.minimum(a, jnp.iinfo(jnp.int32).max - b) + b


def _depth_order(depth):
    """Stable argsort of positive floats, `[g, n]`: equal depths keep their order."""
    n = depth.shape[1]
    index = jnp.arange(n, dtype=jnp.uint32)[None]
    if n > 1 << 16:
        index = jnp.broadcast_to(index, depth.shape)
        index = lax.sort((depth, index), dimension=1, num_keys=1, is_stable=True)[1]
        return index.astype(jnp.int32)

    # The bits of positive floats sort like the floats. Two sorts of one integer, by
    # the lower and then by the upper half of the bits with the index beneath, take
    # less than half the time of one sort that carries an index along.
    def by_digit(digit):
        key = lax.sort((digit << 16) | index, dimension=1, is_stable=False)
        return (key & 0xFFFF).astype(jnp.int32)

    bits = lax.bitcast_convert_type(depth, jnp.uint32)
    order = by_digit(bits & 0xFFFF)
    upper = jnp.take_along_axis(bits >> 16, order, 1)
    return jnp.take_along_axis(order, by_digit(upper), 1)


def _fill_view(rows, boxes, order, count, end, *, capacity: int, plan: Plan):
    """Ids and edges of one view, with room for `capacity` pairs.

    Args:
        rows: mean, conic and logarithm of the opacity, nearest Gaussian first.
        boxes: tile boxes in the same order.
        order: index of each Gaussian in the input.
        count, end: number of pairs of each, and its running sum.
    """
    n = order.shape[0]
    ranks = jnp.arange(n, dtype=jnp.int32)
    rank = jnp.repeat(ranks, count, total_repeat_length=capacity)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    within = slot - (end - count)[rank]
    box = boxes[rank]
    width = (box[:, 2] - box[:, 0]).clip(1)
    column = box[:, 0] + lax.rem(within, width)
    row = box[:, 1] + lax.div(within, width)
    used = slot < end[-1]
    if plan.config.extents == "exact":
        used &= _touches(rows[rank], column, row, plan)
    tile = jnp.where(used, row * plan.grid[1] + column, plan.tiles).astype(jnp.uint32)

    bits = max(1, (n - 1).bit_length())
    borders = jnp.arange(plan.tiles + 1, dtype=jnp.uint32)
    if (plan.tiles + 1) << bits <= 1 << 32:
        key = lax.sort((tile << bits) | rank.astype(jnp.uint32), is_stable=False)
        borders = borders << bits
        rank = (key & ((1 << bits) - 1)).astype(jnp.int32)
    else:
        # The slots lie in order of rank, so a stable sort by tile is enough.
        key, rank = lax.sort((tile, rank), num_keys=1, is_stable=True)
    edges = jnp.searchsorted(key, borders)
    return order[rank], edges.astype(jnp.int32)


def _touches(rows, column, row, plan: Plan):
    """Whether a Gaussian's alpha reaches alpha_min somewhere in a tile.

    The quadratic form's minimum over the rectangle of the tile's pixel centres lies
    on one of the two sides that face the mean, or is zero inside.
    """
    x, y, a, b, c, log_opacity = (rows[:, i] for i in range(6))
    x0 = column.astype(jnp.float32) * plan.tile[1] + 0.5 - x
    y0 = row.astype(jnp.float32) * plan.tile[0] + 0.5 - y
    x1, y1 = x0 + (plan.tile[1] - 1), y0 + (plan.tile[0] - 1)
    zero = jnp.zeros_like(x0)
    dx, dy = jnp.clip(zero, x0, x1), jnp.clip(zero, y0, y1)

    def form(dx, dy):
        return (a * dx + 2 * b * dy) * dx + c * dy * dy

    lowest = jnp.minimum(
        form(dx, jnp.clip(-b / c * dx, y0, y1)), form(jnp.clip(-b / a * dy, x0, x1), dy)
    )
    # A little room for rounding: one pair too many changes nothing.
    limit = 2 * (log_opacity - jnp.log(jnp.float32(plan.config.alpha_min)))
    return lowest <= limit + 1e-3 * (1 + limit)
