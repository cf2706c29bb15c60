"""What a photo adds to the UNet, in VideoMV's and in diffusers' checkpoints.

The rest of such a UNet is in `convert.unet`, which asks here for its part.
"""

from collections.abc import Iterable
from typing import Literal

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Entry

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
