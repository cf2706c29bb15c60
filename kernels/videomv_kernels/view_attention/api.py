"""Attention over views: the specification, the kernels behind it and their gradient."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_kernels.view_attention import triton_kernels

_MAX_VIEWS = 64
_HEAD_WIDTHS = (16, 32, 64, 128)
_MAX_SIZE = 2**31  # places are counted in int32
_MAX_GRID = 2**16  # CUDA's, for pixels and for clips

Joined = Float[Array, "b f l 3 c"]


def reference(qkv: Joined, heads: int) -> Float[Array, "b f l c"]:
    """What `view_attention` computes, in plain JAX for any device and type.

    Scale d^-1/2, softmax in float32. Args as `view_attention`.
    """
    b, f, length, _, c = qkv.shape
    # Heads before views and the division last: fastest on a CPU.
    parts = qkv.reshape(b, f, length, 3, heads, c // heads).transpose(3, 0, 2, 4, 1, 5)
    q, k, v = parts
    logits = float32_logits(q * q.shape[-1] ** -0.5, k)
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    y = (weights.astype(v.dtype) @ v).astype(jnp.float32)
    y = (y / weights.sum(-1, keepdims=True)).astype(v.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, f, length, c)


@jax.custom_jvp
def float32_logits(q, k):
    """`q k^T` of `[..., l, d]`, float32 sums of products in the inputs' type.

    JAX's own derivative multiplies the float32 cotangent with bfloat16 inputs: slow,
    and an error under strict promotion.
    """
    return jnp.matmul(q, k.mT, preferred_element_type=jnp.float32)


@float32_logits.defjvp
def _logits_jvp(primals, tangents):
    (q, k), (dq, dk) = primals, tangents
    return float32_logits(q, k), (dq @ k.mT + q @ dk.mT).astype(jnp.float32)


def supports(qkv: Joined, heads: int) -> bool:
    """Whether the kernels take these: 16-bit types, up to 64 views, usual heads."""
    clips, views, length, _, channels = qkv.shape
    return (
        qkv.dtype in (jnp.bfloat16, jnp.float16)
        and views <= _MAX_VIEWS
        and channels in [heads * width for width in _HEAD_WIDTHS]
        and qkv.size < _MAX_SIZE
        and max(clips, length) < _MAX_GRID
    )


def view_attention(
    qkv: Joined, heads: int, *, interpret: bool = False
) -> Float[Array, "b f l c"]:
    """Softmax attention among the f views of each pixel, scale d^-1/2.

    The kernels read queries, keys and values where the projection wrote them and
    write what the next layer reads: nothing is transposed. One program attends for
    one pixel and head. Differentiable once; the backward pass computes the weights
    anew from the inputs, which are all that is saved.

    Args:
        qkv: queries, keys and values of all heads, joined as one projection gives
            them.
        heads: how many heads c holds.
        interpret: run the kernels in Pallas' interpreter, on any device: for tests.

    Returns:
        The attended values, in the type of qkv.

    Raises:
        ValueError: inputs that `supports` refuses.
    """
    if not supports(qkv, heads):
        raise ValueError(
            f"qkv: {qkv.dtype} {qkv.shape} with {heads} heads; want bfloat16 or "
            f"float16 [b, f, l, 3, c] with f up to {_MAX_VIEWS} and "
            f"{_HEAD_WIDTHS} channels a head"
        )
    return _attend(qkv, heads, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(qkv, heads: int, interpret: bool):
    return triton_kernels.forward(qkv, heads, interpret=interpret)


def _attend_forward(qkv, heads, interpret):
    return _attend(qkv, heads, interpret), qkv


def _attend_backward(heads, interpret, qkv, grad):
    return (triton_kernels.backward(qkv, grad, heads, interpret=interpret),)


_attend.defvjp(_attend_forward, _attend_backward)
