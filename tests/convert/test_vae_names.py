"""Names of the autoencoder's checkpoints."""

import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import vae as convert
from videomv_jax.models.vae import PRESETS, VAE
from videomv_jax.types import InputError

SOURCES = {"original": "autoencoder_kl", "diffusers": "diffusers_vae"}


def make(preset: str) -> VAE:
    return nnx.eval_shape(lambda: VAE(PRESETS[preset], rngs=nnx.Rngs(0)))


def shaped(arrays):
    return {k: x.shape for k, x in arrays.items()}


@pytest.mark.parametrize("source", SOURCES)
def test_the_released_file_fits(source, checkpoint):
    vae, theirs = make("sd"), checkpoint(SOURCES[source])
    ours = convert.load(vae, theirs, source)
    assert shaped(ours) == mapping.shapes(vae)
    back = mapping.save(convert.entries(vae, source), ours)
    assert shaped(back) == shaped(theirs)


@pytest.mark.parametrize("source", SOURCES)
def test_both_ways_are_inverse(source, numbered):
    vae = make("tiny")
    ours = numbered(mapping.shapes(vae))
    theirs = mapping.save(convert.entries(vae, source), ours)
    again = convert.load(vae, theirs, source)
    for path, x in ours.items():
        np.testing.assert_array_equal(again[path], x)


def test_the_rest_of_the_original_file_is_ignored(checkpoint):
    theirs = checkpoint("autoencoder_kl")
    whole = {f"first_stage_model.{k}": x for k, x in theirs.items()}
    whole["model.diffusion_model.time_embed.0.bias"] = np.zeros(4)
    vae = make("sd")
    assert convert.load(vae, whole).keys() == mapping.shapes(vae).keys()


def test_outdated_attention_names_are_understood(numbered):
    vae = make("tiny")
    ours = numbered(mapping.shapes(vae))
    theirs = mapping.save(convert.entries(vae, "diffusers"), ours)
    outdated = {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }
    for new, old in outdated.items():
        theirs = {k.replace(f".{new}.", f".{old}."): x for k, x in theirs.items()}
    assert any(".query." in k for k in theirs)
    again = convert.load(vae, theirs, "diffusers")
    for path, x in ours.items():
        np.testing.assert_array_equal(again[path], x)


def test_a_missing_name_is_told(checkpoint):
    theirs = checkpoint("autoencoder_kl")
    del theirs["decoder.up.3.block.0.conv1.weight"]
    with pytest.raises(InputError, match=r"missing: decoder\.up\.3\.block\.0\.conv1"):
        convert.load(make("sd"), theirs)
