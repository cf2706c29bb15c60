"""Names of the reconstructor's checkpoints."""

import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import reconstructor as convert
from videomv_jax.models.reconstructor import PRESETS, Reconstructor
from videomv_jax.types import InputError


def make(preset: str) -> Reconstructor:
    return nnx.eval_shape(lambda: Reconstructor(PRESETS[preset], rngs=nnx.Rngs(0)))


def shaped(arrays):
    return {k: x.shape for k, x in arrays.items()}


@pytest.mark.parametrize("prefix", ["", "lgm_big."])
def test_the_released_file_fits(prefix, checkpoint):
    reconstructor, theirs = make("big"), checkpoint("lgm_big")
    file = {f"{prefix}{k}": x for k, x in theirs.items()}
    if prefix:
        file["time_embed.0.bias"] = np.zeros(4)
    ours = convert.load(reconstructor, file)
    assert shaped(ours) == mapping.shapes(reconstructor)
    back = mapping.save(convert.entries(reconstructor), ours)
    assert shaped(back) == shaped(theirs)


def test_both_ways_are_inverse(numbered):
    reconstructor = make("tiny")
    ours = numbered(mapping.shapes(reconstructor))
    theirs = mapping.save(convert.entries(reconstructor), ours)
    again = convert.load(reconstructor, theirs)
    for path, x in ours.items():
        np.testing.assert_array_equal(again[path], x)


def test_a_wrong_shape_is_told(checkpoint):
    theirs = checkpoint("lgm_big")
    theirs["conv.weight"] = np.zeros((14, 13, 1, 1))
    with pytest.raises(InputError, match=r"conv\.weight \(14, 13, 1, 1\) instead of"):
        convert.load(make("big"), theirs)
