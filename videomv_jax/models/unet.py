"""The multi-view UNet: noised latents of all views to a prediction.

Source: VideoMV (arXiv:2403.12010), which is the text-to-video UNet of ModelScope, or
for photos that of I2VGen-XL, plus an embedding of each view's camera. With
`PRESETS["t2v"]` and `PRESETS["i2v"]` it computes what the released weights were trained
for.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from videomv_jax import compat, sharding
from videomv_jax.models.attention import ATTENDED
from videomv_jax.models.blocks import (
    ResBlock,
    SpatialTransformer,
    TemporalTransformer,
    Video,
)
from videomv_jax.models.image_condition import (
    ImageCondition,
    ImageConfig,
    ImagePrompt,
)
from videomv_jax.models.layers import (
    READ,
    SUMMED,
    Conv,
    UpsampleConv,
    linear,
    repeated,
    sinusoid,
)
from videomv_jax.models.norms import NORMED, GroupNorm
from videomv_jax.types import InputError, PRNGKey


def _is_product(primitive, *operands, **params) -> bool:
    """Whether an operation is a linear layer or a convolution, or a norm's sum.

    Those sums are small, and without them a norm is computed element by element. But
    for those of layer norms on a GPU: there a kernel sums and writes them in one pass,
    and another finds their gradients from their inputs.
    """
    if primitive.name == "reduce_sum" and compat.has_cuda():
        return params["axes"] != (operands[0].ndim - 1,)
    return primitive.name in ("dot_general", "conv_general_dilated", "reduce_sum")


# What a saved byte of a product spares in operations is how many inputs it has. Gated
# ones are made faster where they need not be written.
_MANY_INPUTS, _OF_GATED = 640, 1024


def _is_costly_product(primitive, *operands, **params) -> bool:
    """The same, but of linear layers only those with many inputs."""
    if primitive.name == "dot_general":
        (_, (contracted, *_)), (batch, _) = params["dimension_numbers"]
        inputs = operands[1].shape[contracted]
        gated = operands[1].size > 3 * inputs**2  # than queries, keys and values
        return not batch and inputs >= (_OF_GATED if gated else _MANY_INPUTS)
    return _is_product(primitive, *operands, **params)


def _is_flash(primitive, *_, **__) -> bool:
    """Whether an operation is cuDNN's attention.

    Its gradient wants a number for each query beside the output that is saved anyway.
    """
    return primitive.name.startswith("dot_product_attention_fwd")


_policies = jax.checkpoint_policies
_attended = _policies.save_from_both_policies(
    _is_flash, _policies.save_only_these_names(ATTENDED)
)
_results = _policies.save_from_both_policies(
    _attended, _policies.save_only_these_names(SUMMED, NORMED)
)
_inputs = _policies.save_from_both_policies(
    _results, _policies.save_only_these_names(READ)
)
_REMAT = {
    "products": _policies.save_from_both_policies(_is_product, _results),
    "narrow": _policies.save_from_both_policies(_is_costly_product, _inputs),
    "block": _policies.nothing_saveable,
    "attention": _attended,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[ATTENDED],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet.

    Attributes:
        in_channels, out_channels: channels of the latents.
        dim: width of the first level; embeddings are four times as wide.
        multipliers: width of each level over `dim`; each level halves the image.
        res_blocks: stages of a level on the way down (one more on the way up).
        attention_levels: how many levels, from the first, have transformers.
        head_dim: width of an attention head.
        num_heads: heads of the transformer after the first convolution; elsewhere
            the level's width decides.
        context_dim: width of the text tokens.
        camera_dim: numbers per camera (a flattened 4x4 matrix).
        fps_condition: whether the model is told the frame rate.
        image: how the model is told a photo, None if it is not.
        dropout: share of activations dropped in residual blocks while training.
        groups: groups of each group norm. More than one channel per group is needed,
            or the norm erases the embedding.
        dtype: compute type; parameters and output are float32.
        remat: what the backward pass recomputes: "none"; "products", everything but
            the blocks' inputs and the outputs of convolutions, linear layers and
            attentions; "narrow", of these also queries, keys and values of fewer than
            640 inputs and gated layers of fewer than 1,024, but not what convolutions
            read;
            "attention", everything but the blocks' inputs and the outputs of
            attentions; "offload", the same with those in the host's memory; "block",
            everything but the blocks' inputs.
    """

    in_channels: int = 4
    out_channels: int = 4
    dim: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: int = 3
    head_dim: int = 64
    num_heads: int = 8
    context_dim: int = 1024
    camera_dim: int = 16
    fps_condition: bool = False
    image: ImageConfig | None = None
    dropout: float = 0.1
    groups: int = 32
    dtype: DTypeLike = jnp.bfloat16
    remat: Literal["none", "products", "narrow", "attention", "offload", "block"] = (
        "none"
    )

    def __post_init__(self):
        if self.remat != "none" and self.remat not in _REMAT:
            raise InputError.unknown("remat", self.remat, ("none", *_REMAT))
        for multiplier in self.multipliers:
            width = self.dim * multiplier
            if width % self.head_dim or width % self.groups:
                raise InputError(
                    f"a level is {width} wide; want a multiple of head_dim "
                    f"{self.head_dim} and of groups {self.groups}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.dim * m for m in self.multipliers)


PRESETS = {
    "t2v": UNetConfig(),
    "i2v": UNetConfig(fps_condition=True, image=ImageConfig(local_gain=2.0)),
    "tiny": UNetConfig(
        dim=64,
        multipliers=(1, 2),
        res_blocks=1,
        attention_levels=2,
        head_dim=32,
        num_heads=2,
        context_dim=128,
        dropout=0.0,
        dtype=jnp.float32,
    ),
}
PRESETS["tiny_image"] = dataclasses.replace(
    PRESETS["tiny"], image=ImageConfig(embedding_dim=128)
)


class Embedding(nnx.Module):
    """Two float32 linear layers with SiLU in between."""

    def __init__(
        self, features_in: int, features: int, *, zero: bool = False, rngs: nnx.Rngs
    ):
        dense = functools.partial(linear, dtype=jnp.float32, rngs=rngs)
        # The inputs are few: no mesh need divide them.
        self.hidden = dense(features_in, features, axes=(None, "mlp"))
        self.out = dense(features, features, axes=("mlp", "embed"), zero=zero)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... e"]:
        return self.out(jax.nn.silu(self.hidden(x.astype(jnp.float32))))


class Stage(nnx.Module):
    """A residual block and, where the level has them, both transformers."""

    def __init__(
        self,
        config: UNetConfig,
        features_in: int,
        features: int,
        *,
        attention: bool,
        rngs: nnx.Rngs,
    ):
        self.res = _res(config, features_in, features, rngs)
        self.spatial = _spatial(config, features, rngs) if attention else None
        self.temporal = _temporal(config, features, rngs) if attention else None


class Level(nnx.Module):
    """Stages of one image size and the convolution that changes the size."""

    def __init__(self, stages: list[Stage], resample: Conv | None):
        self.stages = nnx.List(stages)
        self.resample = resample


class Middle(nnx.Module):
    """What happens at the smallest size."""

    def __init__(self, config: UNetConfig, features: int, *, rngs: nnx.Rngs):
        self.first = _res(config, features, features, rngs)
        self.spatial = _spatial(config, features, rngs)
        self.temporal = _temporal(config, features, rngs)
        self.last = _res(config, features, features, rngs)


class UNet(nnx.Module):
    """Predicts noise, velocity or clean latents of all views of a clip at once."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, dim = config.widths, config.dim
        options = dict(view_axis=1, dtype=config.dtype, rngs=rngs)
        conv = functools.partial(Conv, **options)
        enlarge = functools.partial(UpsampleConv, **options)
        self.time_embedding = Embedding(dim, 4 * dim, rngs=rngs)
        self.camera_embedding = Embedding(
            config.camera_dim, 4 * dim, zero=True, rngs=rngs
        )
        self.fps_embedding = (
            Embedding(dim, 4 * dim, zero=True, rngs=rngs)
            if config.fps_condition
            else None
        )
        latent = config.in_channels
        self.image = (
            ImageCondition(config.image, latent, config.context_dim, 4 * dim, rngs=rngs)
            if config.image is not None
            else None
        )
        channels = latent if self.image is None else 2 * latent
        self.conv_in = conv(channels, dim, axes=("conv_out", None))
        self.temporal_in = _temporal(config, dim, rngs, config.num_heads)

        def stages(i: int, inputs: list[int]) -> list[Stage]:
            attention = i < config.attention_levels
            return [
                Stage(config, n, widths[i], attention=attention, rngs=rngs)
                for n in inputs
            ]

        self.down, self.up = nnx.List(), nnx.List()
        skips, width = [dim], dim
        for i, features in enumerate(widths):
            inputs = [width, *[features] * (config.res_blocks - 1)]
            width, last = features, i == len(widths) - 1
            shrink = None if last else conv(width, width, stride=2)
            self.down.append(Level(stages(i, inputs), shrink))
            skips += [width] * (config.res_blocks + (not last))
        self.middle = Middle(config, width, rngs=rngs)
        for i, features in reversed(list(enumerate(widths))):
            inputs = [width, *[features] * config.res_blocks]
            inputs = [n + skips.pop() for n in inputs]
            width = features
            grow = None if i == 0 else enlarge(width, width)
            self.up.append(Level(stages(i, inputs), grow))
        self.norm_out = GroupNorm(dim, config.groups, eps=1e-5, dtype=config.dtype)
        self.conv_out = conv(
            dim, config.out_channels, axes=(None, "conv_in"), zero=True
        )

    def __call__(
        self,
        x: Float[Array, "b f h w i"],
        t: Int[Array, "b"] | Float[Array, "b"],
        context: Float[Array, "n l k"],
        camera: Float[Array, "b f k"] | None = None,
        *,
        fps: Int[Array, "b"] | Float[Array, "b"] | None = None,
        image: ImagePrompt | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n f h w o"]:
        """Predict.

        A clip may have several texts, such as guidance's two, which follow each other:
        what comes before the first attention to the text is computed once for all.

        Args:
            x: noised latents; height and width are multiples of
                2^(number of levels - 1). One view (f = 1) is allowed.
            t: time step of each clip, 0 to 999.
            context: text tokens, n a multiple of b.
            camera: flattened 4x4 OpenGL camera-to-world matrix of each view in the
                z-up world; None leaves cameras out (single images in joint training).
            fps: frame rate of each clip, for models conditioned on it.
            image: the first view of each clip, for models that take photos.
            key: dropout key; None for no dropout.

        Returns:
            The prediction for each text, float32.

        Raises:
            InputError: shapes that do not fit, or a frame rate or image given to a
                model that takes none (or the reverse).
        """
        self._check(x, t, context, camera, fps, image)
        embedding = self._embed(x.shape[1], t, camera, fps)
        embedding = sharding.constrain(embedding, "batch", "views")
        x = sharding.constrain(x, "batch", "views")
        run, keys = self._runner(), _keys(key)
        if self.image is not None:
            assert image is not None
            features, tokens = self.image(image, x.shape[1])
            x = jnp.concatenate([x, features], -1)
            tokens = repeated(tokens, len(context))
            context = jnp.concatenate([context.astype(jnp.float32), tokens], 1)
        x = x.astype(self.config.dtype)
        context = context.astype(self.config.dtype)

        def through(stage: Stage, x: Video) -> Video:
            x = run(stage.res, x, repeated(embedding, len(x)), next(keys))
            if stage.spatial is not None:
                x = run(stage.spatial, x, context)
                x = run(stage.temporal, x)
            return x

        x = run(self.temporal_in, self.conv_in(x))
        skips = [x]
        for level in self.down:
            for stage in level.stages:
                x = through(stage, x)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = run(self.middle.first, x, repeated(embedding, len(x)), next(keys))
        x = run(self.middle.spatial, x, context)
        x = run(self.middle.temporal, x)
        x = run(self.middle.last, x, repeated(embedding, len(x)), next(keys))
        for level in self.up:
            for stage in level.stages:
                skip = repeated(skips.pop(), len(x))
                x = through(stage, jnp.concatenate([x, skip], -1))
            if level.resample is not None:
                x = level.resample(x)
        y = self.conv_out(self.norm_out(x, 2, silu=True))
        return sharding.constrain(y.astype(jnp.float32), "batch", "views")

    def _embed(self, views, t, camera, fps) -> Float[Array, "b f e"]:
        embedding = self.time_embedding(sinusoid(t, self.config.dim))
        if self.fps_embedding is not None:
            embedding += self.fps_embedding(sinusoid(fps, self.config.dim))
        embedding = jnp.repeat(embedding[:, None], views, 1)
        if camera is not None:
            embedding += self.camera_embedding(camera)
        return embedding

    def _runner(self) -> Callable[..., Video]:
        if self.config.remat == "none":
            return lambda module, *args: module(*args)
        policy = _REMAT[self.config.remat]
        return nnx.remat(lambda module, *args: module(*args), policy=policy)

    def _check(self, x, t, context, camera, fps, image):
        config = self.config
        step = 2 ** (len(config.multipliers) - 1)
        if x.ndim != 5 or x.shape[-1] != config.in_channels:
            raise InputError(f"x is {x.shape}; want [b, f, h, w, {config.in_channels}]")
        b, f = x.shape[:2]
        if x.shape[2] % step or x.shape[3] % step:
            raise InputError(f"x is {x.shape}; want h and w to be multiples of {step}")
        if t.shape != (b,):
            raise InputError(f"t is {t.shape}; want ({b},), one step per clip")
        n, _, width = context.shape
        if n % b or width != config.context_dim:
            raise InputError(
                f"context is {context.shape}; want [n, l, {config.context_dim}], n a "
                f"multiple of {b}"
            )
        if camera is not None and camera.shape != (b, f, config.camera_dim):
            raise InputError(
                f"camera is {camera.shape}; want ({b}, {f}, {config.camera_dim})"
            )
        if (fps is None) == config.fps_condition:
            raise InputError(
                f"fps is {fps}, but fps_condition is {config.fps_condition}"
            )
        if (image is None) == (config.image is not None):
            raise InputError(
                f"image is {'missing' if image is None else 'given'}, but the model "
                f"takes {'none' if config.image is None else 'one'}"
            )
        if image is None:
            return
        if image.latent.shape != (b, *x.shape[2:]):
            raise InputError(
                f"image.latent is {image.latent.shape}; want {(b, *x.shape[2:])}"
            )
        if image.embedding is not None and len(image.embedding) not in (b, n):
            raise InputError(
                f"image.embedding is {image.embedding.shape}; want {b} or {n} vectors"
            )


def _res(config: UNetConfig, features_in: int, features: int, rngs) -> ResBlock:
    return ResBlock(
        features_in,
        features,
        4 * config.dim,
        groups=config.groups,
        rate=config.dropout,
        dtype=config.dtype,
        rngs=rngs,
    )


def _recomputes(config: UNetConfig, inputs: int) -> bool:
    """Whether the backward pass computes gated layers of so many inputs again."""
    few = config.remat == "narrow" and inputs < _OF_GATED
    return few or config.remat in ("attention", "offload", "block")


def _spatial(config: UNetConfig, features: int, rngs) -> SpatialTransformer:
    return SpatialTransformer(
        features,
        features // config.head_dim,
        config.context_dim,
        groups=config.groups,
        recomputed=_recomputes(config, features),
        dtype=config.dtype,
        rngs=rngs,
    )


def _temporal(
    config: UNetConfig, features: int, rngs, heads: int | None = None
) -> TemporalTransformer:
    heads = heads or features // config.head_dim
    return TemporalTransformer(
        features,
        heads,
        config.head_dim,
        groups=config.groups,
        recomputed=_recomputes(config, heads * config.head_dim),
        dtype=config.dtype,
        rngs=rngs,
    )


def _keys(key: PRNGKey | None) -> Iterator[PRNGKey | None]:
    while True:
        if key is None:
            yield None
        else:
            key, this = jax.random.split(key)
            yield this
