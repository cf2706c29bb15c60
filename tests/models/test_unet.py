"""The UNet against the original and diffusers; its sizes, types and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import unet as names
from videomv_jax.models.unet import UNet, UNetConfig
from videomv_jax.training.flops import count
from videomv_jax.types import InputError

SMALL = UNetConfig(
    dim=64,
    multipliers=(1, 1),
    res_blocks=1,
    attention_levels=1,
    head_dim=32,
    num_heads=2,
    context_dim=24,
    fps_condition=True,
    dropout=0.0,
    dtype="float32",
)


def make(config: UNetConfig = SMALL) -> UNet:
    return UNet(config, rngs=nnx.Rngs(0))


def inputs(config: UNetConfig = SMALL, clips=2, views=3, size=4) -> dict:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return dict(
        x=draw(clips, views, size, size, config.in_channels),
        t=jnp.asarray([20, 700, 999][:clips]),
        context=draw(clips, 5, config.context_dim),
        camera=draw(clips, views, config.camera_dim),
        fps=jnp.full((clips,), 8) if config.fps_condition else None,
    )


def forward(unet, batch, key=None):
    return unet(**batch, key=key)


# Compiling is what takes time here, so all but one comparison do without LLVM's part.
call = jax.jit(forward, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def small(filled):
    return filled(make)


@pytest.fixture(scope="module")
def original(golden, unet_config):
    """The released code's outputs, and our UNet with its weights."""
    fixture = golden("t2v_unet_tiny")
    config = unet_config(fixture)
    unet = nnx.eval_shape(lambda: make(config))
    mapping.assign(unet, names.load(unet, fixture.param))
    return fixture, unet


@pytest.mark.parametrize(
    ("output", "views", "cameras", "call"),
    [
        ("sample", 4, True, jax.jit(forward)),
        ("sample_no_camera", 4, False, call),
        ("sample_first_frame_only", 1, True, call),
    ],
)
def test_matches_the_original(original, error, output, views, cameras, call):
    fixture, unet = original
    batch = dict(
        x=jnp.asarray(fixture.in_["x"].transpose(0, 2, 3, 4, 1))[:, :views],
        t=jnp.asarray(fixture.in_["t"].astype(np.int32)),
        context=jnp.asarray(fixture.in_["y"]),
        camera=jnp.asarray(fixture.in_["camera_data"])[:, :views] if cameras else None,
    )
    y = call(unet, batch).transpose(0, 4, 1, 2, 3)
    assert error(y, fixture.out[output]) <= 2e-5


@pytest.mark.parity
def test_matches_diffusers(filled, error):
    """Two stages a level, a level without transformers, one step per clip."""
    import torch
    from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel

    config = dataclasses.replace(
        SMALL,
        multipliers=(1, 2),
        res_blocks=2,
        num_heads=8,  # fixed in diffusers
        fps_condition=False,
    )
    unet = filled(lambda: make(config), seed=1)
    torch.manual_seed(0)
    theirs = UNet3DConditionModel(
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=24,
        attention_head_dim=32,
    ).eval()
    generator = np.random.default_rng(0)
    state = {
        k: x.numpy() + 0.05 * generator.standard_normal(x.shape).astype(np.float32)
        for k, x in theirs.state_dict().items()
    }
    theirs.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    cameras = mapping.flatten(unet)
    mapping.assign(unet, cameras | names.load(unet, state, "diffusers"))
    batch = inputs(config) | {"camera": None}
    with torch.no_grad():
        wanted = theirs(
            torch.from_numpy(np.array(batch["x"].transpose(0, 4, 1, 2, 3))),
            torch.from_numpy(np.array(batch["t"])),
            torch.from_numpy(np.array(batch["context"])),
        ).sample.numpy()
    assert error(call(unet, batch).transpose(0, 4, 1, 2, 3), wanted) <= 1e-4


def test_gradients_reach_every_parameter_also_when_recomputed(small):
    batch = inputs(views=2)
    remat = nnx.clone(small)
    remat.config = dataclasses.replace(SMALL, remat="block")

    def loss(unet):
        return jnp.square(unet(**batch)).sum()

    traced = [jax.jit(jax.grad(loss)).trace(unet) for unet in (small, remat)]
    programs = [str(t.jaxpr) for t in traced]
    assert ["remat" in text or "checkpoint" in text for text in programs] == [0, 1]
    options = {"xla_backend_optimization_level": 0}
    plain, again = (
        mapping.flatten(t.lower().compile(options)(unet))
        for t, unet in zip(traced, (small, remat), strict=True)
    )
    assert plain.keys() == mapping.shapes(small).keys()
    for path, x in plain.items():
        assert np.isfinite(x).all(), path
        assert np.abs(x).max() > 0, path
        scale = 1e-5 * np.abs(x).max()
        np.testing.assert_allclose(again[path], x, 1e-4, scale, err_msg=path)


def test_what_is_recomputed_costs_arithmetic(small):
    """None for "products", then more and more."""
    batch = inputs(views=2)

    def flops(remat):
        unet = nnx.clone(small)
        unet.config = dataclasses.replace(SMALL, remat=remat)

        def loss(unet):
            return jnp.square(unet(**batch)).sum()

        return count(jax.jit(jax.grad(loss)).trace(unet).jaxpr)

    costs = {name: flops(name) for name in ("none", "products", "narrow", "block")}
    # What attention itself computes is not saved, its result is.
    assert costs["none"] < costs["products"] < 1.05 * costs["none"]
    assert costs["products"] < costs["narrow"] < costs["block"] < 1.4 * costs["none"]


def test_conditions_matter_once_trained_and_cameras_not_before(small):
    batch = inputs()
    y = call(small, batch)
    assert y.dtype == jnp.float32
    for name in ("t", "context", "camera", "fps"):
        other = call(small, batch | {name: batch[name][::-1] + 1})
        assert not np.allclose(other, y, atol=1e-2), name
    fresh = make()
    np.testing.assert_array_equal(call(fresh, batch), 0)
    np.testing.assert_array_equal(fresh.camera_embedding(jnp.ones((1, 16))), 0)
    np.testing.assert_array_equal(fresh.fps_embedding(jnp.ones((1, 64))), 0)


def test_texts_of_a_clip_share_what_comes_before_them(small, error):
    batch = inputs()
    batch["context"] = jnp.concatenate([batch["context"], 2 * batch["context"]])
    alone = {
        name: x if name == "context" else jnp.repeat(x, 2, 0)
        for name, x in batch.items()
    }
    assert error(call(small, batch), call(small, alone)) < 1e-6
    shared, apart = (
        count(jax.jit(lambda x: forward(small, x)).trace(x).jaxpr)
        for x in (batch, alone)
    )
    assert shared < 0.95 * apart


def test_dropout_follows_its_key(filled):
    config = dataclasses.replace(SMALL, multipliers=(1,), attention_levels=0)
    still = filled(lambda: make(config))
    unet = filled(lambda: make(dataclasses.replace(config, dropout=0.3)))
    batch = inputs(config, size=2)
    keys = jax.random.split(jax.random.key(0))
    a, b = (call(unet, batch, key) for key in keys)
    assert not np.allclose(a, b, atol=1e-2)
    np.testing.assert_array_equal(call(unet, batch, keys[0]), a)
    np.testing.assert_allclose(call(unet, batch), call(still, batch), 1e-5, 1e-5)


def test_bfloat16_computes_in_bfloat16(product_types):
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    unet = make(config)
    types = product_types(lambda batch: unet(**batch), inputs(config))
    # The two layers of each of three embeddings are float32.
    assert types.count(jnp.float32) == 3 * 2 * 2
    assert set(types) == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    out = jax.eval_shape(lambda batch: unet(**batch), inputs(config))
    assert out.dtype == jnp.float32
    assert {x.dtype.name for x in mapping.flatten(unet).values()} == {"float32"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b | {"x": b["x"][0]}, "x is .*want .b, f, h, w, 4"),
        (lambda b: b | {"x": b["x"][..., :3]}, "x is .*want"),
        (lambda b: b | {"x": b["x"][:, :, :3]}, "multiples of 2"),
        (lambda b: b | {"t": b["t"][:1]}, "t is"),
        (lambda b: b | {"context": b["context"][..., 1:]}, "context is"),
        (lambda b: b | {"context": b["context"][:1]}, "context is"),
        (lambda b: b | {"camera": b["camera"][:, 1:]}, "camera is"),
        (lambda b: b | {"fps": None}, "fps"),
    ],
)
def test_bad_input_is_named(small, change, words):
    with pytest.raises(InputError, match=words):
        small(**change(inputs()))


@pytest.mark.parametrize(
    ("change", "words"), [({"dim": 40}, "40 wide"), ({"remat": "all"}, "remat")]
)
def test_bad_sizes_are_named(change, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SMALL, **change)
