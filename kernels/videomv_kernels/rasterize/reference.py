"""Blending the pairs of each tile in plain JAX: the specification, and the CPU path.

A step blends one chunk of K Gaussians into the P pixels of L tiles at once (the
lanes). Their exponent is a polynomial in the pixel's offset from the tile centre,

    power = q0 + q1 x + q2 y + q3 x^2 + q4 x y + q5 y^2,   alpha = exp(power)

with the logarithm of the opacity in q0. The backward pass goes front to back as well:
with g the gradient of the outputs, T_k the transmittance in front of Gaussian k, f_k
its features, S_k what all Gaussians behind it add to <g, out>,

    d alpha_k = T_k <g, f_k> - S_k / (1 - alpha_k).

S_k is the total minus a running sum, so only the outputs are saved. The rows' gradient
is a scatter-add: in a fixed order on CPU, in any order on GPU, where two runs may
differ in the last bits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from videomv_kernels.rasterize.binning import bin_pairs
from videomv_kernels.rasterize.config import Plan, make_plan
from videomv_kernels.rasterize.splats import (
    from_tiles,
    splats_of_rows,
    tile_boxes,
    to_tiles,
)
from videomv_kernels.rasterize.vjp import Backend

# Size of a step's `[L, K, P]` arrays, which decides how many tiles it takes. On a CPU
# they should stay in the second level cache; a GPU wants few large steps.
CPU_ELEMENTS = 1 << 16
GPU_ELEMENTS = 1 << 23
_BLOCK = 4


class _Lanes(NamedTuple):
    """The tiles of one step: index among all views' tiles, and range of pairs."""

    tile: jax.Array
    start: jax.Array
    end: jax.Array


def _groups(bins, plan: Plan, elements: int) -> tuple[_Lanes, jax.Array]:
    """Tiles in groups of L, longest lists first so that a group ends together.

    Returns:
        `[groups, L]` lanes, and where each tile went among them.
    """
    views = bins.edges.shape[0]
    tiles = views * plan.tiles
    offset = jnp.arange(views, dtype=jnp.int32)[:, None] * plan.capacity
    start = (bins.edges[:, :-1] + offset).reshape(-1)
    end = (bins.edges[:, 1:] + offset).reshape(-1)
    lanes = elements // (plan.chunk * plan.tile[0] * plan.tile[1])
    lanes = min(max(lanes, 1), tiles)
    order = jnp.argsort(start - end)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(tiles, dtype=order.dtype))
    sorted_lanes = _Lanes(order.astype(jnp.int32), start[order], end[order])
    padded = (jnp.pad(x, (0, -tiles % lanes)) for x in sorted_lanes)
    return _Lanes(*(x.reshape(-1, lanes) for x in padded)), place


def _fetch(table, ids, lanes: _Lanes, step, plan: Plan):
    """The step-th chunk of each lane: ids, rows `[L, K, f]` and which are there."""
    slot = jnp.arange(plan.chunk, dtype=jnp.int32)[None] + step * plan.chunk
    position = lanes.start[:, None] + slot
    valid = position < lanes.end[:, None]
    index = ids.at[position].get(mode="clip")
    return index, table[index], valid


def _unfinished(lanes: _Lanes, step, transmittance, plan: Plan):
    """Which lanes have pairs left and a pixel that is not opaque yet."""
    left = lanes.start + step * plan.chunk < lanes.end
    return left & (transmittance.max(1) >= plan.config.stop_transmittance)


def _centres(tile, plan: Plan):
    """Pixel coordinates of the centres of tiles."""
    rows, columns = plan.grid
    tile = tile % (rows * columns)
    x = (tile % columns).astype(jnp.float32) * plan.tile[1] + plan.tile[1] / 2
    y = (tile // columns).astype(jnp.float32) * plan.tile[0] + plan.tile[0] / 2
    return x[:, None], y[:, None]


def _pixels(plan: Plan):
    """Offsets x and y of a tile's pixels from its centre, row by row."""
    y, x = np.mgrid[: plan.tile[0], : plan.tile[1]].astype(np.float32)
    x, y = x + (0.5 - plan.tile[1] / 2), y + (0.5 - plan.tile[0] / 2)
    return x.reshape(-1), y.reshape(-1)


def _polynomial(rows, valid, centre):
    """Coefficients q `[L, K, 6]` of the exponent about the tile centre."""
    x, y, a, b, c, log_opacity = (rows[..., i] for i in range(6))
    x, y = x - centre[0], y - centre[1]
    q1, q2 = a * x + b * y, b * x + c * y
    q0 = log_opacity - 0.5 * (q1 * x + q2 * y)
    q0 = jnp.where(valid, q0, -jnp.inf)
    return jnp.stack([q0, q1, q2, -0.5 * a, -b, -0.5 * c], -1)


class _Blend(NamedTuple):
    """One chunk at the pixels: `[L, K, P]` and, for `after`, `[L, P]`.

    Attributes:
        raw: alpha before its upper limit, alpha: the one used.
        before: transmittance in front of each Gaussian, after: behind the last.
        live: whether the Gaussian counts, weight: its share of the pixel.
    """

    raw: jax.Array
    alpha: jax.Array
    before: jax.Array
    after: jax.Array
    live: jax.Array
    weight: jax.Array


def _blend(q, transmittance, plan: Plan) -> _Blend:
    config = plan.config
    x, y = (jnp.asarray(p)[None, None] for p in _pixels(plan))
    q0, q1, q2, q3, q4, q5 = (q[..., i, None] for i in range(6))
    power = q0 + x * (q1 + q3 * x + q4 * y) + y * (q2 + q5 * y)
    raw = jnp.exp(power)
    alpha = jnp.minimum(raw, config.alpha_max)
    alpha = jnp.where(alpha >= config.alpha_min, alpha, 0.0)
    before, after = _running(jnp.multiply, transmittance, 1 - alpha)
    live = alpha > 0
    if config.stop_rule == "drop":
        live &= before * (1 - alpha) >= config.stop_transmittance
    weight = jnp.where(live, alpha * before, 0.0)
    return _Blend(raw, alpha, before, after, live, weight)


def _running(combine, first, x):
    """Scan along axis 1: the value before each entry, and after the last.

    In blocks, since few operations on many numbers cost less than many on few.
    """
    lanes, length, pixels = x.shape
    block = _BLOCK if length % _BLOCK == 0 else 1
    blocks = x.reshape(lanes, -1, block, pixels)
    inside = [blocks[:, :, 0]]
    for k in range(1, block):
        inside.append(combine(inside[-1], blocks[:, :, k]))
    starts = [first]
    for k in range(length // block):
        starts.append(combine(starts[-1], inside[-1][:, k]))
    start = jnp.stack(starts[:-1], 1)
    before = [start, *(combine(start, value) for value in inside[:-1])]
    return jnp.stack(before, 2).reshape(x.shape), starts[-1]


def _features(rows, valid):
    """What is blended, `[L, K, c + 2]`: colours, depth, and 1 for the alpha."""
    ones = jnp.ones_like(rows[..., :1])
    features = jnp.concatenate([rows[..., 7:], rows[..., 6:7], ones], -1)
    return jnp.where(valid[..., None], features, jnp.zeros_like(features))


def _matmul(a, b):
    """Matrix product in full float32, whatever the default precision."""
    return jnp.matmul(a, b, precision="highest")


def forward(table, bins, plan: Plan, elements: int):
    """Blend: `[g, n, f]` rows and their bins to `[g, tiles, c + 2, P]`."""
    views, n, width = table.shape
    channels, pixels = width - 5, plan.tile[0] * plan.tile[1]
    flat = table.reshape(views * n, width)
    ids = (bins.ids + jnp.arange(views, dtype=jnp.int32)[:, None] * n).reshape(-1)
    groups, place = _groups(bins, plan, elements)
    # A zero that carries the mesh axes of the data, which shard_map asks of carries.
    zero = 0.0 * bins.edges[0, 0].astype(jnp.float32)

    def group(_, lanes: _Lanes):
        centre = _centres(lanes.tile, plan)
        count = lanes.tile.shape[0]

        def more(state):
            step, transmittance, _ = state
            return _unfinished(lanes, step, transmittance, plan).any()

        def step(state):
            step, transmittance, out = state
            _, rows, valid = _fetch(flat, ids, lanes, step, plan)
            blend = _blend(_polynomial(rows, valid, centre), transmittance, plan)
            # The barrier keeps XLA from folding the transpose into the product, which
            # is slower for it.
            features = lax.optimization_barrier(_features(rows, valid).mT)
            out = out + _matmul(features, blend.weight)
            return step + 1, blend.after, out

        state = (
            jnp.int32(0),
            jnp.ones((count, pixels), jnp.float32) + zero,
            jnp.zeros((count, channels, pixels), jnp.float32) + zero,
        )
        return None, lax.while_loop(more, step, state)[2]

    _, out = lax.scan(group, None, groups)
    out = out.reshape(-1, channels, pixels)[place]
    return out.reshape(views, plan.tiles, channels, pixels)


def backward(table, bins, out, grad, plan: Plan, elements: int):
    """Gradient of the rows, given the outputs and their gradient."""
    views, n, width = table.shape
    channels, pixels = width - 5, plan.tile[0] * plan.tile[1]
    flat = table.reshape(views * n, width)
    ids = (bins.ids + jnp.arange(views, dtype=jnp.int32)[:, None] * n).reshape(-1)
    groups, _ = _groups(bins, plan, elements)
    zero = 0.0 * bins.edges[0, 0].astype(jnp.float32)
    x, y = _pixels(plan)
    monomials = jnp.asarray(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1))
    grad = grad.reshape(-1, channels, pixels)
    total = (grad * out.reshape(-1, channels, pixels)).sum(1)

    def group(table_grad, lanes: _Lanes):
        centre = _centres(lanes.tile, plan)
        count = lanes.tile.shape[0]
        lane_grad, lane_total = grad[lanes.tile], total[lanes.tile]

        def more(state):
            step, transmittance, *_ = state
            return _unfinished(lanes, step, transmittance, plan).any()

        def step(state):
            step, transmittance, running, table_grad = state
            index, rows, valid = _fetch(flat, ids, lanes, step, plan)
            q, polynomial_vjp = jax.vjp(
                lambda rows: _polynomial(rows, valid, centre), rows
            )
            blend = _blend(q, transmittance, plan)
            features = _features(rows, valid)
            # Not a matrix product: few channels, and so it joins what follows.
            seen = sum(
                features[..., c, None] * lane_grad[:, None, c] for c in range(channels)
            )
            part = blend.weight * seen
            before, after = _running(jnp.add, running, part)
            behind = lane_total[:, None] - before - part
            d_alpha = blend.before * seen - behind / (1 - blend.alpha)
            counts = blend.live
            if plan.config.extents == "exact":
                counts &= blend.raw <= plan.config.alpha_max
            d_power = jnp.where(counts, d_alpha * blend.raw, 0.0)
            d_q = _matmul(d_power, monomials)
            (d_rows,) = polynomial_vjp(d_q)
            d_features = _matmul(blend.weight, lane_grad.mT)
            d_rows = d_rows.at[..., 7:].set(d_features[..., :-2])
            d_rows = d_rows.at[..., 6].set(d_features[..., -2])
            d_rows = jnp.where(valid[..., None], d_rows, jnp.zeros_like(d_rows))
            return step + 1, blend.after, after, table_grad.at[index].add(d_rows)

        state = (
            jnp.int32(0),
            jnp.ones((count, pixels), jnp.float32) + zero,
            jnp.zeros((count, pixels), jnp.float32) + zero,
            table_grad,
        )
        return lax.while_loop(more, step, state)[3], None

    table_grad, _ = lax.scan(group, jnp.zeros_like(flat) + zero, groups)
    return table_grad.reshape(views, n, width)


def make_backend(elements: int | None = None) -> Backend:
    """The backend of this file.

    Args:
        elements: size of a step. None: `GPU_ELEMENTS` where it is lowered for a GPU,
            else `CPU_ELEMENTS`.
    """

    def dispatch(function, plan: Plan, *args):
        def sized(elements: int):
            return lambda *args: function(*args, plan, elements)

        if elements is not None:
            return sized(elements)(*args)
        gpu = sized(GPU_ELEMENTS)
        cpu = sized(CPU_ELEMENTS)
        return lax.platform_dependent(*args, cuda=gpu, rocm=gpu, default=cpu)

    def render(splats, bounds, plan: Plan):
        table = splats.rows()
        bins = bin_pairs(table, jnp.stack(tile_boxes(bounds, plan), -1), plan)
        out = dispatch(forward, plan, table, bins)
        # A flag per scene remembers how many there are.
        scenes = jnp.zeros_like(splats.colors[:, 0, 0])
        saved = (table, bins, out, scenes)
        return from_tiles(out, plan), bins.overflow, saved

    def gradient(saved, grad, plan: Plan):
        table, bins, out, scenes = saved
        grad = to_tiles(grad, plan)
        rows = dispatch(backward, plan, table, bins, out, grad)
        return splats_of_rows(rows, scenes.shape[0])

    return Backend(
        plan=functools.partial(make_plan, tile=(8, 8), chunk=16),
        forward=render,
        backward=gradient,
    )
