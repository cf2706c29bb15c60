"""The GPU's kernels, in Pallas for Triton: everything that names Triton is here.

One lane per Gaussian in `pack`, `emit` and `add_rows`; one warp per tile in `blend` and
`blend_gradient`, where each lane holds a few pixels side by side. Nothing
is added with atomics: a pair's gradient is a row in a place of its own, and a
Gaussian's rows, which lie one after the other, are added in their order.

Exponents are base 2, `log2(alpha) = l + A dx^2 + B dx dy + C dy^2`, and a Gaussian is a
row of the table: x, y, A, B, C, l, depth, colours, and whatever fills it up to a power
of two, without which each scalar load takes two more instructions for its address.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from videomv_kernels.rasterize.compat import shape_like
from videomv_kernels.rasterize.config import Plan

WARP = 32
GEOMETRY = 7  # columns of the table in front of the colours
MOMENTS = 6  # columns of a gradient row in front of depth and colours
_EMPTY = -1e4  # log2(alpha) of a slot without a Gaussian
_LANES = 128  # Gaussians per program of `pack` and `emit`
_SUM_LANES = 32  # Gaussians per program of `add_rows`
# Room for rounding in the test of an ellipse against a tile: a pair too many changes
# nothing. Relative, as in `binning`.
_SLACK = 1e-3


def _call(
    kernel,
    name: str,
    grid: int,
    inputs,
    outputs,
    *,
    warps: int,
    interpret: bool,
    in_specs=None,
    out_specs=None,
    aliases=None,
):
    """`pallas_call`; without specs, the kernel indexes whole arrays."""
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        kernel,
        grid=(grid,),
        in_specs=in_specs or [anywhere] * len(inputs),
        out_specs=out_specs or jax.tree.map(lambda _: anywhere, outputs),
        out_shape=outputs,
        input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=f"rasterize_{name}",
    )(*inputs)


# ------------------------------------------------------------- one lane per Gaussian


def table_width(channels: int) -> int:
    """Columns of the table."""
    return pl.next_power_of_2(GEOMETRY + channels)


def _lanes(count: int, total: int):
    """Index of each lane, the same within bounds, and whether it is."""
    index = pl.program_id(0) * count + lax.iota(jnp.int32, count)
    return index, jnp.minimum(index, total - 1), index < total


def _unpack(packed):
    """Two numbers of 16 bits: the lower, and the upper half."""
    return packed & 0xFFFF, lax.shift_right_logical(packed, jnp.full_like(packed, 16))


def _walk(row, columns, rows, plan: Plan, visit, carry):
    """Visit the tiles of each lane's box, row by row.

    Args:
        row: x, y, A, B, C, l of each lane's Gaussian.
        columns, rows: packed first and end of its box.
        visit: `(carry, column, row, hit) -> carry`; hit: whether alpha reaches
            `alpha_min` in the tile.
    """
    x, y, a, b, c, log_opacity = row
    (left, right), (top, bottom) = _unpack(columns), _unpack(rows)
    width, height = (jnp.maximum(p, 0) for p in (right - left, bottom - top))
    count = width * height
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
        carry = visit(carry, column, row, hit)
        ends = column + 1 >= right
        column = jnp.where(ends, left, column + 1)
        return number + 1, column, jnp.where(ends, row + 1, row), carry

    longest = jnp.max(count)
    state = (jnp.int32(0), left, top, carry)
    return lax.while_loop(lambda state: state[0] < longest, step, state)[3]


def _clip(x, low, high):
    return jnp.minimum(jnp.maximum(x, low), high)


def _pack_kernel(order, *refs, plan: Plan, total: int, n: int, scene: int):
    *planes, columns, rows, colors, table, boxes, counts = refs
    index, inside, valid = _lanes(_LANES, total)
    own = lax.div(inside, jnp.int32(n)) * n + triton.load(order.at[inside])
    target = jnp.where(valid, index, total)

    def put(column, value):
        triton.store(table.at[target, jnp.full_like(target, column)], value, mask=valid)

    row = [triton.load(plane.at[own]) for plane in planes]
    for column, value in enumerate(row):
        put(column, value)
    color = lax.div(own, jnp.int32(scene)) * n + lax.rem(own, jnp.int32(n))
    for channel in range(colors.shape[1]):
        put(
            GEOMETRY + channel,
            triton.load(colors.at[color, jnp.full_like(color, channel)]),
        )
    box = [triton.load(packed.at[own]) for packed in (columns, rows)]
    for axis, packed in enumerate(box):
        triton.store(boxes.at[jnp.full_like(target, axis), target], packed, mask=valid)
    count = _walk(
        row[:6],
        box[0],
        box[1],
        plan,
        lambda count, column, row, hit: count + hit.astype(jnp.int32),
        jnp.zeros_like(index),
    )
    triton.store(counts.at[target], count, mask=valid)


def pack(order, planes, boxes, colors, plan: Plan, *, interpret: bool):
    """Rows of the table in depth order, and how many tiles each Gaussian is in.

    Args:
        order: `[g, n]`, Gaussian of each depth rank.
        planes: seven of `[g, n]`: x, y, A, B, C, l, depth.
        boxes: two of `[g, n]`: first and end of columns and of rows, 16 bits each.
        colors: `[s, n, c]`.

    Returns:
        Table `[g * n, f]`, boxes `[2, g * n]` and counts `[g * n]`.
    """
    (views, n), (scenes, _, channels) = order.shape, colors.shape
    total = views * n
    kernel = functools.partial(
        _pack_kernel, plan=plan, total=total, n=n, scene=n * (views // scenes)
    )
    inputs = [x.reshape(total) for x in (order, *planes, *boxes)]
    inputs.append(colors.reshape(-1, channels))
    outputs = (
        shape_like((total, table_width(channels)), jnp.float32, order),
        shape_like((2, total), jnp.int32, order),
        shape_like((total,), jnp.int32, order),
    )
    grid = pl.cdiv(total, _LANES)
    return _call(kernel, "pack", grid, inputs, outputs, warps=4, interpret=interpret)


def _emit_kernel(start, table, boxes, keys, *ranks, plan: Plan, total, n, bits):
    index, inside, valid = _lanes(_LANES, total)
    row = [
        triton.load(table.at[inside, jnp.full_like(inside, column)])
        for column in range(6)
    ]
    columns, rows = (
        triton.load(boxes.at[jnp.full_like(inside, axis), inside]) for axis in range(2)
    )
    view = lax.div(inside, jnp.int32(n))
    rank = inside - view * n

    def visit(place, column, row, hit):
        tile = view * plan.tiles + row * plan.grid[1] + column
        live = hit & valid & (place < plan.capacity)
        # Nowhere for the rest: the interpreter lets masked lanes write, too.
        target = jnp.where(live, view * plan.capacity + place, keys.shape[0])
        key = tile if ranks else (tile << bits) | rank
        triton.store(keys.at[target], key.astype(jnp.uint32), mask=live)
        for out in ranks:
            triton.store(out.at[target], rank, mask=live)
        return place + hit.astype(jnp.int32)

    first = jnp.where(valid, triton.load(start.at[inside]), plan.capacity)
    _walk(row, columns, rows, plan, visit, first)


def emit(start, table, boxes, plan: Plan, bits: int | None, *, interpret: bool):
    """Write the key of each pair.

    Args:
        start: `[g, n]`, where each Gaussian's pairs begin among those of its view.
        table, boxes: what `pack` returns.
        bits: of the depth rank, which is the lower part of a key. None: keys are
            tiles, and ranks come apart.

    Returns:
        Keys `[g * capacity]`, all bits set where there is no pair, and the ranks if
        `bits` is None.
    """
    views, n = start.shape
    total, room = views * n, views * plan.capacity
    kernel = functools.partial(_emit_kernel, plan=plan, total=total, n=n, bits=bits)
    # A zero that carries the mesh axes of the data under shard_map.
    zero = start[0, 0] * 0
    blank = [jnp.full((room,), np.uint32(0xFFFFFFFF)) | zero.astype(jnp.uint32)]
    if bits is None:
        blank.append(jnp.zeros((room,), jnp.int32) + zero)
    inputs = [start.reshape(total), table, boxes, *blank]

    def fill(start, table, boxes, *refs):
        kernel(start, table, boxes, *refs[len(blank) :])

    return _call(
        fill,
        "emit",
        pl.cdiv(total, _LANES),
        inputs,
        [shape_like((room,), x.dtype, start) for x in blank],
        warps=4,
        interpret=interpret,
        aliases={3 + i: i for i in range(len(blank))},
    )


def _add_rows_kernel(start, count, order, rows, out, *, plan: Plan, total, n):
    index, inside, valid = _lanes(_SUM_LANES, total)
    view = lax.div(inside, jnp.int32(n))
    first = view * plan.capacity + triton.load(start.at[inside])
    length = jnp.where(valid, triton.load(count.at[inside]), 0)
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


def add_rows(start, count, order, rows, plan: Plan, *, interpret: bool):
    """Sum of each Gaussian's rows, at its place in the input: `[g * n, width]`.

    Args:
        start, count, order: `[g, n]` by depth rank: where its rows begin in the view's
            part, how many there are, and which Gaussian it is.
        rows: `[g * capacity, width]`.
    """
    views, n = order.shape
    total = views * n
    kernel = functools.partial(_add_rows_kernel, plan=plan, total=total, n=n)
    inputs = [*(x.reshape(total) for x in (start, count, order)), rows]
    output = shape_like((total, rows.shape[1]), jnp.float32, rows)
    grid = pl.cdiv(total, _SUM_LANES)
    return _call(kernel, "add_rows", grid, inputs, output, warps=4, interpret=interpret)


# ------------------------------------------------------------------- one warp per tile


def _block(plan: Plan) -> tuple[int, int]:
    """Lanes, and pixels of each. Neighbours in a lane are neighbours in a row.

    This is the layout in which Triton loads an array of this shape in wide words, so
    sums over a lane's pixels stay in registers.
    """
    return WARP, plan.tile[0] * plan.tile[1] // WARP


def _tile_of_program(plan: Plan):
    """View of this program's tile, and x `[32, r]` and y `[32, 1]` of its pixels."""
    program = pl.program_id(0)
    view = lax.div(program, jnp.int32(plan.tiles))
    tile = program - view * plan.tiles
    row = lax.div(tile, jnp.int32(plan.grid[1]))
    column = tile - row * plan.grid[1]
    (height, width), (lanes, pixels) = plan.tile, _block(plan)
    per_line = width // pixels  # a power of two
    lane = lax.broadcasted_iota(jnp.int32, (lanes, 1), 0)
    y = lax.div(lane, jnp.full_like(lane, per_line)) + row * height
    lane = lax.broadcasted_iota(jnp.int32, (lanes, pixels), 0) & (per_line - 1)
    x = lane * pixels + lax.broadcasted_iota(jnp.int32, (lanes, pixels), 1)
    x = x + column * width
    return view, x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5


def _range(edges, view, plan: Plan):
    """Where the list of this program's tile begins and ends."""
    entry = pl.program_id(0) + view  # one border more than tiles in each view
    return edges[entry], edges[entry + 1]


def _row_of(ids, table, place, view, n: int, mask: int, width: int):
    """The row of a pair, `width` scalars."""
    rank = (ids[place] & np.uint32(mask)).astype(jnp.int32)
    row = view * n + rank
    return [table[row, column] for column in range(width)]


def _alpha(row, log_opacity, x, y, plan: Plan):
    """dx, dy, the alpha before its upper limit, and the one used."""
    dx, dy = x - row[0], y - row[1]
    power = (log_opacity + row[2] * dx * dx) + dy * (row[3] * dx + row[4] * dy)
    raw = jnp.exp2(power)
    alpha = jnp.minimum(raw, plan.config.alpha_max)
    return dx, dy, raw, jnp.where(alpha >= plan.config.alpha_min, alpha, 0.0)


def _weigh(alpha, transmittance, plan: Plan):
    """Share of the pixel, and the transmittance behind."""
    weight = alpha * transmittance
    after = transmittance - weight
    if plan.config.stop_rule == "drop":
        stop = plan.config.stop_transmittance
        weight = jnp.where(after >= stop, weight, 0.0)
    return weight, after


def _blend_kernel(edges, ids, table, out, *, plan: Plan, n: int, mask: int):
    view, x, y = _tile_of_program(plan)
    start, end = _range(edges, view, plan)
    drop = plan.config.stop_rule == "drop"
    channels = out.shape[1]
    width = GEOMETRY + channels - 2

    def step(state):
        place, transmittance, _, *sums = state
        # All loads first: they wait for each other, the blending for them.
        places = [jnp.minimum(place + k, end - 1) for k in range(plan.chunk)]
        rows = [_row_of(ids, table, p, view, n, mask, width) for p in places]
        for k, row in enumerate(rows):
            log_opacity = jnp.where(place + k < end, row[5], _EMPTY)
            *_, alpha = _alpha(row, log_opacity, x, y, plan)
            weight, transmittance = _weigh(alpha, transmittance, plan)
            values = [*row[GEOMETRY:], row[6]] + ([1.0] if drop else [])
            sums = [s + weight * v for s, v in zip(sums, values, strict=True)]
        return place + plan.chunk, transmittance, jnp.max(transmittance), *sums

    def more(state):
        return (state[0] < end) & (state[2] >= plan.config.stop_transmittance)

    zero = jnp.zeros(x.shape, jnp.float32)
    sums = [zero] * (channels if drop else channels - 1)
    state = (start, zero + 1, jnp.float32(1), *sums)
    _, transmittance, _, *sums = lax.while_loop(more, step, state)
    if not drop:
        sums.append(1 - transmittance)
    for channel, value in enumerate(sums):
        out[0, channel] = value


def blend(
    edges, ids, table, plan: Plan, n: int, channels: int, mask: int, *, interpret: bool
):
    """Colours, depth and alpha at the pixels of every tile, `[g * tiles, c + 2, P]`.

    Args:
        edges: `[g, tiles + 1]`, borders of the tiles' lists in `ids`.
        ids: `[g * capacity]`, whose bits under `mask` are depth ranks.
        table: what `pack` returns, for `channels` colours.
    """
    tiles, block = edges.shape[0] * plan.tiles, (channels + 2, *_block(plan))
    out = _call(
        functools.partial(_blend_kernel, plan=plan, n=n, mask=mask),
        "blend",
        tiles,
        [edges.reshape(-1), ids, table],
        shape_like((tiles, *block), jnp.float32, table),
        warps=1,
        interpret=interpret,
        out_specs=pl.BlockSpec((1, *block), lambda tile: (tile, 0, 0, 0)),
    )
    return out.reshape(tiles, channels + 2, -1)


def _fold(values):
    """Sums over the warp of up to 32 values, `[32]` each, the k-th in lane `_SUM_OF`.

    A butterfly in which every exchange also halves how many values are left: 10 + 5 +
    3 + 2 + 1 shuffles for ten values, where one reduction each takes 50.
    """
    groups, rest = 1, WARP
    while rest > 1:
        rest //= 2
        shape = (groups, 2, rest)
        second = lax.broadcasted_iota(jnp.int32, shape, 1) == 1
        halves = [
            jnp.broadcast_to(value.reshape(shape).sum(1)[:, None], shape)
            for value in values
        ]
        groups *= 2
        values = [
            jnp.where(second, halves[min(k + 1, len(halves) - 1)], halves[k])
            for k in range(0, len(halves), 2)
        ]
        values = [value.reshape(groups, rest) for value in values]
    return values[0].reshape(WARP)


def _folded():
    """Which of the values a lane holds after `_fold`: its number's bits, reversed."""
    lane = lax.iota(jnp.int32, WARP)
    return sum(((lane >> k) & 1) << (4 - k) for k in range(5))


def _ones_laid_out_as(loaded):
    """Ones that Triton cannot tell from what was loaded.

    A loop keeps the layout its state begins with, and a constant has another than a
    load: eight shuffles each turn to convert it.
    """
    bits = lax.bitcast_convert_type(loaded, jnp.int32)
    for shift in (31, 1):
        bits = lax.shift_right_logical(bits, jnp.full_like(bits, shift))
    return 1.0 + bits.astype(jnp.float32)


def _blend_gradient_kernel(
    edges, ids, places, table, grad, total, rows, *, plan: Plan, n: int, mask: int
):
    view, x, y = _tile_of_program(plan)
    start, end = _range(edges, view, plan)
    grads = [grad[0, channel] for channel in range(grad.shape[1])]
    width = rows.shape[1]
    column = _folded()

    def one(place, state):
        transmittance, behind = state
        row = _row_of(ids, table, place, view, n, mask, width)
        dx, dy, raw, alpha = _alpha(row, row[5], x, y, plan)
        weight, after = _weigh(alpha, transmittance, plan)
        seen = grads[-1]
        for value, g in zip([*row[GEOMETRY:], row[6]], grads[:-1], strict=True):
            seen = seen + value * g
        behind = behind - weight * seen
        d_alpha = transmittance * seen - behind / (1 - alpha)
        counts = (weight > 0) & (raw <= plan.config.alpha_max)
        d_power = jnp.where(counts, d_alpha * raw, 0.0)
        moved = d_power * dx
        s, sx, sxx = (v.sum(1) for v in (d_power, moved, moved * dx))
        dy = dy.reshape(WARP)
        sums = [s, sx, s * dy, sxx, sx * dy, s * dy * dy]
        sums += [(weight * g).sum(1) for g in (grads[-2], *grads[:-2])]
        slot = view * plan.capacity + places[place]
        for first in range(0, width, WARP):
            own = column + first
            triton.store(
                rows.at[jnp.full_like(own, slot), own],
                _fold(sums[first : first + WARP]),
                mask=own < width,
            )
        return after, behind

    def step(state):
        place, transmittance, behind, _ = state
        stop = jnp.minimum(place + plan.chunk, end)
        state = lax.fori_loop(place, stop, one, (transmittance, behind))
        return stop, *state, jnp.max(state[0])

    def more(state):
        return (state[0] < end) & (state[3] >= plan.config.stop_transmittance)

    state = (start, _ones_laid_out_as(total[0]), total[0], jnp.float32(1))
    place, *_ = lax.while_loop(more, step, state)

    # Rows of what the stop rule left out.
    shape = (WARP, pl.next_power_of_2(width))
    column = lax.broadcasted_iota(jnp.int32, shape, 1)
    lane = lax.iota(jnp.int32, WARP)

    def clear(place):
        valid = place + lane < end
        slot = view * plan.capacity + triton.load(
            places.at[jnp.minimum(place + lane, end - 1)]
        )
        slot = jnp.where(valid, slot, rows.shape[0])
        live = jnp.broadcast_to(valid[:, None], shape) & (column < width)
        target = rows.at[jnp.broadcast_to(slot[:, None], shape), column]
        triton.store(target, jnp.zeros(shape, jnp.float32), mask=live)
        return place + WARP

    lax.while_loop(lambda place: place < end, clear, place)


def blend_gradient(
    edges, ids, places, table, grad, total, plan: Plan, n: int, mask: int, *, interpret
):
    """A row of gradient sums for each pair, at its place of emission.

    Args:
        edges, ids, table, n, mask: as for `blend`.
        places: `[g * capacity]`, where each pair was emitted in its view.
        grad: gradient of what `blend` returned.
        total: its product with that, summed over the channels, `[g * tiles, P]`.

    Returns:
        `[g * capacity, 7 + c]`: with D the gradient of log(alpha), the sums over the
        tile's pixels of D (1, dx, dy, dx^2, dx dy, dy^2), then the gradients of depth
        and colours. Places without a pair hold anything.
    """
    views = edges.shape[0]
    tiles, channels = views * plan.tiles, grad.shape[1]
    block, width = _block(plan), GEOMETRY + channels - 2
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return _call(
        functools.partial(_blend_gradient_kernel, plan=plan, n=n, mask=mask),
        "blend_gradient",
        tiles,
        [
            edges.reshape(-1),
            ids,
            places,
            table,
            grad.reshape(tiles, channels, *block),
            total.reshape(tiles, *block),
        ],
        shape_like((views * plan.capacity, width), jnp.float32, table),
        warps=1,
        interpret=interpret,
        in_specs=[anywhere] * 4
        + [
            pl.BlockSpec((1, channels, *block), lambda tile: (tile, 0, 0, 0)),
            pl.BlockSpec((1, *block), lambda tile: (tile, 0, 0)),
        ],
    )
