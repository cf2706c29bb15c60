"""What a photo adds to the UNet, in VideoMV's and in diffusers' checkpoints.

The rest of such a UNet is in `convert.unet`, which asks here for its part.
"""

from collections.abc import Iterable
from typing import Literal

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Entry, Shapes
from videomv_jax.models.image_condition import ImageConfig

PREFIX = "image."

_LAYERS = {
    "videomv": {
        **{f"local.{i}": f"local_image_concat.{2 * i}" for i in range(3)},
        "norm": "local_temporal_encoder.layers.0.0.norm",
        "attention.qkv": "local_temporal_encoder.layers.0.0.fn.to_qkv",
        "attention.out": "local_temporal_encoder.layers.0.0.fn.to_out.0",
        "mlp_in": "local_temporal_encoder.layers.0.1.net.0.0",
        "mlp_out": "local_temporal_encoder.layers.0.1.net.2",
        **{
            f"local_tokens.{i}": f"local_image_embedding.{(0, 3, 5)[i]}"
            for i in range(3)
        },
        "token_hidden": "context_embedding.0",
        "token_out": "context_embedding.2",
    },
    "diffusers": {
        **{f"local.{i}": f"image_latents_proj_in.{2 * i}" for i in range(3)},
        "norm": "image_latents_temporal_encoder.norm1",
        "attention.qkv": "image_latents_temporal_encoder.attn1.to_qkv",
        "attention.out": "image_latents_temporal_encoder.attn1.to_out.0",
        "mlp_in": "image_latents_temporal_encoder.ff.net.0.proj",
        "mlp_out": "image_latents_temporal_encoder.ff.net.2",
        **{
            f"local_tokens.{i}": f"image_latents_context_embedding.{(0, 3, 5)[i]}"
            for i in range(3)
        },
        "token_hidden": "context_embedding.0",
        "token_out": "context_embedding.2",
    },
}

_FIRST = {"videomv": "local_image_concat.", "diffusers": "image_latents_proj_in."}


def sizes(
    shapes: Shapes, source: Literal["videomv", "diffusers"]
) -> ImageConfig | None:
    """How a checkpoint's UNet is told a photo; None if it is not.

    The code that VideoMV's names belong to counts the local features twice, which the
    released weights rely on; diffusers' counts them once.

    Raises:
        InputError: only some of the names are there.
    """
    if not any(name.startswith(_FIRST[source]) for name in shapes):
        return None
    hidden = mapping.shape(shapes, "context_embedding.0.weight")
    out = mapping.shape(shapes, "context_embedding.2.weight")
    tokens = mapping.shape(shapes, f"{_LAYERS[source]['local_tokens.2']}.weight")
    return ImageConfig(
        embedding_dim=hidden[1],
        tokens=out[0] // tokens[0],
        local_gain=2.0 if source == "videomv" else 1.0,
    )


def entries(
    paths: Iterable[str], source: Literal["videomv", "diffusers"]
) -> list[Entry]:
    """The table of these parameters, for `mapping.load` and `mapping.save`.

    Args:
        paths: of our parameters, with the prefix `image.`.
        source: whose names.
    """

    def entry(path: str) -> Entry:
        layer, leaf = path.removeprefix(PREFIX).rsplit(".", 1)
        theirs = f"{_LAYERS[source][layer]}.{'bias' if leaf == 'bias' else 'weight'}"
        if leaf != "kernel":
            return Entry(path, theirs)
        if layer.startswith("local"):
            return Entry(path, theirs, mapping.conv)
        if not layer.endswith("qkv"):
            return Entry(path, theirs, mapping.linear)
        if source == "videomv":
            return Entry(path, theirs, mapping.fused(3))
        names = tuple(theirs.replace("to_qkv", f"to_{letter}") for letter in "qkv")
        return Entry(path, names, mapping.linear)

    return [entry(path) for path in paths]
