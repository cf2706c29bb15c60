"""The kernels, Pallas for Triton: a program has one pixel and one head of one clip."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from videomv_kernels.rasterize.compat import shape_like

_MIN_TILE = 16  # what the tensor cores take
_FORWARD_WARPS = 2
_BACKWARD_WARPS = 1
_MASKED = -1e30


class _Places:
    """Where this program's rows lie in `[b, f, l, 3, c]` and `[b, f, l, c]`."""

    def __init__(self, shape, heads: int):
        _, views, length, _, c = shape
        head, pixel = (pl.program_id(i) for i in range(2))
        # The last clip first: it was written last, so a cache has most of it yet.
        clip = pl.num_programs(2) - 1 - pl.program_id(2)
        width = c // heads
        self.tile = max(_MIN_TILE, pl.next_power_of_2(views))
        self.scale = width**-0.5
        view = jnp.arange(self.tile, dtype=jnp.int32)
        self.real = view < views
        self.mask = jnp.broadcast_to(self.real[:, None], (self.tile, width))
        self._token = (((clip * views + view) * length) + pixel)[:, None]
        self._channel = head * width + jnp.arange(width, dtype=jnp.int32)[None]
        self._c = c

    def joined(self, part: int):
        """Of queries, keys or values."""
        return self._token * (3 * self._c) + (part * self._c) + self._channel

    def plain(self):
        """Of the result."""
        return self._token * self._c + self._channel


def _load(ref, place, mask):
    return triton.load(ref.at[place], mask=mask, other=0.0)


def _weights(q, k, places: _Places):
    """Unnormalised attention weights, float32, and their sums."""
    logits = triton.dot(q, k, trans_b=True).astype(jnp.float32)
    logits = logits * (places.scale * math.log2(math.e))
    logits = jnp.where(places.real[None], logits, _MASKED)
    weights = jnp.exp2(logits - jnp.max(logits, 1, keepdims=True))
    return weights, jnp.sum(weights, 1, keepdims=True)


def _forward_kernel(qkv, out, *, shape, heads: int):
    places = _Places(shape, heads)
    q, k, v = (_load(qkv, places.joined(i), places.mask) for i in range(3))
    weights, total = _weights(q, k, places)
    y = triton.dot(weights.astype(v.dtype), v).astype(jnp.float32) / total
    triton.store(out.at[places.plain()], y.astype(out.dtype), mask=places.mask)


def _backward_kernel(qkv, grad, out, *, shape, heads: int):
    places = _Places(shape, heads)
    q, k, v = (_load(qkv, places.joined(i), places.mask) for i in range(3))
    dy = _load(grad, places.plain(), places.mask)
    weights, total = _weights(q, k, places)
    weights = weights / total
    # Rows beyond the views have dy = 0, and so no part in any of the sums.
    dweights = triton.dot(dy, v, trans_b=True).astype(jnp.float32)
    mean = jnp.sum(weights * dweights, 1, keepdims=True)
    dlogits = (weights * (dweights - mean) * places.scale).astype(q.dtype)
    gradients = (
        triton.dot(dlogits, k),
        triton.dot(dlogits, q, trans_a=True),
        triton.dot(weights.astype(q.dtype), dy, trans_a=True),
    )
    for i, gradient in enumerate(gradients):
        place = places.joined(i)
        triton.store(out.at[place], gradient.astype(out.dtype), mask=places.mask)


# Under jit, so that what is asked for many times is traced and lowered once.
_once = functools.partial(jax.jit, static_argnames=("heads", "interpret"))


@_once
def forward(qkv: jax.Array, heads: int, *, interpret: bool) -> jax.Array:
    """See `view_attention`."""
    b, f, length, _, c = qkv.shape
    shape = (b, f, length, c)
    how = dict(warps=_FORWARD_WARPS, interpret=interpret)
    return _call(_forward_kernel, "forward", qkv, heads, [qkv], shape, **how)


@_once
def backward(qkv, grad, heads: int, *, interpret: bool) -> jax.Array:
    """The gradient for qkv, from that for the result."""
    inputs, how = [qkv, grad], dict(warps=_BACKWARD_WARPS, interpret=interpret)
    return _call(_backward_kernel, "backward", qkv, heads, inputs, qkv.shape, **how)


def _call(kernel, name: str, qkv, heads: int, inputs, shape, warps, interpret):
    b, _, length, _, _ = qkv.shape
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    flat = pl.pallas_call(
        functools.partial(kernel, shape=qkv.shape, heads=heads),
        grid=(heads, length, b),  # neighbours in memory run side by side
        in_specs=[anywhere] * len(inputs),
        out_specs=anywhere,
        out_shape=shape_like((math.prod(shape),), qkv.dtype, qkv),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=f"view_attention_{name}",
    )(*[x.reshape(-1) for x in inputs])
    return flat.reshape(shape)
