"""The reconstructor: four views and their rays to 3D Gaussians, in one pass.

Source: LGM, Large Multi-View Gaussian Model (arXiv:2402.05054), as used by VideoMV
(arXiv:2403.12010): a UNet over all views, whose deeper levels attend across views, and
which emits one Gaussian per output pixel.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videomv_jax.models.attention import SelfAttention
from videomv_jax.models.layers import (
    Conv,
    ResidualBlock,
    UpsampleConv,
    linear,
)
from videomv_jax.models.norms import GroupNorm
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.types import InputError

_EPS = 1e-5
# Sums of two independent branches keep their variance.
_HALF = 0.5**0.5
# Mean and standard deviation of ImageNet's colours.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# Position 3, opacity 1, scale 3, rotation 4, colour 3.
_CHANNELS = 14

Features = Float[Array, "n h w c"]
QuaternionNorm = Literal["gaussian", "components"]
Anchors = Literal["none", "pixels"]


@dataclasses.dataclass(frozen=True)
class ReconstructorConfig:
    """Sizes of a reconstructor.

    Attributes:
        down_channels: features of each level; each but the last halves the image.
        down_attention: which of these levels attend across views.
        up_channels: features on the way up, fewer levels than on the way down: the
            Gaussians of a view are a grid smaller than the image by 2 per level less.
        up_attention: which of these levels attend across views.
        layers: layers per level on the way down; one more on the way up.
        heads: of the attention.
        groups: of the group norms.
        views: how many the network sees.
        position_bound: positions are clamped to this cube's half side.
        scale_factor: of the softplus that makes scales.
        quaternion_norm: "gaussian" gives each Gaussian a unit quaternion.
            "components" repeats an error of VideoMV's code, on which its released
            weights rely: each of the four components is normalised over all
            Gaussians of a scene, so quaternions are short and, as its rasterizer
            takes them as they are, hardly rotate.
        anchors: "none" emits absolute positions, as the original. "pixels" emits
            what is added to a start at each pixel's own colour, where its ray passes
            the origin closest: untrained, each view already renders as itself, and a
            small network learns in minutes where things are.
        dtype: compute type; the last layers run in float32, for positions have no
            bits to spare.
        remat: "block" recomputes each layer in the backward pass.
    """

    down_channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024)
    down_attention: tuple[bool, ...] = (False, False, False, True, True, True)
    up_channels: tuple[int, ...] = (1024, 1024, 512, 256, 128)
    up_attention: tuple[bool, ...] = (True, True, True, False, False)
    layers: int = 2
    heads: int = 16
    groups: int = 32
    views: int = 4
    position_bound: float = 1.0
    scale_factor: float = 0.1
    quaternion_norm: QuaternionNorm = "gaussian"
    anchors: Anchors = "none"
    dtype: DTypeLike = "bfloat16"
    remat: Literal["none", "block"] = "none"

    def __post_init__(self):
        if len(self.up_channels) > len(self.down_channels):
            raise InputError(
                f"up_channels: {self.up_channels}; want no more levels than "
                f"down_channels, {len(self.down_channels)}"
            )
        for way in ("down", "up"):
            channels = getattr(self, f"{way}_channels")
            attention = getattr(self, f"{way}_attention")
            if len(channels) != len(attention):
                raise InputError(
                    f"{way}_attention: {attention}; want one for each of "
                    f"{way}_channels {channels}"
                )
            if any(
                c % self.groups or (a and c % self.heads)
                for c, a in zip(channels, attention, strict=True)
            ):
                raise InputError(
                    f"{way}_channels: {channels}; want multiples of groups "
                    f"{self.groups}, with attention also of heads {self.heads}"
                )

    @property
    def downsampling(self) -> int:
        """Image pixels per Gaussian, each way."""
        return 2 ** (len(self.down_channels) - len(self.up_channels))


PRESETS = {
    "big": ReconstructorConfig(),
    "tiny": ReconstructorConfig(
        down_channels=(32, 64, 64, 80),
        down_attention=(False, False, False, True),
        up_channels=(80, 64, 64),
        up_attention=(True, False, False),
        layers=1,
        heads=4,
        groups=8,
        scale_factor=0.02,
        anchors="pixels",
        dtype="float32",
    ),
}


class ViewAttention(nnx.Module):
    """Residual attention among all pixels of all views of a scene."""

    def __init__(self, features: int, config: ReconstructorConfig, *, rngs: nnx.Rngs):
        self.views = config.views
        self.norm = GroupNorm(features, config.groups, eps=_EPS, dtype=config.dtype)
        self.attention = SelfAttention(
            features, config.heads, bias=False, dtype=config.dtype, rngs=rngs
        )

    def __call__(self, x: Features) -> Features:
        tokens = self.norm(x).reshape(x.shape[0] // self.views, -1, x.shape[-1])
        return (x + self.attention(tokens).reshape(x.shape)) * _HALF


class Layer(nnx.Module):
    """A residual block and perhaps attention across views."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        attention: bool,
        config: ReconstructorConfig,
        *,
        rngs: nnx.Rngs,
    ):
        self.block = ResidualBlock(
            features_in,
            features_out,
            groups=config.groups,
            eps=_EPS,
            scale=_HALF,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attention = (
            ViewAttention(features_out, config, rngs=rngs) if attention else None
        )

    def __call__(self, x: Features) -> Features:
        x = self.block(x)
        return x if self.attention is None else self.attention(x)


class Level(nnx.Module):
    """Layers at one resolution; `resample` is the convolution that changes it."""

    def __init__(self, layers: Iterable[Layer], resample: Conv | None):
        self.layers = nnx.List(layers)
        self.resample = resample


class MultiViewUNet(nnx.Module):
    """Features of views `[b * views, h, w, 9]` to raw Gaussians, float32.

    The way up ends below full resolution, so the skips of the first levels, pushed
    first, are never popped.
    """

    def __init__(self, config: ReconstructorConfig, *, rngs: nnx.Rngs):
        self.config = config
        layer = functools.partial(Layer, config=config, rngs=rngs)
        conv = functools.partial(Conv, dtype=config.dtype, rngs=rngs)
        enlarge = functools.partial(UpsampleConv, dtype=config.dtype, rngs=rngs)
        # In float32: rays of neighbouring pixels differ by less than bfloat16 sees.
        self.conv_in = Conv(
            9,
            config.down_channels[0],
            axes=("conv_out", None),
            dtype="float32",
            rngs=rngs,
        )
        self.down, self.up = nnx.List(), nnx.List()
        width = config.down_channels[0]
        skips = [width]
        levels = zip(config.down_channels, config.down_attention, strict=True)
        for i, (wide, attention) in enumerate(levels):
            last = i == len(config.down_channels) - 1
            widths = [width] + [wide] * config.layers
            layers = [layer(*pair, attention) for pair in itertools.pairwise(widths)]
            shrink = None if last else conv(wide, wide, stride=2)
            self.down.append(Level(layers, shrink))
            skips += [wide] * (config.layers + (not last))
            width = wide
        self.middle = nnx.List([layer(width, width, True), layer(width, width, False)])
        levels = zip(config.up_channels, config.up_attention, strict=True)
        for i, (wide, attention) in enumerate(levels):
            last = i == len(config.up_channels) - 1
            layers = []
            for _ in range(config.layers + 1):
                layers.append(layer(width + skips.pop(), wide, attention))
                width = wide
            self.up.append(Level(layers, None if last else enlarge(wide, wide)))
        self.norm_out = GroupNorm(width, config.groups, eps=_EPS, dtype="float32")
        self.conv_out = Conv(
            width, _CHANNELS, axes=(None, "conv_in"), dtype="float32", rngs=rngs
        )

    def __call__(self, x: Features) -> Features:
        run = jax.checkpoint if self.config.remat == "block" else lambda layer: layer
        x = self.conv_in(x).astype(self.config.dtype)
        skips = [x]
        for level in self.down:
            for layer in level.layers:
                x = run(layer)(x)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        for layer in self.middle:
            x = run(layer)(x)
        for level in self.up:
            for layer in level.layers:
                x = run(layer)(jnp.concatenate([x, skips.pop()], -1))
            if level.resample is not None:
                x = level.resample(x)
        return self.conv_out(self.norm_out(x, silu=True))


class Reconstructor(nnx.Module):
    """Views and their rays to Gaussians."""

    def __init__(self, config: ReconstructorConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.unet = MultiViewUNet(config, rngs=rngs)
        self.mix = linear(
            _CHANNELS,
            _CHANNELS,
            axes=(None, None),
            zero=config.anchors == "pixels",
            dtype="float32",
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "b v h w 3"], rays: Float[Array, "b v h w 6"]
    ) -> Gaussians:
        """Reconstruct scenes.

        Args:
            images: in [0, 1], of `config.views` views; sides are multiples of the
                deepest level's pixel.
            rays: Pluecker coordinates (o x d, d) of each pixel, d of length 1.

        Returns:
            Gaussians `[b, n, ...]` in the frame of the rays, one per pixel of a grid
            smaller than the image by `config.downsampling`; order view, row, column.

        Raises:
            InputError: images or rays of another shape.
        """
        raw = self.raw(images, rays)
        return activate(raw.reshape(raw.shape[0], -1, _CHANNELS), self.config)

    def raw(
        self, images: Float[Array, "b v h w 3"], rays: Float[Array, "b v h w 6"]
    ) -> Float[Array, "b v H W 14"]:
        """What `activate` makes Gaussians of, as a grid per view; see `__call__`."""
        views, step = self.config.views, 2 ** (len(self.config.down_channels) - 1)
        b, v, h, w, c = images.shape
        if v != views or c != 3 or h % step or w % step:
            raise InputError(
                f"images: {images.shape}; want [b, {views}, h, w, 3] with h and w "
                f"multiples of {step}"
            )
        if rays.shape != (b, v, h, w, 6):
            raise InputError(f"rays: {rays.shape}; want {(b, v, h, w, 6)}")
        mean, std = (
            jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 1, 3) for x in (_MEAN, _STD)
        )
        x = jnp.concatenate([(images - mean) / std, rays], -1)
        x = self.mix(self.unet(x.reshape(b * v, h, w, 9)))
        x = x.reshape(b, v, *x.shape[1:])
        if self.config.anchors == "none":
            return x
        return x + _anchors(images, rays, self.config.downsampling)


def _anchors(images, rays, step: int) -> Float[Array, "b v H W 14"]:
    """Raw Gaussians at the pixels' colours, where their rays pass the origin."""
    moment, direction = jnp.split(rays, 2, -1)
    position = jnp.cross(direction, moment)  # o - d (d . o) as |d| = 1
    color = jnp.arctanh(jnp.clip(2 * images - 1, -0.98, 0.98))
    b, v, h, w, _ = images.shape

    def pool(x):
        return x.reshape(b, v, h // step, step, w // step, step, 3).mean((3, 5))

    position, color = pool(position), pool(color)
    rest = jnp.zeros((*color.shape[:-1], 8)).at[..., 4].set(1)  # no rotation
    return jnp.concatenate([position, rest, color], -1)


def activate(raw: Float[Array, "*b n 14"], config: ReconstructorConfig) -> Gaussians:
    """A network's raw output as Gaussians; the only place where that happens.

    Args:
        raw: position 3, opacity 1, scale 3, rotation 4 (w, x, y, z), colour 3.
        config: bounds and the norm of rotations.
    """
    position, opacity, scale, rotation, color = jnp.split(raw, (3, 4, 7, 11), -1)
    bound = config.position_bound
    return Gaussians(
        means=jnp.clip(position, -bound, bound),
        quats=_normalize(rotation, config.quaternion_norm),
        scales=config.scale_factor * jax.nn.softplus(scale),
        opacities=jax.nn.sigmoid(opacity[..., 0]),
        colors=0.5 * jnp.tanh(color) + 0.5,
    )


def _normalize(quats: Float[Array, "*b n 4"], how: QuaternionNorm):
    axis = -1 if how == "gaussian" else -2
    square = jnp.square(quats).sum(axis, keepdims=True)
    # The original's bound on the norm is 1e-12.
    unit = quats * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    if how == "components":
        return unit
    identity = jnp.zeros_like(quats).at[..., 0].set(1)
    return jnp.where(square < 1e-24, identity, unit)
