"""The synthetic set: captions that determine objects, and their rendered orbits."""

from videomv_jax.data.synthetic.build import build_scene
from videomv_jax.data.synthetic.catalogue import CATEGORIES
from videomv_jax.data.synthetic.grammar import Description, Paint, parse
from videomv_jax.data.synthetic.renderer import render_orbit
from videomv_jax.data.synthetic.sampling import (
    heldout_captions,
    sample,
    sample_descriptions,
    sample_one,
    split_of,
)
from videomv_jax.data.synthetic.scene import Scene, stack_scenes

__all__ = [
    "CATEGORIES",
    "Description",
    "Paint",
    "Scene",
    "build_scene",
    "heldout_captions",
    "parse",
    "render_orbit",
    "sample",
    "sample_descriptions",
    "sample_one",
    "split_of",
    "stack_scenes",
]
