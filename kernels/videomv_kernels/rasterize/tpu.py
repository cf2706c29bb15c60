"""Blending on a TPU: Pallas kernels for Mosaic, over chunks of K pairs.

The lists of `binning` are cut into chunks, each of one tile, and a chunk's Gaussians
are gathered into a column each of `[F, C * K]` features: six coefficients of the
exponent's polynomial about the tile's centre (as in `reference`), then colours, depth
and one. The grid runs over chunks in order. A scalar-prefetched list says which tile a
chunk belongs to; transmittance and running sums stay in VMEM until the tile changes.

Two things make it fit the machine:

- The polynomial is a matrix product. A pixel's offsets from the centre of a tile of at
  most 16 pixels, and their products, are exact in bfloat16, so it is enough to split
  the coefficients into three bfloat16 parts, stacked in one product.
- Depth rank k of a chunk lies in column `(k % (K / 8)) * 8 + k // (K / 8)`. A scan over
  depth is then elementwise between registers of eight sublanes, and three rolls.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from videomv_kernels.rasterize.binning import bin_pairs
from videomv_kernels.rasterize.compat import shape_like, varying_like
from videomv_kernels.rasterize.config import Plan, RasterConfig, Unsupported, make_plan
from videomv_kernels.rasterize.splats import (
    from_tiles,
    splats_of_rows,
    tile_boxes,
    to_tiles,
)
from videomv_kernels.rasterize.vjp import Backend

# The list of a chunk's tile must fit into 1 MiB of SMEM together with what the compiler
# keeps there: 200,000 entries compile for v5e and v6e, 262,000 do not.
MAX_CHUNKS = 150_000
LANES, SUBLANES = 128, 8
_COEFFICIENTS = 8  # six, in a full register
_EMPTY = -1e4  # exponent of slots without a Gaussian


def _plan(config: RasterConfig, views, n, height, width) -> Plan:
    plan = make_plan(config, views, n, height, width, tile=(16, 16), chunk=LANES)
    if config.extents != "exact":
        raise Unsupported("implementation 'tpu' has no extents='original'; use 'xla'")
    ty, tx = plan.tile
    if max(ty, tx) > 16 or ty * tx % LANES:
        raise Unsupported(
            f"tile is {plan.tile}; implementation 'tpu' wants sides of at most 16 and "
            "a multiple of 128 pixels"
        )
    if plan.chunk % LANES:
        raise Unsupported(
            f"chunk is {plan.chunk}; implementation 'tpu' wants a multiple of 128"
        )
    if _chunks(plan) > MAX_CHUNKS:
        raise Unsupported(
            f"a view has room for {plan.capacity} pairs in {plan.tiles} tiles, which "
            f"are up to {_chunks(plan)} chunks; implementation 'tpu' takes "
            f"{MAX_CHUNKS}: set pairs_per_view"
        )
    return plan


def _chunks(plan: Plan) -> int:
    """Room for the chunks of a view: whole ones, and one begun per tile."""
    return plan.tiles + plan.capacity // plan.chunk


def _channel_rows(channels: int) -> int:
    return -(-channels // SUBLANES) * SUBLANES


# --------------------------------------------------------------- lists and features


def _chunk_lists(edges, plan: Plan):
    """Cut the lists of the tiles of g views, `[g, tiles + 1]`, into chunks.

    Returns:
        Tile of each chunk `[C]`, how many chunks there are `[1]`, and for each column
        its place among the pairs of all views and whether it holds one, `[C, K]`.
    """
    views, chunk = edges.shape[0], plan.chunk
    room = views * _chunks(plan)
    offset = jnp.arange(views, dtype=jnp.int32)[:, None] * plan.capacity
    start = (edges[:, :-1] + offset).reshape(-1)
    count = (edges[:, 1:] - edges[:, :-1]).reshape(-1)
    chunks = jnp.maximum(1, -(-count // chunk))
    end = jnp.cumsum(chunks, dtype=jnp.int32)
    tiles = jnp.arange(count.shape[0], dtype=jnp.int32)
    tile = jnp.repeat(tiles, chunks, total_repeat_length=room)
    number = jnp.arange(room, dtype=jnp.int32)
    column = np.arange(chunk, dtype=np.int32)
    rank = (column % SUBLANES) * (chunk // SUBLANES) + column // SUBLANES
    slot = (number - (end - chunks)[tile])[:, None] * chunk + rank[None]
    valid = (slot < count[tile][:, None]) & (number < end[-1])[:, None]
    return tile, end[-1:], start[tile][:, None] + slot, valid


def _features(table, bins, lists, plan: Plan):
    """`[F, C * K]`: what the kernels read of each column. Differentiable in `table`."""
    tile, _, position, valid = lists
    views, n, _ = table.shape
    offset = jnp.arange(views, dtype=jnp.int32)[:, None] * n
    index = (bins.ids + offset).reshape(-1).at[position].get(mode="clip")
    # Planes, not rows: a TPU pads the last axis to 128, so that rows of ten would take
    # 512 bytes each.
    planes = table.reshape(views * n, -1).T
    x, y, a, b, c, log_opacity, depth, *colors = (
        plane.at[index].get(mode="promise_in_bounds") for plane in planes
    )
    (rows, columns), (height, width) = plan.grid, plan.tile
    row, column = jnp.divmod(tile % (rows * columns), columns)
    x = x - (column.astype(jnp.float32) * width + width / 2)[:, None]
    y = y - (row.astype(jnp.float32) * height + height / 2)[:, None]
    q1, q2 = a * x + b * y, b * x + c * y
    q0 = log_opacity - 0.5 * (q1 * x + q2 * y)
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    blended = [*colors, depth, one]
    blended += [zero] * (_channel_rows(len(blended)) - len(blended))
    features = [q1, q2, -0.5 * a, -b, -0.5 * c, zero, zero, *blended]
    features = [jnp.where(valid, row, zero) for row in features]
    q0 = jnp.where(valid, q0, jnp.full_like(q0, _EMPTY))
    return jnp.stack([q0, *features]).reshape(len(features) + 1, -1)


def _monomials(plan: Plan) -> np.ndarray:
    """1, x, y, x^2, x y, y^2, 0, 0 at the pixels, `[8, P]`."""
    y, x = np.mgrid[: plan.tile[0], : plan.tile[1]].astype(np.float32)
    y, x = (y + 0.5 - plan.tile[0] / 2).ravel(), (x + 0.5 - plan.tile[1] / 2).ravel()
    return np.stack([x * 0 + 1, x, y, x * x, x * y, y * y, 0 * x, 0 * x])


# ------------------------------------------------------------------------- kernels


def _dot(a, b, contract):
    """One pass of the matrix unit: bfloat16 in, float32 out."""
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _split(x):
    """Two bfloat16 numbers whose sum is x to 16 bits."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


def _product(a, b, contract):
    """Matrix product in three passes, to 16 bits of each factor."""
    (ah, al), (bh, bl) = _split(a), _split(b)
    return _dot(ah, bh, contract) + _dot(ah, bl, contract) + _dot(al, bh, contract)


def _scan(combine, unit, x):
    """Scan along depth: the value before each entry, and after the last `[1, P]`."""
    blocks = [x[k : k + SUBLANES] for k in range(0, x.shape[0], SUBLANES)]
    inside = [blocks[0]]
    for block in blocks[1:]:
        inside.append(combine(inside[-1], block))
    sublane = lax.broadcasted_iota(jnp.int32, blocks[0].shape, 0)
    total = inside[-1]
    for shift in (1, 2, 4):
        moved = pltpu.roll(total, shift, 0)
        total = combine(total, jnp.where(sublane >= shift, moved, unit))
    start = jnp.where(sublane >= 1, pltpu.roll(total, 1, 0), unit)
    before = [start, *(combine(start, value) for value in inside[:-1])]
    return jnp.concatenate(before, 0), total[SUBLANES - 1 :]


def _blend(q, monomials, transmittance, config: RasterConfig):
    """Alphas of a chunk `[K, P]` and what they leave; see `reference._Blend`."""
    high = q.astype(jnp.bfloat16).astype(jnp.float32)
    middle = (q - high).astype(jnp.bfloat16).astype(jnp.float32)
    parts = jnp.concatenate([high, middle, q - high - middle], 0).astype(jnp.bfloat16)
    raw = jnp.exp(_dot(parts, monomials, (0, 0)))
    alpha = jnp.minimum(raw, config.alpha_max)
    alpha = jnp.where(alpha >= config.alpha_min, alpha, 0.0)
    through = 1 - alpha
    before, after = _scan(jnp.multiply, 1.0, through)
    before, after = before * transmittance, after * transmittance
    live = alpha > 0
    if config.stop_rule == "drop":
        live &= before * through >= config.stop_transmittance
    weight = jnp.where(live, alpha * before, 0.0)
    return raw, through, before, after, live, weight


def _position(tile_of, count):
    """Whether this chunk begins a tile, and whether it is one at all."""
    chunk = pl.program_id(0)
    exists = chunk < count[0]
    previous = tile_of[jnp.maximum(chunk - 1, 0)]
    return ((chunk == 0) | (previous != tile_of[chunk])) & exists, exists


def _forward_kernel(
    tile_of, count, features, monomials, out, transmittance, *, config: RasterConfig
):
    first, exists = _position(tile_of, count)

    @pl.when(first)
    def _():
        transmittance[...] = jnp.ones_like(transmittance)
        out[...] = jnp.zeros_like(out)

    @pl.when(exists & (jnp.max(transmittance[...]) >= config.stop_transmittance))
    def _():
        q, blended = features[:_COEFFICIENTS], features[_COEFFICIENTS:]
        *_, after, _, weight = _blend(q, monomials[...], transmittance[...], config)
        out[0] += _product(blended, weight, (1, 0))
        transmittance[...] = after


def _backward_kernel(
    tile_of,
    count,
    features,
    monomials,
    grad,
    total,
    out,
    transmittance,
    running,
    *,
    config: RasterConfig,
):
    first, exists = _position(tile_of, count)

    @pl.when(first)
    def _():
        transmittance[...] = jnp.ones_like(transmittance)
        running[...] = jnp.zeros_like(running)

    live = exists & (jnp.max(transmittance[...]) >= config.stop_transmittance)

    @pl.when(jnp.logical_not(live))
    def _():
        out[...] = jnp.zeros_like(out)

    @pl.when(live)
    def _():
        q, blended = features[:_COEFFICIENTS], features[_COEFFICIENTS:]
        raw, through, before, after, counts, weight = _blend(
            q, monomials[...], transmittance[...], config
        )
        seen = _product(blended, grad[0], (0, 0))
        part = weight * seen
        ahead, added = _scan(jnp.add, 0.0, part)
        behind = total[0] - running[...] - ahead - part
        d_alpha = before * seen - behind / through
        d_power = jnp.where(counts & (raw <= config.alpha_max), d_alpha * raw, 0.0)
        high, low = _split(d_power)
        exact = monomials[:_COEFFICIENTS]
        out[:_COEFFICIENTS] = _dot(exact, high, (1, 1)) + _dot(exact, low, (1, 1))
        out[_COEFFICIENTS:] = _product(grad[0], weight, (1, 1))
        transmittance[...] = after
        running[...] += added


def _call(kernel, lists, features, tiled, out_rows, plan: Plan, interpret: bool):
    """Run a kernel over the chunks.

    Args:
        tiled: more inputs, `[tiles, r, P]`.
        out_rows: rows of an output `[tiles, out_rows, P]`; None for one like features.
    """
    tile_of, count, *_ = lists
    tiles, pixels = tiled[0].shape[0] if tiled else None, plan.tile[0] * plan.tile[1]
    monomials = jnp.asarray(np.tile(_monomials(plan), (3, 1)), jnp.bfloat16)

    # Past the last chunk nothing new is read.
    def clamped(chunk, tile_of, count):
        return jnp.minimum(chunk, count[0] - 1)

    def tile_block(rows):
        return pl.BlockSpec((1, rows, pixels), lambda *a: (a[1][clamped(*a)], 0, 0))

    column = pl.BlockSpec((features.shape[0], plan.chunk), lambda *a: (0, clamped(*a)))
    if out_rows is None:
        out_shape = features.shape
        out_spec = pl.BlockSpec(column.block_shape, lambda chunk, *_: (0, chunk))
    else:
        tiles = features.shape[1] // plan.chunk // _chunks(plan) * plan.tiles
        out_shape, out_spec = (tiles, out_rows, pixels), tile_block(out_rows)
    return pl.pallas_call(
        functools.partial(kernel, config=plan.config),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=tile_of.shape,
            in_specs=[
                column,
                pl.BlockSpec(monomials.shape, lambda *_: (0, 0)),
                *(tile_block(x.shape[1]) for x in tiled),
            ],
            out_specs=out_spec,
            scratch_shapes=[pltpu.VMEM((1, pixels), jnp.float32)]
            * (2 if out_rows is None else 1),
        ),
        out_shape=shape_like(out_shape, jnp.float32, features),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name=f"rasterize{kernel.__name__}",
    )(tile_of, count, features, varying_like(monomials, features), *tiled)


# ------------------------------------------------------------------------- backend


def _forward(args, plan: Plan, interpret: bool):
    """Rows of some views and their bins to what their tiles hold."""
    table, bins = args
    lists = _chunk_lists(bins.edges, plan)
    features = _features(table, bins, lists, plan)
    channels = table.shape[-1] - 5
    rows = _channel_rows(channels)
    out = _call(_forward_kernel, lists, features, (), rows, plan, interpret)
    return out[:, :channels].reshape(-1, plan.tiles, channels, out.shape[-1])


def _backward(args, plan: Plan, interpret: bool):
    """Gradient of the rows, given the outputs' gradient and their product."""
    table, bins, grad, total = args
    lists = _chunk_lists(bins.edges, plan)
    features, to_table = jax.vjp(lambda t: _features(t, bins, lists, plan), table)
    channels, pixels = grad.shape[2:]
    grad = grad.reshape(-1, channels, pixels)
    padding = ((0, 0), (0, _channel_rows(channels) - channels), (0, 0))
    tiled = (jnp.pad(grad, padding), total.reshape(-1, 1, pixels))
    return to_table(
        _call(_backward_kernel, lists, features, tiled, None, plan, interpret)
    )[0]


def _by_groups(function, args, plan: Plan):
    """Call with as many views at once as SMEM has room for the chunks of."""
    views = args[0].shape[0]
    most = min(MAX_CHUNKS // _chunks(plan), views)
    group = next(size for size in range(most, 0, -1) if views % size == 0)
    if group == views:
        return function(args)

    def cut(x):
        return x.reshape(views // group, group, *x.shape[1:])

    def join(x):
        return x.reshape(views, *x.shape[2:])

    return jax.tree.map(join, lax.map(function, jax.tree.map(cut, args)))


def make_backend(*, interpret: bool = False) -> Backend:
    """The backend of this file.

    Args:
        interpret: run the kernels in Pallas' interpreter, on any device: for tests.
    """

    def forward(splats, bounds, plan: Plan):
        table = splats.rows()
        bins = bin_pairs(table, jnp.stack(tile_boxes(bounds, plan), -1), plan)
        run = functools.partial(_forward, plan=plan, interpret=interpret)
        out = _by_groups(run, (table, bins), plan)
        scenes = jnp.zeros_like(splats.colors[:, 0, 0])
        return from_tiles(out, plan), bins.overflow, (table, bins, out, scenes)

    def backward(saved, grad, plan: Plan):
        table, bins, out, scenes = saved
        grad = to_tiles(grad, plan)
        run = functools.partial(_backward, plan=plan, interpret=interpret)
        rows = _by_groups(run, (table, bins, grad, (grad * out).sum(2)), plan)
        return splats_of_rows(rows, scenes.shape[0])

    return Backend(_plan, forward, backward)
