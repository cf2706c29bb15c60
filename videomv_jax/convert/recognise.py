"""Which networks some tensors are, from their names: nothing is guessed.

A file may hold several (VideoMV's holds a UNet and LGM). Each tensor ends in one of
three places: used by a network, dropped for a reason, or unexpected.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from videomv_jax.convert import clip, lpips, mapping, reconstructor, unet, vae, vision
from videomv_jax.convert.mapping import Entry
from videomv_jax.convert.sources import Source
from videomv_jax.types import InputError
from videomv_jax.weights import Tensor


@dataclasses.dataclass(frozen=True)
class Kind:
    """One network in one naming.

    Attributes:
        part: which part of a model it becomes.
        what: said to people.
        layout: the naming, as the tables in this room call it.
        markers: names that must be there, without the prefix.
        names: pattern of the names that belong to it, without the prefix.
        prefix: of all its names in the file.
        reasons: patterns of names it has no use for, and why.
    """

    part: str
    what: str
    layout: str
    markers: tuple[str, ...]
    names: str
    prefix: str = ""
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


_UNET = (
    r"(time_embed|camera_embedding|fps_embedding|(in|out)put_blocks|middle_block|out"
)
_PHOTO_UNET = _UNET + r"|local_\w+|context_embedding)\..*"
_PHOTO_MARKERS = ("input_blocks.0.0.weight", "local_image_concat.0.weight")
_LOSS = {r"(lpips_)?loss\..*": "the loss of its training"}
_VAE = r"((en|de)coder|(post_)?quant_conv|loss)\..*"
_TEXT = r"(embeddings|encoder|final_layer_norm)\..*"
_CLIP = r"text_projection(\.weight)?|logit_scale|attn_mask"
_VGG = r"(features|classifier|lins?\d*|net|scaling_layer)\..*"

# The first that fits a prefix counts, so the more particular ones come first.
KINDS = (
    Kind(
        "unet",
        "image-to-views UNet of VideoMV",
        "videomv",
        (*_PHOTO_MARKERS, "camera_embedding.0.weight"),
        _PHOTO_UNET,
    ),
    Kind(
        "unet",
        "image-to-video UNet of I2VGen-XL",
        "videomv",
        _PHOTO_MARKERS,
        _PHOTO_UNET,
    ),
    Kind(
        "unet",
        "image-to-video UNet of I2VGen-XL (diffusers)",
        "diffusers",
        ("transformer_in.norm.weight", "image_latents_proj_in.0.weight"),
        r".*",
    ),
    Kind(
        "unet",
        "text-to-views UNet of VideoMV",
        "videomv",
        ("input_blocks.0.0.weight", "camera_embedding.0.weight"),
        _UNET + r")\..*",
    ),
    Kind(
        "unet",
        "text-to-video UNet of ModelScope",
        "videomv",
        ("input_blocks.0.0.weight",),
        _UNET + r")\..*",
    ),
    Kind(
        "unet",
        "text-to-video UNet of ModelScope (diffusers)",
        "diffusers",
        ("conv_in.weight", "transformer_in.norm.weight"),
        r".*",
    ),
    Kind(
        "reconstructor",
        "LGM within VideoMV",
        "videomv",
        ("unet.conv_in.weight", "unet.down_blocks.0.nets.0.conv1.weight"),
        r".*",
        prefix="lgm_big.",
        reasons=_LOSS,
    ),
    Kind(
        "reconstructor",
        "LGM",
        "lgm",
        ("unet.conv_in.weight", "unet.down_blocks.0.nets.0.conv1.weight"),
        r"(unet|conv|lpips_loss)\..*",
        reasons=_LOSS,
    ),
    Kind(
        "vae",
        "autoencoder of Stable Diffusion",
        "original",
        ("encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"),
        r".*",
        prefix=vae.PREFIX,
    ),
    Kind(
        "vae",
        "autoencoder of Stable Diffusion",
        "original",
        ("encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"),
        _VAE,
        reasons=_LOSS,
    ),
    Kind(
        "vae",
        "autoencoder of Stable Diffusion (diffusers)",
        "diffusers",
        ("encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
        _VAE,
    ),
    Kind(
        "image_encoder",
        "OpenCLIP's image tower",
        "openclip",
        ("visual.class_embedding", "visual.transformer.resblocks.0.ln_1.weight"),
        r"visual\..*",
    ),
    Kind(
        "image_encoder",
        "CLIP's image tower (transformers)",
        "transformers",
        ("vision_model.encoder.layers.0.layer_norm1.bias",),
        r"(vision_model|visual_projection)\..*",
        reasons={r"vision_model\.embeddings\.position_ids": "a constant"},
    ),
    Kind(
        "text_encoder",
        "OpenCLIP",
        "openclip",
        ("token_embedding.weight", "transformer.resblocks.0.ln_1.weight"),
        r"(token_embedding|transformer|ln_final)\..*|positional_embedding|" + _CLIP,
    ),
    *(
        Kind(
            "text_encoder",
            "CLIP (transformers)",
            "transformers",
            ("embeddings.token_embedding.weight", "encoder.layers.0.layer_norm1.bias"),
            _TEXT,
            prefix=prefix,
        )
        for prefix in (clip.PREFIX, "")
    ),
    Kind("lpips", "VGG16", "lpips", ("features.0.weight",), _VGG),
    Kind("lpips", "LPIPS", "lpips", ("net.slice1.0.weight",), _VGG),
    Kind("lpips", "heads of LPIPS", "lpips", ("lin0.model.1.weight",), _VGG),
)


@dataclasses.dataclass(frozen=True)
class Network:
    """Tensors of a source that are one network, or a piece of one.

    Attributes:
        kind: which network, in which naming.
        source: where they come from.
        tensors: by the names of the tables in this room.
        names: those names to the names in the file.
        dropped: names in the file that it has no use for, with the reason.
    """

    kind: Kind
    source: Source
    tensors: dict[str, Tensor]
    names: dict[str, str]
    dropped: dict[str, str]


def networks(
    source: Source, drop: Iterable[re.Pattern] = ()
) -> tuple[list[Network], dict[str, str], list[str]]:
    """Sort the tensors of a source.

    Args:
        source: what to look at.
        drop: names that the user does not want.

    Returns:
        The networks; other names that are dropped, with the reason; names that
        belong to nothing known.
    """
    dropped = dict(source.dropped)
    rest = {}
    for name in source.tensors:
        if any(pattern.fullmatch(name) for pattern in drop):
            dropped[name] = "dropped on request"
        else:
            rest[name] = name.removeprefix("module.")  # of DataParallel
    found = []
    for kind in KINDS:
        own = {
            name: plain.removeprefix(kind.prefix)
            for name, plain in rest.items()
            if plain.startswith(kind.prefix)
        }
        there = set(own.values())
        if not there.issuperset(kind.markers):
            continue
        own = {n: own[n] for n in own if re.fullmatch(kind.names, own[n])}
        if kind.part == "text_encoder":
            # What a file of the whole CLIP holds beside its text states.
            beside = {n: p for n, p in rest.items() if re.fullmatch(_CLIP, p)}
            own |= beside
        rest = {name: plain for name, plain in rest.items() if name not in own}
        found.append(_network(kind, source, own))
        if kind.prefix == vae.PREFIX:
            dropped |= dict.fromkeys(rest, "beside the autoencoder in its file")
            rest = {}
    return found, dropped, list(rest)


def _network(kind: Kind, source: Source, own: dict[str, str]) -> Network:
    reasons = {
        name: reason
        for name, plain in own.items()
        for pattern, reason in kind.reasons.items()
        if re.fullmatch(pattern, plain)
    }
    if kind.part == "lpips":
        drop = lpips.unused(own.values())
        reasons |= {n: drop[plain] for n, plain in own.items() if plain in drop}
    rename = {"lpips": lpips.canonical, "vae": vae.canonical}
    canonical = rename.get(kind.part, lambda name: name)
    names = {canonical(own[n]): n for n in own if n not in reasons}
    tensors = {plain: source.tensors[name] for plain, name in names.items()}
    return Network(kind, source, tensors, names, reasons)


def sizes(
    kind: Kind, shapes: mapping.Shapes, config: Mapping[str, Any], **known: Any
) -> Any:
    """The config of a network from its shapes and what else is known.

    Args:
        kind: the network.
        shapes: by the names of the tables in this room.
        config: of the foreign folder; {} where there is none.
        known: sizes that shapes do not tell, which the user gave.

    Raises:
        InputError: the sizes cannot be told, or the foreign config asks for what our
            network does not compute.
    """
    told = {k: v for k, v in _told(kind, config).items() if v is not None} | known
    if kind.part == "unet":
        return unet.sizes(shapes, _any(kind.layout), **told)
    if kind.part == "vae":
        return vae.sizes(shapes, _any(kind.layout), **told)
    if kind.part == "text_encoder":
        return clip.sizes(shapes, _any(kind.layout), **told)
    if kind.part == "image_encoder":
        return vision.sizes(shapes, _any(kind.layout), **told)
    if kind.part == "reconstructor":
        within = kind.layout == "videomv"
        return reconstructor.sizes(shapes, within_videomv=within, **told)
    return lpips.sizes(shapes)


KNOWN = {
    "unet": ("head_dim", "groups"),
    "vae": ("groups", "scale_factor"),
    "text_encoder": ("heads",),
    "image_encoder": ("heads",),
    "reconstructor": ("heads", "groups"),
}
"""Sizes of each part that shapes do not tell, for `sizes`."""


def _told(kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a foreign config says of sizes that shapes do not tell."""
    if kind.part == "unet":
        return {
            # diffusers' models for photos call it by either name.
            "head_dim": config.get("attention_head_dim")
            or config.get("num_attention_heads"),
            "groups": config.get("norm_num_groups"),
        }
    if kind.part == "vae":
        return {
            "groups": config.get("norm_num_groups"),
            "scale_factor": config.get("scaling_factor"),
        }
    if kind.part in ("text_encoder", "image_encoder"):
        tower = {"text_encoder": "text_config", "image_encoder": "vision_config"}
        own = config.get(tower[kind.part]) or config
        act = own.get("hidden_act", "gelu")
        if act != "gelu":
            raise InputError(
                f"{kind.part}: config.json says hidden_act {act!r}; only OpenCLIP's "
                "exact 'gelu' is computed here"
            )
        return {"heads": own.get("num_attention_heads")}
    return {}


def table(kind: Kind, module: Any) -> list[Entry]:
    """The names of a network's parameters, see `mapping`."""
    if kind.part == "unet":
        return unet.entries(module, _any(kind.layout))
    if kind.part == "vae":
        return vae.entries(module, _any(kind.layout))
    if kind.part == "text_encoder":
        return clip.entries(module, _any(kind.layout))
    if kind.part == "image_encoder":
        return vision.entries(module, _any(kind.layout))
    if kind.part == "reconstructor":
        return reconstructor.entries(module)
    return lpips.entries(module)


def _any(layout: str) -> Any:
    return layout
