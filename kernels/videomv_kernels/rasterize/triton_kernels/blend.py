"""One warp per tile: blending, and its gradient."""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from videomv_kernels.rasterize.compat import shape_like
from videomv_kernels.rasterize.config import Plan
from videomv_kernels.rasterize.triton_kernels.call import GEOMETRY, WARP, call

_EMPTY = -1e4  # log2(alpha) of a slot without a Gaussian


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


def _row_of(ids, table, place, width: int):
    """The row of a pair, `width` scalars."""
    row = ids[place]
    return [table[row, column] for column in range(width)]


def _alpha(row, log_opacity, x, y, plan: Plan):
    """dx, dy, alpha without limits, whether it reaches the lower, and with both."""
    dx, dy = x - row[0], y - row[1]
    power = (log_opacity + row[2] * dx * dx) + dy * (row[3] * dx + row[4] * dy)
    raw = jnp.exp2(power)
    counts = raw >= plan.config.alpha_min
    alpha = jnp.minimum(raw, plan.config.alpha_max)
    return dx, dy, raw, counts, jnp.where(counts, alpha, 0.0)


def _weigh(alpha, transmittance, plan: Plan):
    """Share of the pixel, and the transmittance behind."""
    weight = alpha * transmittance
    after = transmittance - weight
    if plan.config.stop_rule == "drop":
        stop = plan.config.stop_transmittance
        weight = jnp.where(after >= stop, weight, 0.0)
    return weight, after


def _blend_kernel(edges, ids, table, out, *, plan: Plan):
    view, x, y = _tile_of_program(plan)
    start, end = _range(edges, view, plan)
    drop = plan.config.stop_rule == "drop"
    channels = out.shape[1]
    width = GEOMETRY + channels - 2

    def step(state, whole: bool):
        place, transmittance, _, *sums = state
        places = [place + k for k in range(plan.chunk)]
        if not whole:
            places = [jnp.minimum(p, end - 1) for p in places]
        # All loads first: they wait for each other, the blending for them.
        rows = [_row_of(ids, table, p, width) for p in places]
        for k, row in enumerate(rows):
            opacity = row[5] if whole else jnp.where(place + k < end, row[5], _EMPTY)
            *_, alpha = _alpha(row, opacity, x, y, plan)
            weight, transmittance = _weigh(alpha, transmittance, plan)
            values = [*row[GEOMETRY:], row[6]] + ([1.0] if drop else [])
            sums = [s + weight * v for s, v in zip(sums, values, strict=True)]
        return place + plan.chunk, transmittance, jnp.max(transmittance), *sums

    def more(state, whole: bool):
        last = state[0] + plan.chunk - 1 if whole else state[0]
        return (last < end) & (state[2] >= plan.config.stop_transmittance)

    zero = jnp.zeros(x.shape, jnp.float32)
    sums = [zero] * (channels if drop else channels - 1)
    state = (start, zero + 1, jnp.float32(1), *sums)
    for whole in (True, False):  # without and with a check of the list's end
        state = lax.while_loop(
            functools.partial(more, whole=whole),
            functools.partial(step, whole=whole),
            state,
        )
    _, transmittance, _, *sums = state
    if not drop:
        sums.append(1 - transmittance)
    column, line = x.astype(jnp.int32), y.astype(jnp.int32)
    pixel = (view * plan.height + line) * plan.width + column
    inside = (column < plan.width) & (line < plan.height)
    pixel = jnp.where(inside, pixel, out.shape[0])
    for channel, value in enumerate(sums):
        target = out.at[pixel, jnp.full_like(pixel, channel)]
        triton.store(target, value, mask=inside)


def blend(edges, ids, table, plan: Plan, channels: int, *, interpret: bool):
    """Colours, depth and alpha at every pixel, `[g, h, w, c + 2]`.

    Args:
        edges: `[g, tiles + 1]`, borders of the tiles' lists in `ids`.
        ids: `[g * capacity]`, rows of `table`.
        table: what `pack` returns, for `channels` colours.
    """
    images = (edges.shape[0], plan.height, plan.width, channels + 2)
    out = call(
        functools.partial(_blend_kernel, plan=plan),
        "blend",
        edges.shape[0] * plan.tiles,
        [edges.reshape(-1), ids, table],
        shape_like((math.prod(images[:3]), images[3]), jnp.float32, table),
        warps=1,
        interpret=interpret,
    )
    return out.reshape(images)


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
    edges, ids, places, table, grad, behind, rows, *, plan: Plan
):
    view, x, y = _tile_of_program(plan)
    start, end = _range(edges, view, plan)
    grads = [grad[0, channel] for channel in range(grad.shape[1])]
    behind = behind[0, 0]
    width = rows.shape[1]
    column = _folded()

    def one(place, state):
        transmittance, behind = state
        row = _row_of(ids, table, place, width)
        dx, dy, raw, counts, alpha = _alpha(row, row[5], x, y, plan)
        weight, after = _weigh(alpha, transmittance, plan)
        seen = grads[-1]
        for value, g in zip([*row[GEOMETRY:], row[6]], grads[:-1], strict=True):
            seen = seen + value * g
        behind = behind - weight * seen
        # 1 - alpha is at least 0.01; a division takes six instructions more.
        root = lax.rsqrt(1 - alpha)
        d_alpha = transmittance * seen - behind * (root * root)
        counts &= raw <= plan.config.alpha_max
        if plan.config.stop_rule == "drop":
            counts &= weight > 0
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

    state = (start, _ones_laid_out_as(grads[0]), behind, jnp.float32(1))
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
    edges, ids, places, table, grad, behind, plan: Plan, *, interpret: bool
):
    """A row of gradient sums for each pair, at its place of emission.

    Args:
        edges, ids, table: as for `blend`.
        places: `[g * capacity]`, where each pair was emitted in its view.
        grad: the gradient of what `blend` returned, `[g * tiles, c + 2, P]`.
        behind: its product with that, added over channels, `[g * tiles, 1, P]`.

    Returns:
        `[g * capacity, 7 + c]`: with D the gradient of log(alpha), the sums over the
        tile's pixels of D (1, dx, dy, dx^2, dx dy, dy^2), then the gradients of depth
        and colours. Places without a pair hold anything.
    """
    views = edges.shape[0]
    tiles, channels = views * plan.tiles, grad.shape[1]
    block, width = _block(plan), GEOMETRY + channels - 2
    pixels = [x.reshape(tiles, -1, *block) for x in (grad, behind)]
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return call(
        functools.partial(_blend_gradient_kernel, plan=plan),
        "blend_gradient",
        tiles,
        [edges.reshape(-1), ids, places, table, *pixels],
        shape_like((views * plan.capacity, width), jnp.float32, table),
        warps=1,
        interpret=interpret,
        in_specs=[anywhere] * 4
        + [
            pl.BlockSpec((1, *x.shape[1:]), lambda tile: (tile, 0, 0, 0))
            for x in pixels
        ],
    )
