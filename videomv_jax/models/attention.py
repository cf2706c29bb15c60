"""Attention, dispatched to the fastest form of the backend by shape and type."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from videomv_kernels import view_attention

from videomv_jax import compat, sharding
from videomv_jax.models import layers

# Below this many queries and keys XLA's batched matmuls are as fast as cuDNN's flash
# kernel (docs/performance.md).
_FLASH_FROM = 64

ATTENDED = "attended"
"""What attention outputs are called for policies of rematerialisation."""


def attention(
    q: Float[Array, "*b l h d"],
    k: Float[Array, "*b m h d"],
    v: Float[Array, "*b m h d"],
    mask: Bool[Array, "*#b #h l m"] | None = None,
) -> Float[Array, "*b l h d"]:
    """Softmax attention with scale d^-1/2, softmax in float32.

    Args:
        q, k, v: queries, keys and values; heads before the feature axis.
        mask: True where a query may see a key.

    Returns:
        The attended values, in the type of q.
    """
    flash = (
        compat.has_cuda()
        and mask is None
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128
        and q.shape[-3] % 2 == 0
        and max(q.shape[-3], k.shape[-3]) >= _FLASH_FROM
    )
    if not flash:
        return _plain(q, k, v, mask)
    default = functools.partial(_plain, mask=None)
    return jax.lax.platform_dependent(q, k, v, cuda=_cudnn, default=default)


def over_mesh(
    q: Float[Array, "b *l h d"],
    k: Float[Array, "b *m h d"],
    v: Float[Array, "b *m h d"],
) -> Float[Array, "b *l h d"]:
    """`attention` where the mesh of the context splits clips, views and heads.

    Args:
        q: queries `[b, f, l, h, d]` of views apart, or `[b, f l, h, d]` of all of a
            clip's.
        k, v: of each view, or `[b, m, h, d]` for all of a clip's.
    """
    shared = q.ndim == 4
    if compat.has_cuda():
        own = "batch", "views", *[None] * (q.ndim - 4), "heads", None
        axes = ("batch", None, "heads", None) if shared else own
        inputs = (q, own), (k, axes), (v, axes)
        return sharding.over_devices(attention, *inputs, result=own)
    if shared:
        return sharding.over_views(attention, q, shared=(k, v))
    return sharding.over_views(attention, q, k, v)


def _cudnn(q, k, v):
    batch = q.shape[:-3]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    y = _cudnn_odd(q, k, v) if k.shape[1] % 2 else _flash(q, k, v)
    return y.reshape(*batch, *y.shape[1:])


_flash = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


# cuDNN has no gradient for an odd number of keys, such as a text's 77, unless they are
# padded and it is told how many there are.
@jax.custom_vjp
def _cudnn_odd(q, k, v):
    return _flash(q, k, v)


def _padded(q, k, v):
    count = k.shape[1]
    k, v = (jnp.pad(x, ((0, 0), (0, -count % 8), (0, 0), (0, 0))) for x in (k, v))
    lengths = jnp.full(len(k), count, jnp.int32)
    return _flash(q, k, v, key_value_seq_lengths=lengths)


_cudnn_odd.defvjp(
    lambda q, k, v: jax.vjp(_padded, q, k, v), lambda pull, grad: pull(grad)
)


def _plain(q, k, v, mask):
    # Heads before tokens and the division last: up to four times as fast on a CPU as
    # one einsum and a softmax.
    q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
    logits = view_attention.float32_logits(q * q.shape[-1] ** -0.5, k)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    y = (weights.astype(v.dtype) @ v).astype(jnp.float32)
    y = y / weights.sum(-1, keepdims=True)
    return y.astype(v.dtype).swapaxes(-3, -2)


class SelfAttention(nnx.Module):
    """Multi-head self attention over the tokens of `[*b, l, d]`, without a norm.

    Of two leading axes, a mesh with `view` splits the second.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        bias: bool,
        inner: int | None = None,
        axes: layers.Axes = ("embed", "heads"),
        variance: float = 1.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Make the layers.

        Args:
            features: width d.
            heads: how many.
            inner: width of all heads together, None for `features`.
            axes: logical names of the features and of all heads together.
            bias: whether queries, keys and values have one; the output always has.
            variance: initial variance of the output, see `layers.linear`.
            dtype: compute type.
        """
        self.heads = heads
        self.qkv = layers.linears(
            features,
            3,
            inner or features,
            axes=axes,
            use_bias=bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.out = layers.linear(
            inner or features,
            features,
            axes=axes[::-1],
            variance=variance,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "*b l d"],
        mask: Bool[Array, "*#b #h l l"] | None = None,
        *,
        onto: Float[Array, "*b l d"] | None = None,
    ) -> Float[Array, "*b l d"]:
        """Args: tokens; True where one may see another; what to add to the result."""
        return self.out(self.attended(x, mask), onto)

    def attended(
        self, x: Float[Array, "*b l d"], mask: Bool[Array, "*#b #h l l"] | None = None
    ) -> Float[Array, "*b l i"]:
        """What the output layer reads."""
        if compat.has_cuda() and mask is None and x.shape[-2] >= _FLASH_FROM:
            parts = self.qkv.parts(x)  # cuDNN would have slices of one product copied
        else:
            qkv = self.qkv(x)
            parts = [qkv[..., i, :] for i in range(3)]
        heads = (*x.shape[:-1], self.heads, -1)
        q, k, v = (part.reshape(heads) for part in parts)
        if x.ndim == 4 and mask is None:
            y = over_mesh(q, k, v)
        else:
            y = attention(q, k, v, mask)
        return checkpoint_name(y.reshape(*x.shape[:-1], -1), ATTENDED)


class ViewAttention(SelfAttention):
    """Multi-head self attention among the views of `[b, f, l, d]`, pixel by pixel.

    A mesh with `view` splits the pixels l.
    """

    def attended(
        self, x: Float[Array, "b f l d"], mask: None = None
    ) -> Float[Array, "b f l i"]:
        """What the output layer reads."""
        qkv = self.qkv(x)
        if compat.has_cuda():
            split = "batch", None, "pixels", None, "heads", None
            heads = qkv.reshape(*qkv.shape[:-1], self.heads, -1)
            result = "batch", None, "pixels", "heads", None
            y = sharding.over_devices(_among_views, (heads, split), result=result)
            y = y.reshape(*x.shape[:-1], -1)
        else:
            plain = functools.partial(view_attention.reference, heads=self.heads)
            y = sharding.over_views(plain, qkv, axis=2)
        return checkpoint_name(y, ATTENDED)


def _among_views(qkv: Float[Array, "b f l 3 h d"]) -> Float[Array, "b f l h d"]:
    *_, heads, width = qkv.shape
    joined = qkv.reshape(*qkv.shape[:-2], -1)
    plain = functools.partial(view_attention.reference, heads=heads)
    if view_attention.supports(joined, heads):
        kernel = functools.partial(view_attention.view_attention, heads=heads)
        y = jax.lax.platform_dependent(joined, cuda=kernel, default=plain)
    else:
        y = plain(joined)
    return y.reshape(*y.shape[:-1], heads, width)
