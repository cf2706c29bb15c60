"""A gated unit and the linear layer behind it, with a gradient in one pass over both.

The gradient of `value gelu(gate)` for its inputs, the sums of it that are the bias's,
and the product once more, which the layer's own gradient reads: XLA reads the inputs
for each of them, and writes what it sums transposed. The kernel is Pallas for Triton.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from videomv_kernels import gated_linear
from videomv_kernels.devices import over_axes
from videomv_kernels.gated_linear.api import gated, linear
from videomv_kernels.rasterize.compat import shape_like, varying_like

_COLUMNS, _ROWS = 128, 16  # of a tile
_TILES = 16  # of a program, below each other
_WARPS = 4
_MAX_SIZE = 2**31  # places are counted in int32

Joined = Float[Array, "... 2 w"]


def reference(
    x: Float[Array, "... i"],
    wide: Float[Array, "i 2 w"],
    bias: Float[Array, "2 w"],
    narrow: Float[Array, "w o"],
) -> Float[Array, "... o"]:
    """What `gated_product` computes, in plain JAX for any device and type."""
    return linear(gated_linear.reference(x, wide, bias), narrow)


def supports(y: Joined) -> bool:
    """Whether the kernel takes these: 16-bit types, a multiple of 128 wide."""
    return (
        y.dtype in (jnp.bfloat16, jnp.float16)
        and y.shape[-1] % _COLUMNS == 0
        and y.size < _MAX_SIZE
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def gated_product(
    x: Float[Array, "... i"],
    wide: Float[Array, "i 2 w"],
    bias: Float[Array, "2 w"],
    narrow: Float[Array, "w o"],
    axes: tuple[str, ...] = (),
    hopper: bool = False,
    recomputed: bool = False,
    interpret: bool = False,
) -> Float[Array, "... o"]:
    """`(value gelu(gate)) narrow`, with `value, gate = x wide + bias`.

    Differentiable once. Of what is computed only `x wide` is saved for the backward
    pass. GELU is the erf form, in float32; erf there by Abramowitz and Stegun 7.1.26,
    exact to 1.5e-7. Where there is no gradient, or `x wide` need not be written for
    it, Hopper GPUs make `value gelu(gate)` in one kernel, see `gated_linear`.

    Args:
        x: of all tokens.
        wide, bias: of the layer that gives values and gates.
        narrow: of the linear layer behind them.
        axes: of the context's mesh, which split x's first axis.
        hopper: whether programs are for such GPUs.
        recomputed: whether `jax.checkpoint` has `x wide` computed again, not saved.
        interpret: run the kernel in Pallas' interpreter, on any device: for tests. On a
            device without CUDA it is plain JAX otherwise.
    """
    if not (hopper and _fits(x, wide, bias, axes)):
        return reference(x, wide, bias, narrow)
    return linear(over_axes(_on_hopper, axes, x, shared=(wide, bias)), narrow)


def _fits(x, wide, bias, axes) -> bool:
    """Whether `gated_linear` takes a device's part."""
    sizes = jax.sharding.get_abstract_mesh().shape
    count = len(x) // math.prod(sizes[axis] for axis in axes)
    part: Any = jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
    return gated_linear.supports(part, wide, bias)


def _on_hopper(x, wide, bias):
    def kernel(*arguments):  # which Mosaic has vary over no axes of a mesh
        return varying_like(gated_linear.gated_linear(*arguments), x)

    plain = gated_linear.reference
    return jax.lax.platform_dependent(x, wide, bias, cuda=kernel, default=plain)


def _forward(x, wide, bias, narrow, axes, hopper, recomputed, interpret):
    # Or XLA's own kernels would take a part of what follows.
    y = jax.lax.optimization_barrier(linear(x, wide))
    if hopper and recomputed and _fits(x, wide, bias, axes):
        product = over_axes(_on_hopper, axes, x, shared=(wide, bias))
    else:
        product = gated(y, bias)
    return linear(product, narrow), (x, wide, y, bias, narrow)


def _backward(axes, hopper, recomputed, interpret, saved, grad):
    x, wide, y, bias, narrow = saved
    grad_product = jax.lax.dot_general(
        grad, narrow, (((grad.ndim - 1,), (1,)), ((), ()))
    )
    run = functools.partial(_on_one_device, interpret=interpret)
    product, dy, dbias = over_axes(run, axes, y, grad_product, shared=(bias,))
    rows = tuple(range(grad.ndim - 1))
    both = ((rows, rows), ((), ()))
    dx = jax.lax.dot_general(dy, wide, (((dy.ndim - 2, dy.ndim - 1), (1, 2)), ((), ())))
    dwide = jax.lax.dot_general(x, dy, both)
    dnarrow = jax.lax.dot_general(product, grad, both)
    return dx, dwide, dbias.sum(0).astype(bias.dtype), dnarrow


gated_product.defvjp(_forward, _backward)


def _on_one_device(y, grad, bias, interpret):
    if not (interpret or supports(y)):
        product, dy, dbias = _plainly(y, bias, grad)
        return product, dy, dbias[None]
    flat = y.reshape(-1, *y.shape[-2:]), bias, grad.reshape(-1, grad.shape[-1])
    if interpret:
        product, dy, dbias = _by_kernel(*flat, interpret=True)
    else:
        product, dy, dbias = jax.lax.platform_dependent(
            *flat, cuda=_by_kernel, default=_plainly
        )
    return product.reshape(grad.shape), dy.reshape(y.shape), dbias[None]


def _plainly(y, bias, grad):
    product, pull = jax.vjp(gated, y, bias)
    dy, dbias = pull(grad)
    return product, dy, dbias.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="interpret")
def _by_kernel(y, bias, grad, interpret: bool = False):
    """The product, and the gradients for y and the bias from the product's."""
    rows, _, wide = y.shape
    programs = -(-rows // (_ROWS * _TILES))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    product, dy, sums = pl.pallas_call(
        functools.partial(_kernel, rows=rows, wide=wide),
        grid=(wide // _COLUMNS, programs),  # neighbours in memory run side by side
        in_specs=[anywhere] * 3,
        out_specs=[anywhere] * 3,
        out_shape=[
            shape_like((rows * wide,), y.dtype, y),
            shape_like((rows * 2 * wide,), y.dtype, y),
            shape_like((programs * 2 * wide,), jnp.float32, y),
        ],
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="gated_product_backward",
    )(*[x.reshape(-1) for x in (y, bias, grad)])
    dbias = sums.reshape(programs, 2, wide).sum(0)
    return product.reshape(rows, wide), dy.reshape(y.shape), dbias


def _kernel(y, bias, grad, product, dy, sums, *, rows: int, wide: int):
    column = pl.program_id(0) * _COLUMNS + jnp.arange(_COLUMNS, dtype=jnp.int32)
    part = pl.program_id(1)
    bias_value, bias_gate = (
        triton.load(bias.at[i * wide + column]).astype(jnp.float32)[None]
        for i in range(2)
    )
    none = jnp.zeros((_ROWS, _COLUMNS), jnp.float32)

    def tile(i, sums):
        row = (part * _TILES + i) * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)
        real = jnp.broadcast_to((row < rows)[:, None], none.shape)
        narrow = row[:, None] * wide + column[None]
        value_at = row[:, None] * (2 * wide) + column[None]
        gate_at = value_at + wide

        def load(ref, place):
            return triton.load(ref.at[place], mask=real, other=0.0).astype(jnp.float32)

        def store(ref, place, x):
            triton.store(ref.at[place], x.astype(ref.dtype), mask=real)

        value = load(y, value_at) + bias_value
        gate = load(y, gate_at) + bias_gate
        back = load(grad, narrow)
        bell = jnp.exp(gate * gate * -0.5)
        share = _normal_cdf(gate, bell)
        gelu = gate * share
        dvalue = back * gelu
        dgate = back * value * (share + gate * bell * (2 * math.pi) ** -0.5)
        store(product, narrow, value * gelu)
        store(dy, value_at, dvalue)
        store(dy, gate_at, dgate)
        return sums[0] + dvalue, sums[1] + dgate  # rows beyond the last have back = 0

    totals = jax.lax.fori_loop(0, _TILES, tile, (none, none))
    for i, total in enumerate(totals):
        triton.store(sums.at[(part * 2 + i) * wide + column], jnp.sum(total, 0))


def _normal_cdf(x, bell):
    """The normal distribution's, given `exp(-x^2 / 2)`."""
    t = 1 / (1 + 0.3275911 * 0.5**0.5 * jnp.abs(x))
    tail = 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = tail * t + coefficient
    tail = 0.5 * tail * t * bell
    return jnp.where(x > 0, 1 - tail, tail)
