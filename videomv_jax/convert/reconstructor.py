"""Checkpoints of the reconstructor: LGM's, alone or within VideoMV's files."""

import itertools

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Arrays, Entry, Layout, Shapes
from videomv_jax.models.reconstructor import Reconstructor, ReconstructorConfig

PREFIX = "lgm_big."

_RULES = {
    r"(down|up)\.(\d+)\.layers\.(\d+)\.block": r"\1_blocks.\2.nets.\3",
    r"(down|up)\.(\d+)\.layers\.(\d+)\.attention": r"\1_blocks.\2.attns.\3",
    r"down\.(\d+)\.resample": r"down_blocks.\1.downsample",
    r"up\.(\d+)\.resample": r"up_blocks.\1.upsample",
    r"middle\.(\d+)\.block": r"mid_block.nets.\1",
    r"middle\.(\d+)\.attention": r"mid_block.attns.\1",
    r"\.attention": ".attn",
    r"\.attn\.out": ".attn.proj",
    r"^mix": "conv",
}


def entries(reconstructor: Reconstructor) -> list[Entry]:
    """The table of one model, for `mapping.load` and `mapping.save`.

    Args:
        reconstructor: the model, possibly abstract.
    """
    shapes = mapping.shapes(reconstructor)
    return [
        Entry(path, mapping.rename(path, _RULES), _layout(path, shape))
        for path, shape in shapes.items()
    ]


def sizes(
    shapes: Shapes, *, heads: int = 16, groups: int = 32, within_videomv: bool = False
) -> ReconstructorConfig:
    """The config that a checkpoint's names and shapes belong to.

    Args:
        shapes: of the checkpoint, without a prefix.
        heads, groups: what shapes do not tell; the released values.
        within_videomv: the weights come with VideoMV's UNet, whose code normalises
            quaternions over the scene; LGM's own does so over each Gaussian.

    Raises:
        InputError: names that the sizes are read from are missing, or the widths do
            not go with heads and groups.
    """

    def way(name: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        widths, attention = [], []
        first = "unet.{}_blocks.{}.nets.0.conv1.weight".format
        while first(name, len(widths)) in shapes:
            norm = f"unet.{name}_blocks.{len(widths)}.attns.0.norm.weight"
            attention.append(norm in shapes)
            widths.append(shapes[first(name, len(widths))][0])
        return tuple(widths), tuple(attention)

    down, down_attention = way("down")
    up, up_attention = way("up")
    layer = "unet.down_blocks.0.nets.{}.conv1.weight".format
    layers = itertools.takewhile(lambda i: layer(i) in shapes, itertools.count())
    return ReconstructorConfig(
        down_channels=down,
        down_attention=down_attention,
        up_channels=up,
        up_attention=up_attention,
        layers=len(list(layers)),
        heads=heads,
        groups=groups,
        quaternion_norm="components" if within_videomv else "gaussian",
    )


def load(reconstructor: Reconstructor, theirs: Arrays) -> dict:
    """A checkpoint of LGM by our paths, ready for `mapping.assign`.

    Args:
        reconstructor: the model, possibly abstract.
        theirs: the checkpoint. If names carry the prefix `lgm_big.`, as in VideoMV's
            files, all others are ignored.

    Raises:
        InputError: names or shapes do not fit, told in the foreign names.
    """
    own = mapping.under(PREFIX, theirs) or theirs
    return mapping.load(entries(reconstructor), own, mapping.shapes(reconstructor))


def save(reconstructor: Reconstructor) -> dict:
    """The parameters of a model by LGM's names, without a prefix."""
    return mapping.save(entries(reconstructor), mapping.flatten(reconstructor))


def _layout(path: str, shape: tuple[int, ...]) -> Layout:
    if not path.endswith("kernel"):
        return mapping.same
    if len(shape) == 4:
        return mapping.conv
    if ".qkv." in path:
        return mapping.fused(3)
    return mapping.linear if ".attention." in path else mapping.conv1x1_to_linear
