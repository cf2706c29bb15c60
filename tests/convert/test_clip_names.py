"""Names of the text encoder's checkpoints."""

import collections
import dataclasses

import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import clip as convert
from videomv_jax.convert import mapping
from videomv_jax.models.clip import PRESETS, TextConfig, TextEncoder
from videomv_jax.types import InputError

SOURCES = {"openclip": "open_clip_vit_h_14", "transformers": "diffusers_text_encoder"}
RELEASED = PRESETS["vit_h_14"]
SMALL = TextConfig(vocab=8, length=4, width=4, heads=2, layers=2, skip_last=0)


def make(config: TextConfig) -> TextEncoder:
    return nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0)))


def shaped(arrays):
    return {k: x.shape for k, x in arrays.items()}


@pytest.mark.parametrize("source", SOURCES)
def test_the_released_file_fits(source, checkpoint):
    encoder, theirs = make(RELEASED), checkpoint(SOURCES[source])
    ours = convert.load(encoder, theirs, source)
    assert shaped(ours) == mapping.shapes(encoder)
    back = mapping.save(convert.entries(encoder, source), ours)
    dropped = convert.unused(theirs, RELEASED)
    assert shaped(back) == shaped({k: theirs[k] for k in theirs if k not in dropped})


def test_what_is_left_out_has_a_reason(checkpoint):
    theirs = checkpoint("open_clip_vit_h_14")
    dropped = convert.unused(theirs, RELEASED)
    reasons = collections.Counter(dropped.values())
    assert reasons.pop("the image tower") == sum(
        k.startswith("visual.") for k in theirs
    )
    assert dropped.keys() >= {"text_projection", "logit_scale"}
    block = "transformer.resblocks.23."
    assert reasons.pop(dropped[f"{block}ln_1.bias"]) == 12
    assert sum(k.startswith(block) for k in theirs) == 12
    assert sum(reasons.values()) == 2
    whole = dataclasses.replace(RELEASED, skip_last=0)
    kept = convert.unused(theirs, whole)
    assert dropped.keys() - kept.keys() == {k for k in theirs if k.startswith(block)}


@pytest.mark.parametrize("source", SOURCES)
def test_both_ways_are_inverse(source, numbered):
    encoder = make(SMALL)
    ours = numbered(mapping.shapes(encoder))
    theirs = mapping.save(convert.entries(encoder, source), ours)
    again = convert.load(encoder, theirs, source)
    for path, x in ours.items():
        np.testing.assert_array_equal(again[path], x)


def test_prefix_constants_and_the_skipped_block_of_transformers(numbered):
    whole, encoder = make(SMALL), make(dataclasses.replace(SMALL, skip_last=1))
    ours = numbered(mapping.shapes(whole))
    theirs = mapping.save(convert.entries(whole, "transformers"), ours)
    theirs["embeddings.position_ids"] = np.arange(4)[None]
    prefixed = {f"text_model.{k}": x for k, x in theirs.items()}
    for names in (theirs, prefixed):
        again = convert.load(encoder, names, "transformers")
        assert again.keys() == mapping.shapes(encoder).keys()
        for path, x in again.items():
            np.testing.assert_array_equal(x, ours[path])


def test_a_deeper_file_is_not_cut_silently(numbered):
    deeper = make(dataclasses.replace(SMALL, layers=3))
    ours = numbered(mapping.shapes(deeper))
    theirs = mapping.save(convert.entries(deeper), ours)
    with pytest.raises(InputError, match=r"unexpected: transformer\.resblocks\.2"):
        convert.load(make(SMALL), theirs)
