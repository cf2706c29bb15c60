"""Norms of every network, float32 inside."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from videomv_kernels import group_norm, layer_norm

from videomv_jax import compat, sharding

SUMMED = layer_norm.SUMMED
"""What results of convolutions, and of linear layers with no more outputs than inputs,
are called for policies of rematerialisation: with bias and residual, as the next layer
reads them."""
NORMED = group_norm.STATISTICS  # name of what the backward pass need not sum again


class GroupNorm(nnx.Module):
    """Group normalisation of `[*n, ..., c]` over everything but n and the group.

    Statistics are float32: means per channel, then per group. Which axes share them is
    decided by the call: of `[b, f, h, w, c]`, `norm(x, 2)` is per view, `norm(x)` per
    clip. On a GPU `videomv_kernels.group_norm` sums 16-bit types, unless a mesh splits
    more than the batch.
    """

    def __init__(self, features: int, groups: int = 32, *, eps: float, dtype):
        self.groups, self.eps, self.dtype = groups, eps, dtype
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32), axes=("norm",))

    def __call__(
        self,
        x: Float[Array, "..."],
        batch: int = 1,
        *,
        offset: Float[Array, "..."] | None = None,
        silu: bool = False,
    ) -> Float[Array, "..."]:
        """Normalise.

        Args:
            x: anything with channels last.
            batch: how many leading axes are samples of their own.
            offset: `[*n, c]`, or `[c]` for all samples: what to add to x before.
            silu: whether an activation follows.
        """
        if self._has_kernel(x, batch):
            f = functools.partial(self._on_gpu, batch=batch, silu=silu)
            split = ("batch", *[None] * (x.ndim - 1))
            inputs = [(x, split), *((p[...], (None,)) for p in (self.scale, self.bias))]
            if offset is not None:
                whole = (None,) if offset.ndim == 1 else split
                inputs.append((offset, whole[: offset.ndim]))
            return sharding.over_devices(f, *inputs, result=split)
        if offset is not None:
            x = x + jnp.expand_dims(offset, range(offset.ndim - 1, x.ndim - 1))
        y = x.astype(jnp.float32)
        if x.dtype == jnp.float32:
            (mean,) = self._means(batch, y)
            (variance,) = self._means(batch, jnp.square(y - mean))
        else:  # one pass: x has fewer digits than the difference of squares loses
            mean, square = self._means(batch, y, jnp.square(y))
            variance = square - jnp.square(mean)
        ones = (1,) * (x.ndim - 1)
        scale, bias = (p[...].reshape(*ones, -1) for p in (self.scale, self.bias))
        scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.eps) * scale
        y = y * scale + (bias - mean * scale)
        return (jax.nn.silu(y) if silu else y).astype(self.dtype)

    def _has_kernel(self, x: Array, batch: int) -> bool:
        return (
            compat.has_cuda()
            and set(sharding.ambient_axes()) <= set(sharding.BATCH_AXES)
            and x.dtype == self.dtype
            and group_norm.supports(_rows(x, batch), self.groups)
        )

    def _on_gpu(self, x, scale, bias, *offset, batch: int, silu: bool):
        rows = _rows(x, batch)
        offset = [o.reshape(-1, x.shape[-1]) for o in offset]
        kernel, plain = (
            functools.partial(f, groups=self.groups, eps=self.eps, silu=silu)
            for f in (group_norm.group_norm, group_norm.reference)
        )
        y = jax.lax.platform_dependent(
            rows, scale, bias, *offset, cuda=kernel, default=plain
        )
        return y.reshape(x.shape)

    def _means(self, batch: int, *xs: Array) -> list[Array]:
        """Means of the groups of each of xs, for each channel.

        The reduced axes are not merged: one of them may be sharded.
        """
        samples, c = xs[0].shape[:batch], xs[0].shape[-1]
        axes = tuple(range(batch, xs[0].ndim - 1))
        sums = jnp.stack([x.sum(axes) for x in xs])
        groups = (self.groups, c // self.groups)
        sums = sums.reshape(len(xs), *samples, *groups).sum(-1)
        means = sums / math.prod((*xs[0].shape[batch:-1], groups[1]))

        def spread(mean):
            mean = jnp.broadcast_to(mean[..., None], (*samples, *groups))
            return mean.reshape(*samples, *(1,) * len(axes), c)

        return [spread(mean) for mean in means]


def _rows(x: Array, batch: int) -> Array:
    """`[*n, ..., c]` as `[n, r, c]`."""
    return x.reshape(math.prod(x.shape[:batch]), -1, x.shape[-1])


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, float32 inside."""

    def __init__(self, features: int, *, eps: float = 1e-5, dtype: DTypeLike):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32), axes=("norm",))

    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        x, weights = x.astype(jnp.float32), (self.scale[...], self.bias[...])
        return layer_norm.reference(x, *weights, self.eps).astype(self.dtype)

    def beside(
        self, x: Float[Array, "... c"], offset: Float[Array, "c"]
    ) -> tuple[Float[Array, "... c"], Float[Array, "... c"]]:
        """The norm of `x + offset`, and the sum, for a shortcut.

        On a GPU one kernel adds up the gradients, and sums them for the offset's.
        """
        axes = sharding.batch_axes(len(x))
        fits = x.dtype == self.dtype and layer_norm.supports(x)
        if compat.has_cuda() and axes is not None and fits:
            weights = self.scale[...], self.bias[...]
            return layer_norm.layer_norm(x, offset, *weights, self.eps, axes)
        offset = offset.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        x = checkpoint_name(x + offset, SUMMED)
        return self(x), x
