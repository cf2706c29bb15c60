"""The image encoder against OpenCLIP and transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import vision as convert
from videomv_jax.models.clip import VisionConfig, VisionEncoder
from videomv_jax.types import InputError

SMALL = VisionConfig(
    size=12, patch=4, width=16, heads=2, layers=2, features=8, dtype="float32"
)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def make(config: VisionConfig = SMALL) -> VisionEncoder:
    return VisionEncoder(config, rngs=nnx.Rngs(0))


@nnx.jit
def encode(encoder, images):
    return encoder(images)


def images(size=SMALL.size):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(size=(2, size, size, 3)), jnp.float32)


def test_equals_the_original(golden, error):
    z = golden("clip_tiny")
    sizes = z.config["vision_cfg"]
    config = VisionConfig(
        size=sizes["image_size"],
        patch=sizes["patch_size"],
        width=sizes["width"],
        heads=sizes["width"] // sizes["head_width"],
        layers=sizes["layers"],
        features=z.config["embed_dim"],
        dtype="float32",
    )
    encoder = nnx.eval_shape(lambda: make(config))
    mapping.assign(encoder, convert.load(encoder, z.param))
    seen = z.in_["image"].transpose(0, 2, 3, 1) * STD + MEAN
    assert error(encode(encoder, seen), z.out["image_embedding"]) < 2e-5


@pytest.mark.parity
def test_equals_transformers(error):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=64,
            projection_dim=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
            hidden_act="gelu",
        )
    ).eval()
    state = {k: x.numpy() for k, x in theirs.state_dict().items()}
    encoder = nnx.eval_shape(make)
    mapping.assign(encoder, convert.load(encoder, state, "transformers"))
    seen = np.asarray(images())
    with torch.no_grad():
        pixels = torch.from_numpy((seen - MEAN) / STD).permute(0, 3, 1, 2)
        wanted = theirs(pixels).image_embeds.numpy()
    assert error(encode(encoder, seen), wanted) < 1e-5
    saved = convert.save(encoder, "transformers")
    assert {k: x.shape for k, x in saved.items()} == {
        k: x.shape for k, x in state.items() if "position_ids" not in k
    }
    for name, x in saved.items():
        np.testing.assert_array_equal(x, state[name], err_msg=name)


def test_larger_images_are_averaged(filled, error):
    encoder = filled(make)
    small = images()
    large = jnp.repeat(jnp.repeat(small, 4, 1), 4, 2)
    plain, resized = encode(encoder, small), encode(encoder, large)
    flat = encode(encoder, jnp.full_like(small, 0.5))
    assert error(resized, plain) < error(flat, plain) / 4


def test_gradients_reach_every_parameter(filled, gradients):
    def loss(encoder):
        return jnp.square(encoder(images())[..., 0]).mean()

    gradients(loss, filled(make))


def test_bfloat16_multiplies_in_bfloat16(filled, product_types):
    half = filled(lambda: make(dataclasses.replace(SMALL, dtype="bfloat16")))
    assert set(product_types(half, images())) == {jnp.dtype("bfloat16")}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}


def test_bad_input_is_named():
    with pytest.raises(InputError, match="images: .*cropped squares"):
        nnx.eval_shape(make)(jnp.ones((1, 12, 13, 3)))
    with pytest.raises(InputError, match="patch: 5 does not divide size 12"):
        dataclasses.replace(SMALL, patch=5)
    with pytest.raises(InputError, match="heads: 3"):
        dataclasses.replace(SMALL, heads=3)
