"""CLIP's two towers: texts to the states of their tokens, images to vectors.

Source: Learning Transferable Visual Models From Natural Language Supervision
(arXiv:2103.00020) in the form of OpenCLIP: pre-norm, learned positions, exact GELU, and
causal for texts. Diffusion models read the text states that enter the last block
("penultimate"), with the final norm applied; the skipped block has no parameters here.
Of images they read the projected class token, not normalised.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from videomv_jax.models.attention import SelfAttention
from videomv_jax.models.layers import gelu, linear
from videomv_jax.models.norms import LayerNorm
from videomv_jax.types import InputError, TextStates, Tokens


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder.

    Attributes:
        vocab: number of tokens.
        length: the most tokens of a text.
        width: features of a token.
        heads: of the attention.
        layers: blocks of the original, with those that are skipped.
        mlp_ratio: hidden width of the feed-forward layers over `width`.
        skip_last: how many blocks at the end are left out.
        dtype: compute type.
    """

    vocab: int = 49408
    length: int = 77
    width: int = 1024
    heads: int = 16
    layers: int = 24
    mlp_ratio: int = 4
    skip_last: int = 1
    dtype: DTypeLike = "bfloat16"

    def __post_init__(self):
        if self.width % self.heads:
            raise InputError(f"heads: {self.heads} does not divide width {self.width}")
        if not 0 <= self.skip_last < self.layers:
            raise InputError(
                f"skip_last: {self.skip_last}; want 0 to {self.layers - 1} of "
                f"{self.layers} layers"
            )


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of an image encoder.

    Attributes:
        size: height and width of the images it takes.
        patch: side of the squares that become tokens.
        width: features of a token.
        heads: of the attention.
        layers: blocks.
        mlp_ratio: hidden width of the feed-forward layers over `width`.
        features: width of an image's vector.
        dtype: compute type.
    """

    size: int = 224
    patch: int = 14
    width: int = 1280
    heads: int = 16
    layers: int = 32
    mlp_ratio: int = 4
    features: int = 1024
    dtype: DTypeLike = "bfloat16"

    def __post_init__(self):
        if self.width % self.heads:
            raise InputError(f"heads: {self.heads} does not divide width {self.width}")
        if self.size % self.patch:
            raise InputError(f"patch: {self.patch} does not divide size {self.size}")

    @property
    def tokens(self) -> int:
        """The class token and those of the patches."""
        return 1 + (self.size // self.patch) ** 2


VISION_PRESETS = {
    "vit_h_14": VisionConfig(),
    "tiny": VisionConfig(
        size=128, patch=16, width=192, heads=6, layers=4, features=128, dtype="float32"
    ),
}
PRESETS = {
    "vit_h_14": TextConfig(),
    "tiny": TextConfig(
        vocab=1024,
        length=48,
        width=128,
        heads=4,
        layers=4,
        skip_last=0,
        dtype="float32",
    ),
}


# Mean and standard deviation of the colours that CLIP was trained on.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class BlockSizes(Protocol):
    """What a block reads of a tower's config."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def mlp_ratio(self) -> int: ...
    @property
    def dtype(self) -> DTypeLike: ...


class Block(nnx.Module):
    """Self attention and a feed-forward layer, each after a norm."""

    def __init__(self, config: BlockSizes, *, rngs: nnx.Rngs):
        width, wide, dtype = config.width, config.mlp_ratio * config.width, config.dtype
        # As OpenCLIP: the deeper the network, the less each branch adds at first.
        share = 0.5 / config.layers
        self.norm1 = LayerNorm(width, dtype=dtype)
        self.attention = SelfAttention(
            width, config.heads, bias=True, variance=share, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(width, dtype=dtype)
        self.mlp_in = linear(width, wide, variance=0.5, dtype=dtype, rngs=rngs)
        self.mlp_out = linear(
            wide,
            width,
            axes=("mlp", "embed"),
            variance=share * config.mlp_ratio,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "1 l l"] | None = None
    ) -> Float[Array, "b l d"]:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp_out(gelu(self.mlp_in(self.norm2(x))))


class TextEncoder(nnx.Module):
    """Tokens to one state per token."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.config = config
        # Standard deviations of the original.
        normal = nnx.initializers.normal
        self.token_embedding = nnx.Param(
            normal(0.02)(rngs.params(), (config.vocab, config.width), jnp.float32),
            axes=("vocab", "embed"),
        )
        self.position_embedding = nnx.Param(
            normal(0.01)(rngs.params(), (config.length, config.width), jnp.float32),
            axes=("length", "embed"),
        )
        self.blocks = nnx.List(
            Block(config, rngs=rngs) for _ in range(config.layers - config.skip_last)
        )
        self.norm_out = LayerNorm(config.width, dtype=config.dtype)

    def __call__(self, tokens: Tokens) -> TextStates:
        """Encode texts.

        Args:
            tokens: `[b, l]`, l at most `config.length`. Padding is not masked: as in
                the original it is text like any other. States of tokens outside
                the vocabulary are NaN.

        Returns:
            States `[b, l, d]` after the last kept block and the final norm, in the
            compute type.

        Raises:
            InputError: tokens of another shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.length:
            raise InputError(
                f"tokens: {tokens.shape}; want [b, l] with l at most "
                f"{self.config.length}"
            )
        length = tokens.shape[1]
        x = jnp.take(self.token_embedding[...], tokens, axis=0, mode="fill")
        x = (x + self.position_embedding[:length][None]).astype(self.config.dtype)
        mask = jnp.tril(jnp.ones((length, length), bool))[None]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm_out(x)


class VisionEncoder(nnx.Module):
    """Images to one vector each."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        # A convolution whose stride is its window is one matrix over whole patches.
        self.patches = linear(
            3 * config.patch**2,
            width,
            axes=(None, "embed"),
            use_bias=False,
            dtype=config.dtype,
            rngs=rngs,
        )
        normal = nnx.initializers.normal
        self.class_token = nnx.Param(
            normal(width**-0.5)(rngs.params(), (width,), jnp.float32), axes=("embed",)
        )
        self.position_embedding = nnx.Param(
            normal(width**-0.5)(rngs.params(), (config.tokens, width), jnp.float32),
            axes=("length", "embed"),
        )
        self.norm_in = LayerNorm(width, dtype=config.dtype)
        self.blocks = nnx.List(Block(config, rngs=rngs) for _ in range(config.layers))
        self.norm_out = LayerNorm(width, dtype=config.dtype)
        self.projection = linear(
            width,
            config.features,
            axes=("embed", None),
            use_bias=False,
            dtype=config.dtype,
            rngs=rngs,
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Encode images.

        Args:
            images: in [0, 1], square; resized to `config.size` with an antialiased
                linear filter where they have another size, as the original does.

        Returns:
            Their vectors, float32, not normalised.

        Raises:
            InputError: images of another shape.
        """
        b, h, w, _ = shape = images.shape
        if h != w or shape[3] != 3:
            raise InputError(f"images: {shape}; want [b, h, h, 3], cropped squares")
        size, patch = self.config.size, self.config.patch
        if h != size:
            images = jax.image.resize(images, (b, size, size, 3), "linear")
        mean, std = (
            jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (_MEAN, _STD)
        )
        x = ((images - mean) / std).reshape(b, size // patch, patch, -1, patch, 3)
        x = x.swapaxes(2, 3).reshape(b, -1, 3 * patch**2)
        x = self.patches(x).astype(jnp.float32)
        first = jnp.broadcast_to(self.class_token[...], (b, 1, x.shape[-1]))
        x = jnp.concatenate([first, x], 1) + self.position_embedding[...][None]
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_out(x[:, 0])).astype(jnp.float32)
