"""Checkpoints of the text encoder: OpenCLIP's names and those of transformers.

An OpenCLIP file holds two towers; what the text encoder does not read is left out,
by name and with the reason (`unused`).
"""

import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Arrays, Entry, Shapes
from videomv_jax.models.clip import TextConfig, TextEncoder

Source = Literal["openclip", "transformers"]

# Published files of transformers before version 5 carry it, later ones do not.
PREFIX = "text_model."

_RULES = {
    "openclip": {
        r"^token_embedding$": "token_embedding.weight",
        r"^position_embedding$": "positional_embedding",
        r"^blocks": "transformer.resblocks",
        r"\.norm([12])": r".ln_\1",
        r"attention\.qkv\.": "attn.in_proj_",
        r"attention\.out": "attn.out_proj",
        r"mlp_in": "mlp.c_fc",
        r"mlp_out": "mlp.c_proj",
        r"^norm_out": "ln_final",
    },
    "transformers": {
        r"^(token|position)_embedding$": r"embeddings.\1_embedding.weight",
        r"^blocks": "encoder.layers",
        r"\.norm([12])": r".layer_norm\1",
        r"attention\.qkv": "self_attn.qkv_proj",
        r"attention\.out": "self_attn.out_proj",
        r"mlp_in": "mlp.fc1",
        r"mlp_out": "mlp.fc2",
        r"^norm_out": "final_layer_norm",
    },
}

_UNUSED = {
    r"(visual|vision_model|visual_projection)\..*": "the image tower",
    r"text_projection(\.weight)?": "makes one vector of a text",
    r"logit_scale": "the scale of the contrastive loss",
    r"attn_mask|embeddings\.position_ids": "a constant",
}


def entries(encoder: TextEncoder, source: Source = "openclip") -> list[Entry]:
    """The table of one model, for `mapping.load` and `mapping.save`.

    Args:
        encoder: the model, possibly abstract.
        source: whose names.
    """

    def entry(ours: str) -> Entry:
        theirs = mapping.rename(ours, _RULES[source])
        kernel = ours.endswith("kernel")
        if ".qkv." not in ours:
            return Entry(ours, theirs, mapping.linear if kernel else mapping.same)
        if source == "openclip":
            return Entry(ours, theirs, mapping.fused(3))
        names = tuple(theirs.replace("qkv_", f"{letter}_") for letter in "qkv")
        return Entry(ours, names, mapping.linear if kernel else mapping.same)

    return [entry(path) for path in mapping.shapes(encoder)]


def unused(theirs: Iterable[str], config: TextConfig) -> dict[str, str]:
    """Names of a checkpoint that the text encoder does not read, with the reason."""
    told = {name: _reason(name.removeprefix(PREFIX), config) for name in theirs}
    return {name: reason for name, reason in told.items() if reason}


def sizes(shapes: Shapes, source: Source, *, heads: int | None = None) -> TextConfig:
    """The config that a checkpoint's names and shapes belong to.

    The last block is skipped where the file is the whole CLIP (it holds what compares
    texts with images) or as deep and wide as ViT-H/14's text tower. Files made for
    diffusion models have lost that block: all of theirs are kept.

    Args:
        shapes: of the checkpoint, without the prefix `text_model.`.
        source: whose names.
        heads: of the attention, which shapes do not tell; None: 64 wide ones.

    Raises:
        InputError: names that the sizes are read from are missing.
    """
    rules = _RULES[source]

    def shape(ours: str) -> tuple[int, ...]:
        return mapping.shape(shapes, mapping.rename(ours, rules))

    vocab, width = shape("token_embedding")
    blocks = {
        int(match[1])
        for name in shapes
        if (
            match := re.match(
                r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)", name
            )
        )
    }
    layers = max(blocks, default=-1) + 1
    whole = any(re.match(r"text_projection|logit_scale|visual", n) for n in shapes)
    released = (layers, width) == (24, 1024)
    return TextConfig(
        vocab=vocab,
        length=shape("position_embedding")[0],
        width=width,
        heads=heads or max(width // 64, 1),
        layers=layers,
        mlp_ratio=shape("blocks.0.mlp_in.kernel")[0] // width,
        skip_last=int(whole or released),
    )


def load(encoder: TextEncoder, theirs: Arrays, source: Source = "openclip") -> dict:
    """A foreign checkpoint by our paths, ready for `mapping.assign`.

    Args:
        encoder: the model, possibly abstract.
        theirs: the checkpoint; names that `unused` tells are left out, and so is the
            prefix `text_model.`.
        source: whose names they are. Files made for diffusion models lack the
            skipped block, those of the whole CLIP have it; both are read.

    Raises:
        InputError: names or shapes do not fit, told in the foreign names.
    """
    drop = unused(theirs, encoder.config)
    own = {k.removeprefix(PREFIX): x for k, x in theirs.items() if k not in drop}
    return mapping.load(entries(encoder, source), own, mapping.shapes(encoder))


def save(encoder: TextEncoder, source: Source = "openclip") -> dict[str, np.ndarray]:
    """The parameters of a model by foreign names, without a prefix."""
    return mapping.save(entries(encoder, source), mapping.flatten(encoder))


def _reason(name: str, config: TextConfig) -> str | None:
    kept = config.layers - config.skip_last
    block = re.match(r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)\.", name)
    if block and kept <= int(block[1]) < config.layers:
        return f"a block after the first {kept}, whose output is read"
    for pattern, reason in _UNUSED.items():
        if re.fullmatch(pattern, name):
            return reason
    return None
