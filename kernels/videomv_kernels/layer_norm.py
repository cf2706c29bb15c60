"""Layer normalisation beside a shortcut, with a gradient in one pass over both.

The gradient needs two sums along each row and three over all rows: XLA takes five
passes. The kernel that norms begins with the last rows, which a cache has yet. Both are
Pallas for Triton.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from videomv_kernels.devices import over_axes
from videomv_kernels.rasterize.compat import shape_like

SUMMED = "summed"  # what a policy of jax.checkpoint may save
_MAX_WIDTH = 2048
_PIECES = 8  # of a row, at most
_PIECE = 256  # columns of one, at most, where a warp has whole rows
_VECTORS = 1024  # elements of one piece's columns, 8 a thread
_TILE = 256  # likewise in the backward pass; as many rows as that are
_PROGRAMS = 1584  # about: twelve for each processor of an H100, each with own sums
_WARPS = 4
_SUMMING_WARPS = 2  # in the backward pass
_SUMS = 3  # over rows
_MAX_SIZE = 2**31  # places are counted in int32

Rows = Float[Array, "... c"]


def reference(
    x: Rows, scale: Float[Array, "c"], bias: Float[Array, "c"], eps: float
) -> Rows:
    """Of the last axis, float32 inside, in plain JAX for any device and type."""
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    variance = jnp.square(y - mean).mean(-1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + eps)
    ones = (1,) * (x.ndim - 1)
    return (y * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)).astype(x.dtype)


def supports(x: Rows) -> bool:
    """Whether the kernel takes these: 16-bit types, up to 2,048 wide."""
    return (
        x.dtype in (jnp.bfloat16, jnp.float16)
        and x.shape[-1] <= _MAX_WIDTH
        and x.size < _MAX_SIZE
    )


def _summed(x: Rows, offset: Float[Array, "c"]) -> Rows:
    """`x + offset`, in the type of x, as an array of its own."""
    y = x + offset.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    # Or XLA's own kernels for products and norms would take a part of the sum.
    return checkpoint_name(jax.lax.optimization_barrier(y), SUMMED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def layer_norm(
    x: Rows,
    offset: Float[Array, "c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    eps: float,
    axes: tuple[str, ...] = (),
    interpret: bool = False,
) -> tuple[Rows, Rows]:
    """The norm of `x + offset`, in the type of x, and the sum, for the shortcut.

    Both gradients enter the kernel, which adds them up. Differentiable once; the
    backward pass computes everything anew from the sum and the weights, which are all
    that is saved.

    Args:
        x: see `supports`.
        offset: such as the bias of the linear layer that x is the product of.
        scale, bias: of the norm, float32.
        eps: added to the variance.
        axes: of the context's mesh, which split x's first axis.
        interpret: run the kernel in Pallas' interpreter, on any device: for tests. On a
            device without CUDA it is plain JAX otherwise.
    """
    return _forward(x, offset, scale, bias, eps, axes, interpret)[0]


def _forward(x, offset, scale, bias, eps, axes, interpret):
    y = _summed(x, offset)
    kernel = functools.partial(_normed, eps=eps, interpret=interpret)
    if not interpret:
        plain = functools.partial(reference, eps=eps)
        kernel = functools.partial(
            jax.lax.platform_dependent, cuda=kernel, default=plain
        )
    normed = over_axes(kernel, axes, y, shared=(scale, bias))
    return (normed, y), (y, offset, scale, bias)


def _backward(eps, axes, interpret, saved, grads):
    y, *weights = saved
    run = functools.partial(_on_one_device, eps=eps, interpret=interpret)
    dx, *sums = over_axes(run, axes, y, *grads, shared=weights[1:])
    return dx, *(s.sum(0).astype(w.dtype) for s, w in zip(sums, weights, strict=True))


layer_norm.defvjp(_forward, _backward)


def _on_one_device(x, grad, shortcut, scale, bias, eps, interpret):
    arguments = x, scale, bias, grad, shortcut
    kernel = functools.partial(_by_kernel, eps=eps)
    if interpret:
        dx, *sums = kernel(*arguments, interpret=True)
    else:
        plain = functools.partial(_plainly, eps=eps)
        dx, *sums = jax.lax.platform_dependent(*arguments, cuda=kernel, default=plain)
    return dx, *(s[None] for s in sums)


def _plainly(x, scale, bias, grad, shortcut, eps):
    _, pull = jax.vjp(functools.partial(reference, eps=eps), x, scale, bias)
    dx, *others = pull(grad)
    dx = dx + shortcut
    return dx, dx.sum(range(dx.ndim - 1), dtype=jnp.float32), *others


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _normed(x, scale, bias, eps, interpret: bool):
    width = x.shape[-1]
    rows, piece = x.size // width, min(_piece(width), _PIECE)
    high = max(1, _VECTORS // piece)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    y = pl.pallas_call(
        functools.partial(
            _forward_kernel, rows=rows, width=width, tile=(high, piece), eps=eps
        ),
        grid=(pl.cdiv(rows, high),),
        in_specs=[anywhere] * 3,
        out_specs=anywhere,
        out_shape=shape_like((rows * width,), x.dtype, x),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="layer_norm_forward",
    )(x.reshape(-1), scale, bias)
    return y.reshape(x.shape)


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _by_kernel(x, scale, bias, grad, shortcut, eps, interpret: bool = False):
    """The gradients for x, for the offset, for scale and for bias."""
    width = x.shape[-1]
    rows, piece = x.size // width, _piece(width)
    high = max(1, _TILE // piece)
    tiles = pl.cdiv(rows, high * _PROGRAMS)
    programs = pl.cdiv(rows, high * tiles)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    dx, sums = pl.pallas_call(
        functools.partial(
            _kernel, rows=rows, width=width, tile=(high, piece), tiles=tiles, eps=eps
        ),
        grid=(programs,),
        in_specs=[anywhere] * 4,
        out_specs=[anywhere] * 2,
        out_shape=[
            shape_like((rows * width,), x.dtype, x),
            shape_like((programs * _SUMS * width,), jnp.float32, x),
        ],
        compiler_params=triton.CompilerParams(num_warps=_SUMMING_WARPS, num_stages=1),
        interpret=interpret,
        name="layer_norm_backward",
    )(*[a.reshape(-1) for a in (x, scale, grad, shortcut)])
    return dx.reshape(x.shape), *sums.reshape(programs, _SUMS, width).sum(0)


def _piece(width: int) -> int:
    """Columns that a program treats as one array: a power of two, few for a row.

    A row of 5 times 256 is five such arrays: padded to 2,048 it would leave a third of
    the threads without work.
    """
    whole = width & -width
    return whole if width <= _PIECES * whole else pl.next_power_of_2(width)


def _forward_kernel(x, scale, bias, y, *, rows, width, tile, eps):
    part = pl.num_programs(0) - 1 - pl.program_id(0)
    row = part * tile[0] + jnp.arange(tile[0], dtype=jnp.int32)[:, None]
    exists = row < rows if rows % tile[0] else None
    pieces = []
    for start in range(0, width, tile[1]):
        column = start + jnp.arange(tile[1], dtype=jnp.int32)[None]
        masks = [exists, column < width if start + tile[1] > width else None]
        masks = [jnp.broadcast_to(m, tile) for m in masks if m is not None]
        mask = functools.reduce(jnp.logical_and, masks) if masks else None
        pieces.append((row * width + column, jnp.broadcast_to(column, tile), mask))

    def load(ref, place, mask):
        other = None if mask is None else 0.0
        return triton.load(ref.at[place], mask=mask, other=other).astype(jnp.float32)

    def mean(values):
        return sum(jnp.sum(v, 1, keepdims=True) for v in values) * (1 / width)

    values = [load(x, place, mask) for place, _, mask in pieces]
    middle = mean(values)
    values = [v - middle for v in values]
    masked = zip(values, pieces, strict=True)
    values = [v if m is None else jnp.where(m, v, 0.0) for v, (_, _, m) in masked]
    inverse = jax.lax.rsqrt(mean([v * v for v in values]) + eps)
    for v, (place, column, mask) in zip(values, pieces, strict=True):
        # Each thread loads its own: from a cache, without waiting for others.
        result = v * inverse * load(scale, column, mask) + load(bias, column, mask)
        triton.store(y.at[place], result.astype(y.dtype), mask=mask)


def _kernel(x, scale, grad, shortcut, dx, sums, *, rows, width, tile, tiles, eps):
    high, piece = tile
    part = pl.program_id(0)
    columns = [
        start + jnp.arange(piece, dtype=jnp.int32) for start in range(0, width, piece)
    ]
    padded = width % piece != 0
    inside = [column < width for column in columns] if padded else None
    masks = inside or [None] * len(columns)

    def other(mask):
        return None if mask is None else 0.0

    def mean(pieces):
        return sum(jnp.sum(one, 1, keepdims=True) for one in pieces) * (1 / width)

    def one(i, totals):
        row = (part * tiles + i) * high + jnp.arange(high, dtype=jnp.int32)
        places = [row[:, None] * width + column[None] for column in columns]
        exists = jnp.broadcast_to((row < rows)[:, None], tile)
        real = [exists if mask is None else exists & mask[None] for mask in masks]

        def load(ref):
            return [
                triton.load(ref.at[place], mask=mask, other=0.0).astype(jnp.float32)
                for place, mask in zip(places, real, strict=True)
            ]

        y, back, beside = load(x), load(grad), load(shortcut)
        middle = mean(y)
        y = [a - middle for a in y]
        if inside:
            y = [jnp.where(m[None], a, 0.0) for m, a in zip(inside, y, strict=True)]
        inverse = jax.lax.rsqrt(mean([a * a for a in y]) + eps)
        y = [a * inverse for a in y]
        # Here, not before the loop: they would take registers from the sums.
        factors = [
            triton.load(scale.at[column], mask=mask, other=other(mask))[None]
            for column, mask in zip(columns, masks, strict=True)
        ]
        scaled = [a * b.astype(jnp.float32) for a, b in zip(back, factors, strict=True)]
        first = mean(scaled)
        second = mean([a * b for a, b in zip(scaled, y, strict=True)])
        results = [
            inverse * (a - first - b * second) + c
            for a, b, c in zip(scaled, y, beside, strict=True)
        ]
        for result, place, mask in zip(results, places, real, strict=True):
            triton.store(dx.at[place], result.astype(dx.dtype), mask=mask)
        products = [a * b for a, b in zip(back, y, strict=True)]
        terms = results + products + back
        return [t + a for t, a in zip(totals, terms, strict=True)]

    none = jnp.zeros(tile, jnp.float32)
    totals = jax.lax.fori_loop(0, tiles, one, [none] * (_SUMS * len(columns)))
    for i, total in enumerate(totals):
        which, at = divmod(i, len(columns))
        place = (part * _SUMS + which) * width + columns[at]
        triton.store(sums.at[place], jnp.sum(total, 0), mask=masks[at])
