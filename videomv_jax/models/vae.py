"""Autoencoder between images and latents, 8 times smaller each way.

The autoencoder of Stable Diffusion (arXiv:2112.10752): residual convolutions, one
attention in the middle of either half, a Gaussian posterior. It sees one image at a
time; all norms have eps 1e-6.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
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
from videomv_jax.types import InputError, PRNGKey

_EPS = 1e-6
# The original limits the variance of the posterior to this range.
_LOG_VARIANCE = (-30.0, 20.0)

Features = Float[Array, "n h w c"]


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of an autoencoder.

    Attributes:
        channels: features at full resolution.
        multipliers: of `channels`, one per level; each level but the last halves
            the image.
        layers: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        groups: of the group norms.
        scale_factor: latents are the posterior times this, about unit variance.
        dtype: compute type.
        remat: "block" recomputes each block in the backward pass.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32
    scale_factor: float = 0.18215
    dtype: DTypeLike = "bfloat16"
    remat: Literal["none", "block"] = "none"

    def __post_init__(self):
        if any(width % self.groups for width in self.widths):
            raise InputError(
                f"groups: {self.groups} does not divide the widths {self.widths}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel, each way."""
        return 2 ** (len(self.multipliers) - 1)


PRESETS = {
    "sd": VAEConfig(),
    "tiny": VAEConfig(
        channels=32, multipliers=(1, 2, 2, 3), layers=1, groups=8, dtype="float32"
    ),
}


class AttentionBlock(nnx.Module):
    """Residual attention among all pixels of an image, a single head."""

    def __init__(self, features: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(features, config.groups, eps=_EPS, dtype=config.dtype)
        self.attention = SelfAttention(
            features, 1, bias=True, dtype=config.dtype, rngs=rngs
        )

    def __call__(self, x: Features) -> Features:
        n, h, w, c = x.shape
        y = self.attention(self.norm(x).reshape(n, h * w, c))
        return x + y.reshape(x.shape)


class Stack(nnx.Module):
    """Blocks in sequence, recomputed in the backward pass if the config says so."""

    def __init__(self, blocks: Iterable[nnx.Module], config: VAEConfig):
        self.blocks = nnx.List(blocks)
        self.remat = config.remat

    def __call__(self, x: Features) -> Features:
        for block in self.blocks:
            x = (jax.checkpoint(block) if self.remat == "block" else block)(x)
        return x


class Upsample(nnx.Module):
    """Twice the size by repeating pixels, then a convolution."""

    def __init__(self, features: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.conv = UpsampleConv(features, features, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        return self.conv(x)


def _residual(widths: Sequence[int], config: VAEConfig, *, rngs: nnx.Rngs):
    """Residual blocks between consecutive widths."""
    return [
        ResidualBlock(
            i, o, groups=config.groups, eps=_EPS, dtype=config.dtype, rngs=rngs
        )
        for i, o in itertools.pairwise(widths)
    ]


def _middle(config: VAEConfig, *, rngs: nnx.Rngs) -> Stack:
    width = config.widths[-1]
    first, last = _residual([width] * 3, config, rngs=rngs)
    return Stack([first, AttentionBlock(width, config, rngs=rngs), last], config)


class Encoder(nnx.Module):
    """Images `[n, h, w, 3]` in [-1, 1] to features of the moments."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        dtype, widths = config.dtype, config.widths
        self.conv_in = Conv(
            3, widths[0], axes=("conv_out", None), dtype=dtype, rngs=rngs
        )
        self.levels = nnx.List(
            Stack(_residual([i] + [o] * config.layers, config, rngs=rngs), config)
            for i, o in itertools.pairwise((widths[0], *widths))
        )
        # Padded below and to the right only: the one asymmetric padding of the family.
        self.downsamples = nnx.List(
            Conv(w, w, stride=2, padding=[(0, 1)] * 2, dtype=dtype, rngs=rngs)
            for w in widths[:-1]
        )
        self.middle = _middle(config, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], config.groups, eps=_EPS, dtype=dtype)
        self.conv_out = Conv(
            widths[-1],
            2 * config.latent_channels,
            axes=(None, "conv_in"),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Features) -> Features:
        x = self.conv_in(x)
        for level, downsample in itertools.zip_longest(self.levels, self.downsamples):
            x = level(x)
            x = downsample(x) if downsample is not None else x
        return self.conv_out(self.norm_out(self.middle(x), silu=True))


class Decoder(nnx.Module):
    """Latents `[n, h, w, c]` to images in [-1, 1]; levels in the order they run."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        dtype, widths = config.dtype, config.widths[::-1]
        self.conv_in = Conv(
            config.latent_channels,
            widths[0],
            axes=("conv_out", None),
            dtype=dtype,
            rngs=rngs,
        )
        self.middle = _middle(config, rngs=rngs)
        self.levels = nnx.List(
            Stack(_residual([i] + [o] * (config.layers + 1), config, rngs=rngs), config)
            for i, o in itertools.pairwise((widths[0], *widths))
        )
        self.upsamples = nnx.List(Upsample(w, config, rngs=rngs) for w in widths[:-1])
        self.norm_out = GroupNorm(widths[-1], config.groups, eps=_EPS, dtype=dtype)
        self.conv_out = Conv(
            widths[-1], 3, axes=(None, "conv_in"), dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Features) -> Features:
        x = self.middle(self.conv_in(x))
        for level, up in itertools.zip_longest(self.levels, self.upsamples):
            x = level(x)
            x = up(x) if up is not None else x
        return self.conv_out(self.norm_out(x, silu=True))


class VAE(nnx.Module):
    """The autoencoder. Leading axes are free: `[n, h, w, 3]` or `[b, f, h, w, 3]`.

    `chunk`, where a method takes it, is how many images are in memory at a time: the
    images then pass through one after another, in `lax.map`. Leave it None where the
    leading axes are sharded.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        c, dtype = config.latent_channels, config.dtype
        self.encoder = Encoder(config, rngs=rngs)
        axes = (None, None)
        self.quant = linear(2 * c, 2 * c, axes=axes, dtype=dtype, rngs=rngs)
        self.post_quant = linear(c, c, axes=axes, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def moments(
        self, images: Float[Array, "*b h w 3"], *, chunk: int | None = None
    ) -> tuple[Float[Array, "*b h/8 w/8 c"], Float[Array, "*b h/8 w/8 c"]]:
        """The posterior of the latents, before the scale factor.

        Args:
            images: in [0, 1]; sides are multiples of `config.downsampling`.
            chunk: images in memory at a time, None for all.

        Returns:
            Mean and logarithm of the variance, float32.

        Raises:
            InputError: images of another shape, or a chunk below 1.
        """
        step = self.config.downsampling
        if images.shape[-1] != 3 or images.shape[-3] % step or images.shape[-2] % step:
            raise InputError(
                f"images: {images.shape}; want [..., h, w, 3] with h and w "
                f"multiples of {step}"
            )

        def network(x):
            return self.quant(self.encoder(2 * x - 1)).astype(jnp.float32)

        mean, logvar = jnp.split(_map(network, images, chunk), 2, axis=-1)
        return mean, jnp.clip(logvar, *_LOG_VARIANCE)

    def encode(
        self,
        images: Float[Array, "*b h w 3"],
        key: PRNGKey | None = None,
        *,
        chunk: int | None = None,
    ) -> Float[Array, "*b h/8 w/8 c"]:
        """Images in [0, 1] as latents, times the scale factor, float32.

        Args:
            images: see `moments`.
            key: draws from the posterior; without it the latents are its mean.
            chunk: images in memory at a time, None for all.
        """
        mean, logvar = self.moments(images, chunk=chunk)
        if key is not None:
            noise = jax.random.normal(key, mean.shape, mean.dtype)
            mean = mean + jnp.exp(0.5 * logvar) * noise
        return mean * self.config.scale_factor

    def decode(
        self, latents: Float[Array, "*b h w c"], *, chunk: int | None = None
    ) -> Float[Array, "*b 8*h 8*w 3"]:
        """Latents, as `encode` gives them, as images in [0, 1], not clipped, float32.

        Args:
            latents: the latents.
            chunk: images in memory at a time, None for all.

        Raises:
            InputError: latents of another shape, or a chunk below 1.
        """
        c = self.config.latent_channels
        if latents.shape[-1] != c:
            raise InputError(f"latents: {latents.shape}; want [..., h, w, {c}]")

        def network(x):
            x = self.decoder(self.post_quant(x / self.config.scale_factor))
            return x.astype(jnp.float32) / 2 + 0.5

        return _map(network, latents, chunk)


def _map(network, x, chunk: int | None):
    """Apply a network of `[n, h, w, c]` to `[..., h, w, c]`, `chunk` at a time."""
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk: {chunk}; want a positive number of images or None")
    flat = x.reshape(-1, *x.shape[-3:])
    if chunk is None or chunk >= len(flat):
        y = network(flat)
    else:
        y = jax.lax.map(lambda image: network(image[None])[0], flat, batch_size=chunk)
    return y.reshape(*x.shape[:-3], *y.shape[1:])
