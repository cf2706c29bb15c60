"""One lane per Gaussian: rows in depth order, tiles of pairs, sums of gradient rows."""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from videomv_kernels.rasterize.compat import shape_like
from videomv_kernels.rasterize.config import Plan
from videomv_kernels.rasterize.triton_kernels.call import (
    GEOMETRY,
    WARP,
    call,
    table_width,
)

_LANES = 32  # Gaussians per program of `pack` and `emit`
_WARPS = _LANES // WARP
_HALVES = (16, 8, 4, 2, 1)
_MASKED = 32  # tiles of a box whose hits `pack` leaves to `emit` as bits
_SUM_LANES = 32  # Gaussians per program of `add_rows`
# Room for rounding in the test of an ellipse against a tile: a pair too many changes
# nothing. Relative, as in `binning`.
_SLACK = 1e-3


def _lanes(count: int, total: int):
    """Index of each lane, the same within bounds, and whether it is."""
    index = pl.program_id(0) * count + lax.iota(jnp.int32, count)
    return index, jnp.minimum(index, total - 1), index < total


def _unpack(packed):
    """Two numbers of 16 bits: the lower, and the upper half."""
    return packed & 0xFFFF, lax.shift_right_logical(packed, jnp.full_like(packed, 16))


def _walk(row, columns, rows, plan: Plan, visit, carry, *, large: bool = False):
    """Visit the tiles of each lane's box, row by row.

    Args:
        row: x, y, A, B, C, l of each lane's Gaussian.
        columns, rows: packed first and end of its box.
        large: only boxes of more than `_MASKED` tiles.
        visit: `(carry, number, column, row, hit) -> carry`; number: of the tile in its
            box; hit: whether alpha reaches `alpha_min` in it.
    """
    x, y, a, b, c, log_opacity = row
    (left, right), (top, bottom) = _unpack(columns), _unpack(rows)
    width, height = (jnp.maximum(p, 0) for p in (right - left, bottom - top))
    count = width * height
    if large:
        count = jnp.where(count > _MASKED, count, 0)
    limit = log_opacity - math.log2(plan.config.alpha_min)
    limit = limit + _SLACK * (1 + limit)

    def reaches(column, row):
        # As in `binning`: the least exponent lies on a side that faces the mean.
        x0 = column.astype(jnp.float32) * plan.tile[1] + 0.5 - x
        y0 = row.astype(jnp.float32) * plan.tile[0] + 0.5 - y
        x1, y1 = x0 + (plan.tile[1] - 1), y0 + (plan.tile[0] - 1)
        zero = jnp.zeros_like(x0)
        dx, dy = _clip(zero, x0, x1), _clip(zero, y0, y1)

        def form(dx, dy):
            return (a * dx + b * dy) * dx + c * dy * dy

        highest = jnp.maximum(
            form(dx, _clip(-b / (2 * c) * dx, y0, y1)),
            form(_clip(-b / (2 * a) * dy, x0, x1), dy),
        )
        return highest + limit >= 0

    def step(state):
        number, column, row, carry = state
        hit = (number < count) & reaches(column, row)
        carry = visit(carry, number, column, row, hit)
        ends = column + 1 >= right
        column = jnp.where(ends, left, column + 1)
        return number + 1, column, jnp.where(ends, row + 1, row), carry

    longest = jnp.max(count)
    state = (jnp.int32(0), left, top, carry)
    return lax.while_loop(lambda state: state[0] < longest, step, state)[3]


def _clip(x, low, high):
    return jnp.minimum(jnp.maximum(x, low), high)


def _pack_kernel(rank, *refs, plan: Plan, total: int, n: int, scene: int):
    *planes, columns, rows, colors, table, counts = refs
    index, inside, valid = _lanes(_LANES, total)
    row = [triton.load(plane.at[inside]) for plane in planes]
    box = [triton.load(packed.at[inside]) for packed in (columns, rows)]
    color = lax.div(inside, jnp.int32(scene)) * n + lax.rem(inside, jnp.int32(n))
    row += [
        triton.load(colors.at[color, jnp.full_like(color, channel)])
        for channel in range(colors.shape[1])
    ]
    row += [lax.bitcast_convert_type(packed, jnp.float32) for packed in box]

    def visit(carry, number, column, row, hit):
        count, mask = carry
        hit = hit.astype(jnp.int32)
        return count + hit, mask | (hit << jnp.minimum(number, _MASKED - 1))

    zero = jnp.zeros_like(index)
    count, mask = _walk(row[:6], box[0], box[1], plan, visit, (zero, zero))
    row.append(lax.bitcast_convert_type(mask, jnp.float32))
    view = lax.div(inside, jnp.int32(n))
    target = jnp.where(valid, view * n + triton.load(rank.at[inside]), total)

    # Whole rows at once: they go to places all over the view.
    shape = (_LANES, table.shape[1])
    column = lax.broadcasted_iota(jnp.int32, shape, 1)
    block = jnp.zeros(shape, jnp.float32)
    for number, value in enumerate(row):
        value = jnp.broadcast_to(value[:, None], shape)
        block = jnp.where(column == number, value, block)
    triton.store(
        table.at[jnp.broadcast_to(target[:, None], shape), column],
        block,
        mask=jnp.broadcast_to(valid[:, None], shape),
    )
    triton.store(counts.at[target], count, mask=valid)


def pack(rank, planes, boxes, colors, plan: Plan, *, interpret: bool):
    """Rows of the table in depth order, and how many tiles each Gaussian is in.

    Args:
        rank: `[g, n]`, depth rank of each Gaussian.
        planes: seven of `[g, n]`: x, y, A, B, C, l, depth.
        boxes: two of `[g, n]`: first and end of columns and of rows, 16 bits each.
        colors: `[s, n, c]`.

    Returns:
        Table `[g * n, f]` and counts `[g * n]`, both by depth rank.
    """
    (views, n), (scenes, _, channels) = rank.shape, colors.shape
    total = views * n
    kernel = functools.partial(
        _pack_kernel, plan=plan, total=total, n=n, scene=n * (views // scenes)
    )
    inputs = [x.reshape(total) for x in (rank, *planes, *boxes)]
    inputs.append(colors.reshape(-1, channels))
    outputs = (
        shape_like((total, table_width(channels)), jnp.float32, rank),
        shape_like((total,), jnp.int32, rank),
    )
    grid = pl.cdiv(total, _LANES)
    return call(
        kernel, "pack", grid, inputs, outputs, warps=_WARPS, interpret=interpret
    )


def _emit_kernel(start, table, keys, ids, *, plan: Plan, n, box, group):
    """The lanes of a warp own 32 Gaussians' places, 32 at a time, and write lines.

    Which tile a place is for, bits tell that `pack` found; boxes too large for these
    are walked, and each lane then writes its own Gaussian's places.
    """
    blocks = pl.cdiv(n, _LANES)
    view = lax.div(pl.program_id(0), jnp.int32(blocks))
    first = (pl.program_id(0) - view * blocks) * _LANES
    count = jnp.minimum(n - first, _LANES)
    first = view * n + first
    lane = lax.iota(jnp.int32, _LANES)
    first_tile = lax.rem(view, jnp.int32(group)) * plan.tiles

    def fields(index, *columns):
        columns = (jnp.full_like(index, column) for column in columns)
        return [triton.load(table.at[index, column]) for column in columns]

    def packed(index, *columns):
        return (lax.bitcast_convert_type(x, jnp.int32) for x in fields(index, *columns))

    def write(place, column, row, index, live):
        key = first_tile + row * plan.grid[1] + column
        live = live & (place < plan.capacity)
        # Nowhere for the rest: the interpreter lets masked lanes write, too.
        target = jnp.where(live, view * plan.capacity + place, keys.shape[0])
        triton.store(keys.at[target], key.astype(keys.dtype), mask=live)
        triton.store(ids.at[target], index, mask=live)

    def line(base):
        place = base + lane
        own = jnp.zeros_like(lane)
        for step in _HALVES:  # the last that begins here or before
            probe = jnp.minimum(own + step, count - 1)
            begins = triton.load(start.at[first + probe])
            own = jnp.where(begins <= place, probe, own)
        index = first + own
        columns, rows, mask = packed(index, box, box + 1, box + 2)
        (left, right), (top, bottom) = _unpack(columns), _unpack(rows)
        width = jnp.maximum(right - left, 1)
        small = width * (bottom - top) <= _MASKED
        rank = place - triton.load(start.at[index])
        live = small & (rank < lax.population_count(mask))
        number = jnp.zeros_like(lane)
        for step in _HALVES:  # the bit before which there are `rank`
            bits = (mask >> number) & ((1 << step) - 1)
            below = lax.population_count(bits)
            beyond = rank >= below
            rank = jnp.where(beyond, rank - below, rank)
            number = jnp.where(beyond, number + step, number)
        down = lax.div(number, width)
        write(place, left + number - down * width, top + down, index, live)
        return base + _LANES

    inside = first + jnp.minimum(lane, count - 1)
    row = fields(inside, *range(6))
    columns, rows, mask = packed(inside, box, box + 1, box + 2)
    begins = triton.load(start.at[inside])
    end = jnp.minimum(jnp.max(begins + lax.population_count(mask)), plan.capacity)
    lax.while_loop(lambda base: base < end, line, start[first])

    def visit(place, number, column, row, hit):
        write(place, column, row, inside, hit & (lane < count))
        return place + hit.astype(jnp.int32)

    _walk(row, columns, rows, plan, visit, begins, large=True)


def emit(
    start, table, plan: Plan, channels: int, group: int, dtype, *, interpret: bool
):
    """Write tile and row of each pair, nearest first.

    Args:
        start: `[g, n]`, where each Gaussian's pairs begin among those of its view.
        table: what `pack` returns, of colours with `channels`.
        group: views whose tiles are numbered together.
        dtype: of these numbers, unsigned.

    Returns:
        Tiles `[g * capacity]`, with all bits set where there is no pair, and rows of
        `table`.
    """
    views, n = start.shape
    total, room = views * n, views * plan.capacity
    kernel = functools.partial(
        _emit_kernel,
        plan=plan,
        n=n,
        box=GEOMETRY + channels,
        group=group,
    )
    # A zero that carries the mesh axes of the data under shard_map.
    zero = start[0, 0] * 0
    none = ~jnp.zeros((room,), dtype)
    blank = (none | zero.astype(dtype), jnp.zeros((room,), jnp.int32) + zero)

    def fill(start, table, keys_in, ids_in, keys, ids):
        kernel(start, table, keys, ids)

    return call(
        fill,
        "emit",
        views * pl.cdiv(n, _LANES),
        [start.reshape(total), table, *blank],
        [shape_like((room,), x.dtype, start) for x in blank],
        warps=_WARPS,
        interpret=interpret,
        aliases={2: 0, 3: 1},
    )


def _add_rows_kernel(end, order, rows, out, *, plan: Plan, total, n):
    index, inside, valid = _lanes(_SUM_LANES, total)
    view = lax.div(inside, jnp.int32(n))
    nearest = lax.rem(inside, jnp.int32(n)) == 0
    before = triton.load(end.at[jnp.maximum(inside - 1, 0)])
    start = jnp.where(nearest, 0, before)
    first = view * plan.capacity + start
    length = jnp.where(valid, triton.load(end.at[inside]) - start, 0)
    width = rows.shape[1]
    column = lax.broadcasted_iota(jnp.int32, (1, pl.next_power_of_2(width)), 1)
    shape = (_SUM_LANES, column.shape[1])
    column = jnp.broadcast_to(column, shape)

    def wide(x):
        return jnp.broadcast_to(x[:, None], shape)

    def step(state):
        number, total = state
        live = wide(number < length) & (column < width)
        place = wide(first + number)
        row = triton.load(rows.at[place, column], mask=live, other=0.0)
        return number + 1, total + row

    longest = jnp.max(length)
    state = (jnp.int32(0), jnp.zeros(shape, jnp.float32))
    _, result = lax.while_loop(lambda state: state[0] < longest, step, state)
    own = jnp.where(valid, view * n + triton.load(order.at[inside]), total)
    live = wide(valid) & (column < width)
    triton.store(out.at[wide(own), column], result, mask=live)


def add_rows(end, order, rows, plan: Plan, *, interpret: bool):
    """Sum of each Gaussian's rows, at its place in the input: `[g * n, width]`.

    Args:
        end, order: `[g, n]` by depth rank: where its rows end in the view's part, which
            is where the next one's begin, and which Gaussian it is.
        rows: `[g * capacity, width]`.
    """
    views, n = order.shape
    total = views * n
    kernel = functools.partial(_add_rows_kernel, plan=plan, total=total, n=n)
    inputs = [end.reshape(total), order.reshape(total), rows]
    output = shape_like((total, rows.shape[1]), jnp.float32, rows)
    grid = pl.cdiv(total, _SUM_LANES)
    return call(kernel, "add_rows", grid, inputs, output, warps=4, interpret=interpret)
