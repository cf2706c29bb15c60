"""LPIPS: how different two images look, by the features of an image classifier.

Source: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
(arXiv:1801.03924), version 0.1 with VGG16: five taps of a classifier that was trained
on ImageNet, compared after each pixel's features are scaled to length 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videomv_jax.models.layers import Conv
from videomv_jax.types import InputError

# The metric's own statistics, of images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """Sizes of the classifier up to its last tap.

    Attributes:
        widths: channels of each level; levels after the first halve the image.
        convs: convolutions per level, each with a ReLU; the last is the tap.
        dtype: compute type; lengths and distances are float32.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    convs: tuple[int, ...] = (2, 2, 3, 3, 3)
    dtype: DTypeLike = "float32"

    def __post_init__(self):
        if len(self.widths) != len(self.convs):
            raise InputError(
                f"convs: {self.convs}; want one for each of widths {self.widths}"
            )


class LPIPS(nnx.Module):
    """The distance of images. Its weights come from conversion, it is not trained."""

    def __init__(self, config: LPIPSConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.levels, width = nnx.List(), 3
        for wide, count in zip(config.widths, config.convs, strict=True):
            widths = [width, *[wide] * count]
            self.levels.append(
                nnx.List(
                    Conv(i, o, dtype=config.dtype, rngs=rngs)
                    for i, o in zip(widths, widths[1:], strict=False)
                )
            )
            width = wide
        self.heads = nnx.List(
            nnx.Param(jnp.full((wide,), 1 / wide, jnp.float32), axes=("norm",))
            for wide in config.widths
        )

    def __call__(
        self, images: Float[Array, "*b h w 3"], truth: Float[Array, "*b h w 3"]
    ) -> Float[Array, "*b"]:
        """Compare images with others, one by one.

        Args:
            images, truth: in [0, 1], of one shape; no side may be below
                2^(levels - 1) pixels.

        Returns:
            Distances, 0 for equal images, float32.

        Raises:
            InputError: shapes that differ or do not fit.
        """
        least = 2 ** (len(self.config.widths) - 1)
        if images.shape != truth.shape or images.shape[-1] != 3:
            raise InputError(
                f"images: {images.shape}, truth: {truth.shape}; want [..., h, w, 3] "
                "of both"
            )
        if min(images.shape[-3:-1]) < least:
            raise InputError(f"images: {images.shape}; want sides of {least} or more")
        batch = images.shape[:-3]
        both = jnp.stack([images, truth]).reshape(-1, *images.shape[-3:])
        shift, scale = (
            jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (SHIFT, SCALE)
        )
        x = (2 * both.astype(jnp.float32) - 1 - shift) / scale
        distance = jnp.zeros(len(both) // 2, jnp.float32)
        for i, (level, head) in enumerate(zip(self.levels, self.heads, strict=True)):
            x = _halved(x) if i else x
            for conv in level:
                x = jax.nn.relu(conv(x))
            one, two = jnp.split(_unit(x.astype(jnp.float32)), 2)
            distance += (jnp.square(one - two) @ head[...]).mean((1, 2))
        return distance.reshape(batch)


def _unit(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Features of length 1; where all of them are 0 they and their gradient are."""
    square = jnp.square(x).sum(-1, keepdims=True)
    lit = square > 0
    length = jnp.sqrt(jnp.where(lit, square, jnp.ones_like(square)))
    return jnp.where(lit, x / (length + _EPS), jnp.zeros_like(x))


def _halved(x: Float[Array, "n h w c"]) -> Float[Array, "n h/2 w/2 c"]:
    """The largest of each 2 x 2 pixels; an odd last row or column is left out."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
