"""The UNet's parameters in VideoMV's and in diffusers' checkpoints.

VideoMV (and ModelScope before it) numbers the blocks of each half in one list.
diffusers (`UNet3DConditionModel`, for photos `I2VGenXLUNet`) nests them by level, as we
do, but keeps residual blocks, transformers and their temporal parts in parallel lists.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from flax import nnx

from videomv_jax.convert import image_condition, mapping
from videomv_jax.convert.mapping import Arrays, Entry, Layout, Shapes
from videomv_jax.models.unet import Embedding, UNet, UNetConfig
from videomv_jax.types import InputError

Source = Literal["videomv", "diffusers"]

# Layer within a block: our name, VideoMV's, diffusers' where it differs.
_ROWS = (
    ("norm1", "in_layers.0", "norm1"),
    ("conv1", "in_layers.2", "conv1"),
    ("embed", "emb_layers.1", "time_emb_proj"),
    ("norm2", "out_layers.0", "norm2"),
    ("conv2", "out_layers.3", "conv2"),
    ("skip", "skip_connection", "conv_shortcut"),
    *((f"norms.{i}", f"conv{i + 1}.0") for i in range(4)),
    # The first convolution has no dropout before it, which would count.
    *((f"convs.{i}", f"conv{i + 1}.{3 if i else 2}") for i in range(4)),
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("proj_out", "proj_out"),
    *((f"block.norm{i}", f"transformer_blocks.0.norm{i}") for i in (1, 2, 3)),
    *((f"block.attn{i}.q", f"transformer_blocks.0.attn{i}.to_q") for i in (1, 2)),
    *((f"block.attn{i}.out", f"transformer_blocks.0.attn{i}.to_out.0") for i in (1, 2)),
    ("block.ff.gated", "transformer_blocks.0.ff.net.0.proj"),
    ("block.ff.out", "transformer_blocks.0.ff.net.2"),
    ("", ""),
)
_LAYERS = {
    ours: {"videomv": names[0], "diffusers": names[-1]} for ours, *names in _ROWS
}


def entries(unet: UNet, source: Source = "videomv") -> list[Entry]:
    """The table of one model, for `mapping.load` and `mapping.save`.

    Args:
        unet: the model, possibly abstract.
        source: whose names. diffusers has no embedding of cameras: its table leaves
            that of ours out.
    """
    places = {
        ours: {"videomv": videomv, "diffusers": diffusers}[source]
        for ours, videomv, diffusers in _places(unet.config)
    }
    paths = list(mapping.shapes(unet))
    photo = [path for path in paths if path.startswith(image_condition.PREFIX)]
    rest = [path for path in paths if path not in photo]
    return translate(rest, places, source) + image_condition.entries(photo, source)


def translate(
    paths: Iterable[str], places: Mapping[str, str | None], source: Source
) -> list[Entry]:
    """The table of some blocks.

    Args:
        paths: of our parameters.
        places: our prefix to the foreign one, None for what the source lacks; the
            longest prefix counts.
        source: whose names are used within the blocks.
    """
    rows = (_entry(path, places, source) for path in paths)
    return [row for row in rows if row is not None]


def sizes(
    shapes: Shapes, source: Source, *, head_dim: int = 64, groups: int = 32
) -> UNetConfig:
    """The config that a checkpoint's names and shapes belong to.

    Args:
        shapes: of the checkpoint.
        source: whose names.
        head_dim, groups: what shapes do not tell; the released values.

    Raises:
        InputError: names that the sizes are read from are missing, or the widths do
            not go with head_dim and groups.
    """
    conv_in = {"videomv": "input_blocks.0.0", "diffusers": "conv_in"}[source]
    inner = {"videomv": "input_blocks.0.1", "diffusers": "transformer_in"}[source]
    out = {"videomv": "out.2", "diffusers": "conv_out"}[source]
    dim, in_channels = mapping.shape(shapes, f"{conv_in}.weight")[:2]
    levels: list[list[int]] = [[]]  # widths of the residual blocks of each level
    attention = set()
    for block in itertools.count():
        if source == "videomv":
            place = f"input_blocks.{block + 1}"
            conv, spatial = f"{place}.0.in_layers.2.weight", f"{place}.1.norm.weight"
            if f"{place}.op.weight" in shapes:
                levels.append([])
                continue
        else:
            place = f"down_blocks.{len(levels) - 1}"
            conv = f"{place}.resnets.{len(levels[-1])}.conv1.weight"
            spatial = f"{place}.attentions.{len(levels[-1])}.norm.weight"
            if conv not in shapes and f"{place}.downsamplers.0.conv.weight" in shapes:
                levels.append([])
                continue
        if conv not in shapes:
            break
        if spatial in shapes:
            attention.add(len(levels) - 1)
        levels[-1].append(shapes[conv][0])
    name = {"videomv": "input_blocks.1.1", "diffusers": "down_blocks.0.attentions.0"}
    text = f"{name[source]}.transformer_blocks.0.attn2.to_k.weight"
    heads = mapping.shape(shapes, f"{inner}.proj_in.weight")[0]
    if not all(levels) or any(level[0] % dim for level in levels) or heads % head_dim:
        raise InputError(
            f"the UNet's widths {[dim, *levels]} and {heads} do not fit together; if "
            f"heads are not {head_dim} wide, set unet.head_dim"
        )
    camera = shapes.get("camera_embedding.0.weight")
    image = image_condition.sizes(shapes, source)
    return UNetConfig(
        # Of a UNet for photos half the channels are features of the photo.
        in_channels=in_channels // 2 if image else in_channels,
        out_channels=mapping.shape(shapes, f"{out}.weight")[0],
        dim=dim,
        multipliers=tuple(level[0] // dim for level in levels),
        res_blocks=len(levels[0]),
        attention_levels=len(attention),
        head_dim=head_dim,
        num_heads=heads // head_dim,
        context_dim=mapping.shape(shapes, text)[1],
        camera_dim=camera[1] if camera else 16,
        fps_condition="fps_embedding.0.weight" in shapes,
        image=image,
        groups=groups,
    )


def fresh_cameras(config: UNetConfig) -> dict[str, np.ndarray]:
    """An embedding of cameras for a checkpoint without one, by our paths.

    Its last layer is zero, as where VideoMV's training started: cameras have no
    effect until they are trained.
    """
    embedding = nnx.Dict(
        camera_embedding=Embedding(
            config.camera_dim, 4 * config.dim, zero=True, rngs=nnx.Rngs(0)
        )
    )
    return mapping.flatten(embedding)


def load(unet: UNet, theirs: Arrays, source: Source = "videomv") -> dict:
    """A foreign checkpoint by our paths, ready for `mapping.assign`.

    From diffusers, which has no embedding of cameras, add that of the model itself:
    `assign(unet, flatten(unet) | load(unet, theirs, "diffusers"))`.

    Raises:
        InputError: names or shapes do not fit, told in the foreign names.
    """
    return mapping.load(entries(unet, source), theirs, mapping.shapes(unet))


def save(unet: UNet, source: Source = "videomv") -> dict:
    """The parameters of a model by foreign names; diffusers gets no cameras."""
    flat = mapping.flatten(unet)
    table = entries(unet, source)
    return mapping.save(table, {entry.ours: flat[entry.ours] for entry in table})


def _places(config: UNetConfig) -> Iterator[tuple[str, str, str | None]]:
    """Where each block lives: our prefix, VideoMV's, diffusers'."""
    yield "time_embedding.hidden", "time_embed.0", "time_embedding.linear_1"
    yield "time_embedding.out", "time_embed.2", "time_embedding.linear_2"
    for layer, n in (("hidden", 0), ("out", 2)):
        yield f"camera_embedding.{layer}", f"camera_embedding.{n}", None
        # Of diffusers' models only the one for photos has it.
        yield f"fps_embedding.{layer}", f"fps_embedding.{n}", f"fps_embedding.{n}"
    yield "conv_in", "input_blocks.0.0", "conv_in"
    yield "temporal_in", "input_blocks.0.1", "transformer_in"
    last, count = len(config.multipliers) - 1, 1
    for i in range(last + 1):
        for j in range(config.res_blocks):
            ours = f"down.{i}.stages.{j}"
            yield from _stage(ours, f"input_blocks.{count}", f"down_blocks.{i}", j)
            count += 1
        if i < last:
            shrink = f"down_blocks.{i}.downsamplers.0.conv"
            yield f"down.{i}.resample", f"input_blocks.{count}.op", shrink
            count += 1
    for j, (ours, n) in enumerate((("first", 0), ("last", 3))):
        theirs = f"middle_block.{n}"
        yield f"middle.{ours}", theirs, f"mid_block.resnets.{j}"
        convs = f"mid_block.temp_convs.{j}"
        yield f"middle.{ours}.temporal", f"{theirs}.temopral_conv", convs
    yield "middle.spatial", "middle_block.1", "mid_block.attentions.0"
    yield "middle.temporal", "middle_block.2", "mid_block.temp_attentions.0"
    count = 0
    for i in range(last + 1):
        for j in range(config.res_blocks + 1):
            ours = f"up.{i}.stages.{j}"
            yield from _stage(ours, f"output_blocks.{count}", f"up_blocks.{i}", j)
            count += 1
        if i < last:
            place = 3 if last - i < config.attention_levels else 1
            theirs = f"output_blocks.{count - 1}.{place}.conv"
            yield f"up.{i}.resample", theirs, f"up_blocks.{i}.upsamplers.0.conv"
    yield "norm_out", "out.0", "conv_norm_out"
    yield "conv_out", "out.2", "conv_out"


def _stage(ours, videomv, diffusers, j) -> Iterator[tuple[str, str, str]]:
    yield f"{ours}.res", f"{videomv}.0", f"{diffusers}.resnets.{j}"
    convs = f"{diffusers}.temp_convs.{j}"
    yield f"{ours}.res.temporal", f"{videomv}.0.temopral_conv", convs
    yield f"{ours}.spatial", f"{videomv}.1", f"{diffusers}.attentions.{j}"
    yield f"{ours}.temporal", f"{videomv}.2", f"{diffusers}.temp_attentions.{j}"


def _entry(path: str, places: Mapping[str, str | None], source: Source) -> Entry | None:
    prefix = max((p for p in places if path.startswith(f"{p}.")), key=len)
    place = places[prefix]
    if place is None:
        return None
    *layer, leaf = path[len(prefix) + 1 :].split(".")
    name = ".".join(layer)
    if layer and layer[-1] in ("qkv", "kv"):
        attention = f"{place}.transformer_blocks.0.{layer[-2]}"
        names = tuple(f"{attention}.to_{letter}.weight" for letter in layer[-1])
        return Entry(path, names, mapping.linear)
    theirs = ".".join(filter(None, (place, _LAYERS[name][source])))
    if leaf == "kernel":
        return Entry(path, f"{theirs}.weight", _kernel(prefix, name, source))
    layout = mapping.fused(2) if layer[-1:] == ["gated"] else mapping.same
    return Entry(path, f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}", layout)


def _kernel(prefix: str, layer: str, source: Source) -> Layout:
    kind = layer.split(".")[-1]
    if layer.startswith("convs."):
        return mapping.conv_frames
    if layer.startswith("conv") or prefix.endswith(("conv_in", "conv_out", "resample")):
        return mapping.conv
    if layer == "skip":
        return mapping.conv1x1_to_linear
    if kind == "gated":
        return mapping.fused(2)
    temporal = prefix.split(".")[-1].startswith("temporal")
    if temporal and layer.startswith("proj_") and source == "videomv":
        return mapping.conv1_to_linear
    return mapping.linear
