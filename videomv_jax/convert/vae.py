"""Checkpoints of the autoencoder: the original's names and diffusers'.

The original (CompVis) file holds a whole model, of which the autoencoder is the part
under `first_stage_model.`. Levels of ours follow the order in which they run, as in
diffusers; the original counts those of the decoder from the highest resolution.
"""

import itertools
import re
from typing import Literal

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Arrays, Entry, Layout, Shapes
from videomv_jax.models.vae import VAE, VAEConfig
from videomv_jax.types import InputError

Source = Literal["original", "diffusers"]

PREFIX = "first_stage_model."

_DIFFUSERS = {
    r"encoder\.levels\.(\d+)\.blocks": r"encoder.down_blocks.\1.resnets",
    r"encoder\.downsamples\.(\d+)": r"encoder.down_blocks.\1.downsamplers.0.conv",
    r"decoder\.levels\.(\d+)\.blocks": r"decoder.up_blocks.\1.resnets",
    r"decoder\.upsamples\.(\d+)": r"decoder.up_blocks.\1.upsamplers.0",
    r"middle\.blocks\.0": "mid_block.resnets.0",
    r"middle\.blocks\.2": "mid_block.resnets.1",
    r"middle\.blocks\.1(\.attention)?": "mid_block.attentions.0",
    r"attentions\.0\.norm": "attentions.0.group_norm",
    r"attentions\.0\.qkv": "attentions.0.to_qkv",
    r"attentions\.0\.out": "attentions.0.to_out.0",
    r"norm_out": "conv_norm_out",
    r"shortcut": "conv_shortcut",
    r"^(post_)?quant": r"\1quant_conv",
}

# Names of the attention's layers in diffusers files older than its version 0.17.
_OUTDATED = {
    r"(attentions\.0)\.query\b": r"\1.to_q",
    r"(attentions\.0)\.key\b": r"\1.to_k",
    r"(attentions\.0)\.value\b": r"\1.to_v",
    r"(attentions\.0)\.proj_attn\b": r"\1.to_out.0",
}


def entries(vae: VAE, source: Source = "original") -> list[Entry]:
    """The table of one model, for `mapping.load` and `mapping.save`.

    Args:
        vae: the model, possibly abstract.
        source: whose names; the original's are without `first_stage_model.`.
    """
    top = len(vae.config.multipliers) - 1
    rules = _DIFFUSERS if source == "diffusers" else _original(top)

    def entry(ours: str, shape: tuple[int, ...]) -> Entry:
        theirs, layout = mapping.rename(ours, rules), _layout(ours, shape, source)
        if ".qkv." not in ours:
            return Entry(ours, theirs, layout)
        return Entry(ours, tuple(theirs.replace("qkv", x) for x in "qkv"), layout)

    return [entry(*item) for item in mapping.shapes(vae).items()]


def canonical(name: str) -> str:
    """A name of an older diffusers file as it is now; others stay as they are."""
    return mapping.rename(name, _OUTDATED)


def sizes(
    shapes: Shapes, source: Source, *, groups: int = 32, scale_factor: float = 0.18215
) -> VAEConfig:
    """The config that a checkpoint's names and shapes belong to.

    Args:
        shapes: of the checkpoint, by canonical names without a prefix.
        source: whose names.
        groups, scale_factor: what shapes do not tell; the released values.

    Raises:
        InputError: names that the sizes are read from are missing, or the widths do
            not go with `groups`.
    """
    level, block = {
        "original": ("encoder.down", "block"),
        "diffusers": ("encoder.down_blocks", "resnets"),
    }[source]
    channels = mapping.shape(shapes, "encoder.conv_in.weight")[0]
    widths = [shapes[n][0] for n in _counted(shapes, level + ".{}." + block + _FIRST)]
    blocks = _counted(shapes, f"{level}.0.{block}." + "{}.conv2.weight")
    if not widths or any(width % channels for width in widths):
        raise InputError(
            f"the autoencoder's levels are {widths} wide; want multiples of {channels}"
        )
    return VAEConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        layers=len(list(blocks)),
        latent_channels=mapping.shape(shapes, "post_quant_conv.weight")[0],
        groups=groups,
        scale_factor=scale_factor,
    )


_FIRST = ".0.conv2.weight"


def _counted(shapes: Shapes, pattern: str) -> list[str]:
    """Names that a pattern gives for 0, 1, 2 ... as far as there are any."""
    names = map(pattern.format, itertools.count())
    return list(itertools.takewhile(shapes.__contains__, names))


def load(vae: VAE, theirs: Arrays, source: Source = "original") -> dict:
    """A foreign checkpoint by our paths, ready for `mapping.assign`.

    Args:
        vae: the model, possibly abstract.
        theirs: the checkpoint. If names of an original one carry the prefix
            `first_stage_model.`, all others are ignored. Outdated names of
            diffusers' attention are understood.
        source: whose names they are.

    Raises:
        InputError: names or shapes do not fit, told in the foreign names.
    """
    if source == "diffusers":
        own = {canonical(name): x for name, x in theirs.items()}
    else:
        own = mapping.under(PREFIX, theirs) or theirs
    return mapping.load(entries(vae, source), own, mapping.shapes(vae))


def save(vae: VAE, source: Source = "original") -> dict:
    """The parameters of a model by foreign names, without a prefix."""
    return mapping.save(entries(vae, source), mapping.flatten(vae))


def _original(top: int) -> dict:
    """Rules for a decoder whose lowest resolution is level `top`."""

    def up(match: re.Match) -> str:
        part = "block" if match[1] == "levels" else "upsample"
        return f"decoder.up.{top - int(match[2])}.{part}"

    return {
        r"encoder\.levels\.(\d+)\.blocks": r"encoder.down.\1.block",
        r"encoder\.downsamples\.(\d+)": r"encoder.down.\1.downsample.conv",
        r"decoder\.(levels|upsamples)\.(\d+)(\.blocks)?": up,
        r"middle\.blocks\.0": "mid.block_1",
        r"middle\.blocks\.2": "mid.block_2",
        r"middle\.blocks\.1(\.attention)?": "mid.attn_1",
        r"attn_1\.out": "attn_1.proj_out",
        r"shortcut": "nin_shortcut",
        r"^(post_)?quant": r"\1quant_conv",
    }


def _layout(ours: str, shape: tuple[int, ...], source: Source) -> Layout:
    if not ours.endswith("kernel"):
        return mapping.same
    if len(shape) == 4:
        return mapping.conv
    dense = source == "diffusers" and ".attention." in ours
    return mapping.linear if dense else mapping.conv1x1_to_linear
