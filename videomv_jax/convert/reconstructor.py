"""Checkpoints of the reconstructor: LGM's, alone or within VideoMV's files."""

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Arrays, Entry, Layout
from videomv_jax.models.reconstructor import Reconstructor

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
