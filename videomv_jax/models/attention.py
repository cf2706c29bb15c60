"""One attention function, dispatched to the fastest form of the backend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomv_jax import compat

# Below this many keys XLA's batched matmuls beat cuDNN's flash kernel (measured on
# one H200: equal at 64, faster from 256, and 5 times faster at 1,024).
_FLASH_MIN_KEYS = 256


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
    batch = q.shape[:-3]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-3:])
    out = _dispatch(q, k, v, mask)
    return out.reshape(*batch, *out.shape[1:])


def _dispatch(q, k, v, mask):
    flash = (
        compat.has_cuda()
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128
        and q.shape[1] % 2 == 0
        and k.shape[1] % 2 == 0
        and k.shape[1] >= _FLASH_MIN_KEYS
    )

    def xla(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")

    def cudnn(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")

    if not flash:
        return xla(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=cudnn, default=xla)
