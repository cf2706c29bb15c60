"""Blocks of the multi-view UNet: residual, spatial and temporal transformer.

All of them map `[b, f, h, w, c]` to the same axes. Spatial layers see one view at a
time, temporal ones all views of a clip; the last layer of each branch starts at zero,
so that a new block is the identity (or its skip projection).

Source: the text-to-video UNet of ModelScope as used by VideoMV (arXiv:2403.12010).
"""

import functools
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from videomv_kernels import gated_product

from videomv_jax import compat, sharding
from videomv_jax.models.attention import (
    ATTENDED,
    SelfAttention,
    ViewAttention,
    over_mesh,
)
from videomv_jax.models.layers import (
    Conv,
    Linear,
    dropout,
    gelu,
    linear,
    linears,
    repeated,
)
from videomv_jax.models.norms import GroupNorm, LayerNorm
from videomv_jax.types import PRNGKey

Video = Float[Array, "b f h w c"]


class TemporalConv(nnx.Module):
    """Four convolutions over three neighbouring views, added to the input.

    Views beyond the ends count as zero; norms see the whole clip.
    """

    def __init__(self, features: int, *, groups, rate, dtype, rngs: nnx.Rngs):
        self.rate = rate
        self.norms = nnx.List(
            GroupNorm(features, groups, eps=1e-5, dtype=dtype) for _ in range(4)
        )
        # As a 2-D window over (views, pixels): no 3-D convolution is needed.
        conv = functools.partial(Conv, view_axis=2, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            conv(features, features, (3, 1), zero=i == 3) for i in range(4)
        )

    def __call__(self, x: Video, key: PRNGKey | None = None) -> Video:
        """Args: x, and the dropout key (none before the first convolution)."""
        b, f, h, w, c = x.shape
        keys, offset = [None, *_split(key, 3)], None
        y = pixels = to_pixels(x.reshape(b, f, h * w, c))
        for norm, conv, key in zip(self.norms, self.convs, keys, strict=True):
            last = conv is self.convs[-1]
            y = dropout(norm(y, offset=offset, silu=True), self.rate, key)
            y = conv(y, pixels if last else None, use_bias=last)
            offset = conv.bias[...].astype(conv.dtype)
        return to_views(y).reshape(x.shape)


class ResBlock(nnx.Module):
    """Two convolutions per view with the embedding in between, then `TemporalConv`."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        embedding: int,
        *,
        groups: int = 32,
        rate: float = 0.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.rate = rate
        self.norm1 = GroupNorm(features_in, groups, eps=1e-5, dtype=dtype)
        conv = functools.partial(Conv, view_axis=1, dtype=dtype, rngs=rngs)
        self.conv1 = conv(features_in, features_out)
        self.embed = linear(
            embedding, features_out, axes=("embed", "conv_out"), dtype=dtype, rngs=rngs
        )
        self.norm2 = GroupNorm(features_out, groups, eps=1e-5, dtype=dtype)
        self.conv2 = conv(features_out, features_out, zero=True)
        skip = functools.partial(linear, axes=("conv_in", "conv_out"), dtype=dtype)
        same = features_in == features_out
        self.skip = None if same else skip(features_in, features_out, rngs=rngs)
        self.temporal = TemporalConv(
            features_out, groups=groups, rate=rate, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: Video, embedding: Float[Array, "b f e"], key: PRNGKey | None = None
    ) -> Video:
        """Args: x, the embedding of time and camera of each view, the dropout key."""
        first, second = _split(key, 2)
        y = self.conv1(self.norm1(x, 2, silu=True), use_bias=False)
        offset = self.embed(jax.nn.silu(embedding))
        offset += self.conv1.bias[...].astype(offset.dtype)[None, None]
        y = self.norm2(y, 2, offset=offset, silu=True)
        y = dropout(y, self.rate, first)
        if self.skip is None:
            y = self.conv2(y, x)
        else:
            y = self.skip(x, self.conv2(y))
        return self.temporal(y, second)


class CrossAttention(nnx.Module):
    """Multi-head attention of tokens to a context, without a norm.

    Queries, keys and values have no bias; the output has one.
    """

    def __init__(
        self, features: int, heads: int, context: int, *, dtype, rngs: nnx.Rngs
    ):
        self.heads = heads
        axes = ("embed", "heads")
        self.q = linear(
            features, features, axes=axes, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.kv = linears(
            context, 2, features, axes=axes, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.out = linear(features, features, axes=axes[::-1], dtype=dtype, rngs=rngs)

    def attended(
        self, x: Float[Array, "b f l c"], context: Float[Array, "n m k"]
    ) -> Float[Array, "n f l c"]:
        """What the output layer reads.

        Args:
            x: tokens of the views of b clips.
            context: tokens that the views of a clip share, see `repeated`: their keys
                and values are computed once.
        """
        b, heads = len(context), self.heads
        kv = self.kv(context)
        k, v = (kv[..., i, :].reshape(b, kv.shape[1], heads, -1) for i in range(2))
        q = repeated(self.q(x), b)
        y = over_mesh(q.reshape(b, x.shape[1] * x.shape[2], heads, -1), k, v)
        return checkpoint_name(y.reshape(q.shape), ATTENDED)


class FeedForward(nnx.Module):
    """Gated feed-forward layer: value times GELU(gate), four times as wide."""

    def __init__(
        self, features: int, *, recomputed: bool = False, dtype, rngs: nnx.Rngs
    ):
        """Args: recomputed says whether the backward pass computes `gated` again."""
        self.recomputed = recomputed
        wide = 4 * features
        self.gated = linears(features, 2, wide, dtype=dtype, rngs=rngs)
        self.out = linear(wide, features, axes=("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... c"], *, onto: Float[Array, "... c"]
    ) -> Float[Array, "... c"]:
        """Args: x, and what to add to the result."""
        axes = sharding.batch_axes(len(x))
        if compat.has_cuda() and axes is not None:
            return self._by_kernels(x, axes, onto)
        y = self.gated(x)
        return self.out(y[..., 0, :] * gelu(y[..., 1, :]), onto)

    def _by_kernels(self, x, axes, onto):
        bias = self.gated.bias
        assert bias is not None
        weights = (
            w[...].astype(self.gated.dtype)
            for w in (self.gated.kernel, bias, self.out.kernel)
        )
        x = x.astype(self.gated.dtype)
        options = axes, compat.has_hopper(), self.recomputed
        y: Any = gated_product.gated_product(x, *weights, *options)
        return self.out.added(y, onto)


class TransformerBlock(nnx.Module):
    """Two attentions and a feed-forward layer, each after a norm and added.

    With a context width, they are among the tokens of a view and to the context;
    without, both are among the views.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        context: int | None = None,
        *,
        recomputed: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        own = ViewAttention if context is None else SelfAttention
        attend = functools.partial(own, features, heads, bias=False, dtype=dtype)
        self.norm1 = LayerNorm(features, dtype=dtype)
        self.attn1 = attend(rngs=rngs)
        self.norm2 = LayerNorm(features, dtype=dtype)
        self.attn2 = (
            attend(rngs=rngs)
            if context is None
            else CrossAttention(features, heads, context, dtype=dtype, rngs=rngs)
        )
        self.norm3 = LayerNorm(features, dtype=dtype)
        self.ff = FeedForward(features, recomputed=recomputed, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b f l i"],
        proj_in: Linear,
        context: Float[Array, "n m k"] | None = None,
    ) -> Float[Array, "n f l c"]:
        """Args: tokens, and the layer that gives those of the block's width.

        The context, if its width was declared, see `repeated`.
        """
        shared = [] if context is None else [context]
        y, x = proj_in.beside(x, self.norm1)
        y, x = self.attn1.out.beside(self.attn1.attended(y), self.norm2, onto=x)
        if context is not None:
            x = repeated(x, len(context))
        y = self.attn2.attended(y, *shared)
        y, x = self.attn2.out.beside(y, self.norm3, onto=x)
        return self.ff(y, onto=x)


class SpatialTransformer(nnx.Module):
    """Attention among the pixels of a view and to the text, added to the input."""

    def __init__(
        self,
        features: int,
        heads: int,
        context: int,
        *,
        groups: int = 32,
        recomputed: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        dense = functools.partial(linear, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(features, groups, eps=1e-6, dtype=dtype)
        self.proj_in = dense(features, features, axes=("mlp", "embed"))
        self.block = TransformerBlock(
            features, heads, context, recomputed=recomputed, dtype=dtype, rngs=rngs
        )
        self.proj_out = dense(features, features, axes=("embed", "mlp"), zero=True)

    def __call__(
        self, x: Video, context: Float[Array, "n m k"]
    ) -> Float[Array, "n f h w c"]:
        """Args: x, and the text tokens of each clip, see `repeated`."""
        b, f, h, w, c = x.shape
        y = x.reshape(b, f, h * w, c)
        z = self.block(self.norm(y, 2), self.proj_in, context)
        return self.proj_out(z, onto=repeated(y, len(z))).reshape(-1, f, h, w, c)


class TemporalTransformer(nnx.Module):
    """Attention among the views of a clip at each pixel, added to the input.

    There is no positional encoding: views are told apart by their cameras alone.
    The norm sees the whole clip.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_dim: int,
        *,
        groups: int = 32,
        recomputed: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_dim
        dense = functools.partial(linear, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(features, groups, eps=1e-6, dtype=dtype)
        self.proj_in = dense(features, inner, axes=("mlp", "embed"))
        self.block = TransformerBlock(
            inner, heads, recomputed=recomputed, dtype=dtype, rngs=rngs
        )
        self.proj_out = dense(inner, features, axes=("embed", "mlp"), zero=True)

    def __call__(self, x: Video) -> Video:
        """Args: x."""
        b, f, h, w, c = x.shape
        y = to_pixels(x.reshape(b, f, h * w, c))
        z = self.block(self.norm(y), self.proj_in)
        return to_views(self.proj_out(z, onto=y)).reshape(x.shape)


def to_pixels(x: Float[Array, "b f l c"]) -> Float[Array, "b f l c"]:
    """All views of some pixels on each device, where the mesh splits views."""
    x = sharding.constrain(x, "batch", "views", None)
    return sharding.constrain(x, "batch", None, "pixels")


def to_views(x: Float[Array, "b f l c"]) -> Float[Array, "b f l c"]:
    """The reverse of `to_pixels`: all pixels of some views on each device."""
    x = sharding.constrain(x, "batch", None, "pixels")
    return sharding.constrain(x, "batch", "views", None)


def _split(key: PRNGKey | None, count: int) -> list[PRNGKey | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))
