"""Checkpoints of CLIP's image encoder: OpenCLIP's names and those of transformers."""

import math
import re
from typing import Literal

import numpy as np

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Arrays, Entry, Layout, Shapes
from videomv_jax.models.clip import VISION_PRESETS, VisionConfig, VisionEncoder

Source = Literal["openclip", "transformers"]

_RULES = {
    "openclip": {
        r"^patches\.": "visual.conv1.",
        r"^class_token$": "visual.class_embedding",
        r"^position_embedding$": "visual.positional_embedding",
        r"^norm_in": "visual.ln_pre",
        r"^norm_out": "visual.ln_post",
        r"^projection\.weight$": "visual.proj",
        r"^blocks": "visual.transformer.resblocks",
        r"\.norm([12])": r".ln_\1",
        r"attention\.qkv\.": "attn.in_proj_",
        r"attention\.out": "attn.out_proj",
        r"mlp_in": "mlp.c_fc",
        r"mlp_out": "mlp.c_proj",
    },
    "transformers": {
        r"^patches\.": "vision_model.embeddings.patch_embedding.",
        r"^class_token$": "vision_model.embeddings.class_embedding",
        r"^position_embedding$": "vision_model.embeddings.position_embedding.weight",
        r"^norm_in": "vision_model.pre_layrnorm",  # sic
        r"^norm_out": "vision_model.post_layernorm",
        r"^projection": "visual_projection",
        r"^blocks": "vision_model.encoder.layers",
        r"\.norm([12])": r".layer_norm\1",
        r"attention\.qkv": "self_attn.qkv_proj",
        r"attention\.out": "self_attn.out_proj",
        r"mlp_in": "mlp.fc1",
        r"mlp_out": "mlp.fc2",
    },
}


def entries(encoder: VisionEncoder, source: Source = "openclip") -> list[Entry]:
    """The table of one model, for `mapping.load` and `mapping.save`.

    Args:
        encoder: the model, possibly abstract.
        source: whose names.
    """
    patches = _patches(encoder.config.patch)

    def entry(ours: str) -> Entry:
        theirs = mapping.rename(ours, _RULES[source])
        kernel = ours.endswith("kernel")
        if ours.startswith("patches"):
            return Entry(ours, theirs, patches)
        if ".qkv." in ours and source == "openclip":
            return Entry(ours, theirs, mapping.fused(3))
        if ".qkv." in ours:
            names = tuple(theirs.replace("qkv_", f"{letter}_") for letter in "qkv")
            return Entry(ours, names, mapping.linear if kernel else mapping.same)
        # OpenCLIP multiplies from the left, as we do.
        as_is = not kernel or theirs == "visual.proj"
        return Entry(ours, theirs, mapping.same if as_is else mapping.linear)

    return [entry(path) for path in mapping.shapes(encoder)]


def sizes(shapes: Shapes, source: Source, *, heads: int | None = None) -> VisionConfig:
    """The config that a checkpoint's names and shapes belong to.

    Args:
        shapes: of the checkpoint.
        source: whose names.
        heads: of the attention, which shapes do not tell; None: those of ViT-H/14
            where it is as wide, else 64 wide ones.

    Raises:
        InputError: names that the sizes are read from are missing.
    """

    def shape(ours: str) -> tuple[int, ...]:
        return mapping.shape(shapes, mapping.rename(ours, _RULES[source]))

    (width,) = shape("class_token")
    patch = shape("patches.kernel")[-1]
    place = mapping.rename("blocks", _RULES[source])
    numbers = [re.match(rf"{re.escape(place)}\.(\d+)\.", name) for name in shapes]
    projection = shape("projection.kernel")
    known = VISION_PRESETS["vit_h_14"]
    return VisionConfig(
        size=patch * math.isqrt(shape("position_embedding")[0] - 1),
        patch=patch,
        width=width,
        heads=heads or (known.heads if width == known.width else max(width // 64, 1)),
        layers=len({match[1] for match in numbers if match}),
        mlp_ratio=shape("blocks.0.mlp_in.kernel")[0] // width,
        features=projection[0 if source == "transformers" else 1],
    )


def load(encoder: VisionEncoder, theirs: Arrays, source: Source = "openclip") -> dict:
    """A foreign checkpoint by our paths, ready for `mapping.assign`.

    Args:
        encoder: the model, possibly abstract.
        theirs: the checkpoint, of the whole CLIP or of this tower.
        source: whose names they are.

    Raises:
        InputError: names or shapes do not fit, told in the foreign names.
    """
    own = {k: x for k, x in theirs.items() if k.startswith("vis")}
    own.pop("vision_model.embeddings.position_ids", None)  # a constant
    return mapping.load(entries(encoder, source), own, mapping.shapes(encoder))


def save(encoder: VisionEncoder, source: Source = "openclip") -> dict[str, np.ndarray]:
    """The parameters of a model by foreign names."""
    return mapping.save(entries(encoder, source), mapping.flatten(encoder))


def _patches(side: int) -> Layout:
    """`[o, 3, p, p]` <-> `[p * p * 3, o]`: a convolution over whole patches."""
    return Layout(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1),
    )
