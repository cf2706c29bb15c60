"""The text encoder: CLIP's text transformer, read before its last block.

Source: Learning Transferable Visual Models From Natural Language Supervision
(arXiv:2103.00020) in the form of OpenCLIP: pre-norm, causal, learned positions, exact
GELU. Diffusion models read the states that enter the last block ("penultimate"), with
the final norm applied; the skipped block has no parameters here.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from videomv_jax.models.attention import SelfAttention
from videomv_jax.models.layers import LayerNorm, gelu, linear
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


class Block(nnx.Module):
    """Causal self attention and a feed-forward layer, each after a norm."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
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
        self, x: Float[Array, "b l d"], mask: Bool[Array, "1 l l"]
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
