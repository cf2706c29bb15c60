"""What a photo adds to the UNet: channels beside the noised latents, and tokens.

Source: I2VGen-XL (arXiv:2311.04145) as used by VideoMV (arXiv:2403.12010).
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videomv_jax.models.attention import SelfAttention
from videomv_jax.models.layers import Conv, gelu, linear, repeated
from videomv_jax.models.norms import LayerNorm
from videomv_jax.types import InputError

# The latent is averaged to this side before it becomes tokens, a quarter of it each
# way, whatever its size.
_SIDE = 32


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How a UNet is told a photo.

    Attributes:
        embedding_dim: width of the image encoder's vector.
        tokens: how many tokens it becomes.
        local_gain: factor of the local features. VideoMV's code adds them twice, which
            its released weights rely on: 2. diffusers adds them once.
    """

    embedding_dim: int = 1024
    tokens: int = 4
    local_gain: float = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """A photo of each clip, as the UNet takes it.

    Attributes:
        latent: scaled VAE latent of the photo, which is the clip's first view.
        embedding: the image encoder's vector, one for each text of a clip: zeros in
            the unconditional branch of guidance. None leaves its tokens out.
    """

    latent: Float[Array, "b h w c"]
    embedding: Float[Array, "n d"] | None


class ImageCondition(nnx.Module):
    """A photo to local features and tokens; float32, as it is small."""

    def __init__(
        self,
        config: ImageConfig,
        channels: int,
        context_dim: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
    ):
        """Make the layers.

        Args:
            channels: of the latents.
            context_dim: width of the UNet's text tokens.
            hidden: width between embedding and tokens.
        """
        self.config = config
        # Layers of a few channels, which no mesh divides, name no axes.
        none = (None, None)
        conv = functools.partial(Conv, dtype="float32", rngs=rngs)
        dense = functools.partial(linear, dtype="float32", rngs=rngs)
        widths = (channels, 4 * channels, 4 * channels, channels)
        self.local = nnx.List(
            conv(*pair, axes=none) for pair in itertools.pairwise(widths)
        )
        self.norm = LayerNorm(channels, dtype="float32")
        self.attention = SelfAttention(
            channels,
            2,
            inner=2 * channels,
            axes=none,
            bias=False,
            dtype="float32",
            rngs=rngs,
        )
        self.mlp_in = dense(channels, 4 * channels, axes=none)
        self.mlp_out = dense(4 * channels, channels, axes=none)
        self.local_tokens = nnx.List(
            [
                conv(channels, 8 * channels, axes=none),
                conv(8 * channels, 16 * channels, stride=2, axes=none),
                conv(16 * channels, context_dim, stride=2, axes=("conv_out", None)),
            ]
        )
        self.token_hidden = dense(config.embedding_dim, hidden)
        self.token_out = dense(
            hidden, config.tokens * context_dim, axes=("mlp", "embed")
        )

    def __call__(
        self, image: ImagePrompt, views: int
    ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b l k"]]:
        """Condition.

        Args:
            image: the photos.
            views: of each clip.

        Returns:
            Local features of every view, to stand beside its noised latent; tokens to
            follow those of the text: 64 of the latent, then those of the embedding.

        Raises:
            InputError: an embedding of another width.
        """
        latent = image.latent.astype(jnp.float32)
        features = self.temporal(self.spatial(latent, views)) * self.config.local_gain
        tokens = self.tokens_of_latent(latent)
        if image.embedding is not None:
            more = self.tokens_of_embedding(image.embedding)
            tokens = jnp.concatenate([repeated(tokens, len(more)), more], 1)
        return features, tokens

    def spatial(
        self, latent: Float[Array, "b h w c"], views: int
    ) -> Float[Array, "b f h w c"]:
        """Convolutions of the latent in the first view, of its place in each other.

        View k > 0 is filled with k / (f - 1).
        """
        place = jnp.linspace(0, 1, views)[1:].reshape(1, -1, 1, 1, 1)
        b, *shape = latent.shape
        later = jnp.broadcast_to(place, (b, views - 1, *shape))
        x = jnp.concatenate([latent[:, None], later], 1)
        for i, conv in enumerate(self.local):
            x = conv(x if i == 0 else jax.nn.silu(x))
        return x

    def temporal(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Attention among the views of each pixel and a layer without a norm."""
        x = jnp.moveaxis(x, 1, 3)
        x = x + self.attention(self.norm(x))
        x = x + self.mlp_out(gelu(self.mlp_in(x)))
        return jnp.moveaxis(x, 3, 1)

    def tokens_of_latent(
        self, latent: Float[Array, "b h w c"]
    ) -> Float[Array, "b 64 k"]:
        """A grid of tokens in row-major order."""
        first, second, third = self.local_tokens
        x = _pool(jax.nn.silu(first(latent)))
        x = third(jax.nn.silu(second(x)))
        return x.reshape(len(x), -1, x.shape[-1])

    def tokens_of_embedding(
        self, embedding: Float[Array, "b d"]
    ) -> Float[Array, "b n k"]:
        """The tokens of the image encoder's vector."""
        width = self.config.embedding_dim
        if embedding.ndim != 2 or embedding.shape[1] != width:
            raise InputError(f"embedding is {embedding.shape}; want [b, {width}]")
        x = jax.nn.silu(self.token_hidden(embedding))
        return self.token_out(x).reshape(len(x), self.config.tokens, -1)


def _pool(x: Float[Array, "b h w c"]) -> Float[Array, "b 32 32 c"]:
    """Averages over an even grid of cells, which overlap, as torch's adaptive pool."""
    rows, columns = (jnp.asarray(_cells(n)) for n in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


@functools.cache
def _cells(size: int) -> np.ndarray:
    """`[32, size]`: each row averages the pixels that its cell touches."""
    i, pixel = np.arange(_SIDE)[:, None], np.arange(size)[None]
    inside = (pixel >= i * size // _SIDE) & (pixel < -(-(i + 1) * size // _SIDE))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
