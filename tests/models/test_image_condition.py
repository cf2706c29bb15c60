"""The UNet that takes photos against the original and diffusers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import unet as names
from videomv_jax.models.image_condition import ImageCondition, ImageConfig, ImagePrompt
from videomv_jax.models.unet import UNet, UNetConfig
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
    image=ImageConfig(embedding_dim=16, tokens=2),
    dropout=0.0,
    dtype="float32",
)


def make(config: UNetConfig = SMALL) -> UNet:
    return UNet(config, rngs=nnx.Rngs(0))


def make_condition() -> ImageCondition:
    assert SMALL.image is not None
    return ImageCondition(SMALL.image, 4, 8, 16, rngs=nnx.Rngs(0))


def inputs(config: UNetConfig = SMALL, views=3, size=4) -> dict:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    assert config.image is not None
    return dict(
        x=draw(2, views, size, size, 4),
        t=jnp.asarray([20, 700]),
        context=draw(2, 5, config.context_dim),
        camera=draw(2, views, 16),
        fps=jnp.full((2,), 8),
        image=ImagePrompt(draw(2, size, size, 4), draw(2, config.image.embedding_dim)),
    )


call = jax.jit(
    lambda unet, batch: unet(**batch),
    compiler_options={"xla_backend_optimization_level": 0},
)


@pytest.fixture(scope="module")
def small(filled):
    return filled(make)


@pytest.fixture(scope="module")
def original(golden, unet_config):
    """The released code's outputs, and our UNet with its weights."""
    fixture = golden("i2v_unet_tiny")
    c = fixture.config
    photo = ImageConfig(
        embedding_dim=c["y_dim"], tokens=c["num_tokens"], local_gain=2.0
    )
    config = unet_config(fixture, fps_condition=True, image=photo)
    unet = nnx.eval_shape(lambda: make(config))
    mapping.assign(unet, names.load(unet, fixture.param))
    return fixture, unet


def photo(fixture) -> ImagePrompt:
    latent = fixture.in_["local_image"].transpose(0, 2, 3, 1)
    return ImagePrompt(jnp.asarray(latent), jnp.asarray(fixture.in_["image"][:, 0]))


@pytest.mark.parametrize(
    ("output", "change"),
    [
        ("sample", {}),
        ("sample_no_camera", {"camera": None}),
        ("sample_image_none", {"embedding": None}),
        ("sample_image_zero", {"embedding": 0}),
        ("sample_first_frame_only", {"views": 1}),
    ],
)
def test_matches_the_original(original, error, output, change):
    fixture, unet = original
    views = change.get("views", 4)
    image = photo(fixture)
    if "embedding" in change:
        embedding = None if change["embedding"] is None else 0 * image.embedding
        image = dataclasses.replace(image, embedding=embedding)
    camera = jnp.asarray(fixture.in_["camera_data"])[:, :views]
    batch = dict(
        x=jnp.asarray(fixture.in_["x"].transpose(0, 2, 3, 4, 1))[:, :views],
        t=jnp.asarray(fixture.in_["t"].astype(np.int32)),
        context=jnp.asarray(fixture.in_["y"]),
        camera=None if "camera" in change else camera,
        fps=jnp.asarray(fixture.in_["fps"].astype(np.int32)),
        image=image,
    )
    y = call(unet, batch).transpose(0, 4, 1, 2, 3)
    assert error(y, fixture.out[output]) <= 2e-5


def test_parts_match_the_original(original, error):
    fixture, unet = original
    condition, out = unet.image, fixture.out
    image = photo(fixture)
    spatial = condition.spatial(image.latent, 4)
    wanted = out["local_image_concat"].transpose(0, 2, 3, 1).reshape(spatial.shape)
    assert error(spatial, wanted) <= 2e-5
    temporal = jnp.moveaxis(condition.temporal(spatial), 1, 3).reshape(-1, 4, 4)
    assert error(temporal, out["local_temporal_encoder"]) <= 2e-5
    tokens = condition.tokens_of_latent(image.latent)
    wanted = out["local_image_embedding"].transpose(0, 2, 3, 1).reshape(tokens.shape)
    assert error(tokens, wanted) <= 2e-5
    tokens = condition.tokens_of_embedding(image.embedding)
    assert error(tokens.reshape(2, 1, -1), out["context_embedding"]) <= 2e-5


@pytest.mark.parity
def test_matches_diffusers(filled, error):
    """Without cameras, which diffusers lacks, and the local features once."""
    import torch
    from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet

    config = dataclasses.replace(
        SMALL,
        multipliers=(1, 2),
        num_heads=8,  # fixed in diffusers
        image=ImageConfig(embedding_dim=24, tokens=4),
    )
    unet = filled(lambda: make(config), seed=1)
    torch.manual_seed(0)
    theirs = I2VGenXLUNet(
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=24,
        attention_head_dim=32,
        num_attention_heads=32,
    ).eval()
    generator = np.random.default_rng(0)
    state = {
        k: x.numpy() + 0.05 * generator.standard_normal(x.shape).astype(np.float32)
        for k, x in theirs.state_dict().items()
    }
    theirs.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    mapping.assign(unet, mapping.flatten(unet) | names.load(unet, state, "diffusers"))
    batch = inputs(config) | {"camera": None}
    x, latent = (
        torch.from_numpy(np.array(a)).movedim(-1, 1)
        for a in (batch["x"], batch["image"].latent)
    )
    places = torch.linspace(0, 1, 3)[1:].reshape(1, 1, 2, 1, 1)
    frames = torch.cat([latent[:, :, None], places.expand(2, 4, 2, 4, 4)], 2)
    with torch.no_grad():
        wanted = theirs(
            x,
            torch.from_numpy(np.array(batch["t"])),
            torch.from_numpy(np.array(batch["fps"])),
            image_latents=frames,
            image_embeddings=torch.from_numpy(np.array(batch["image"].embedding)),
            encoder_hidden_states=torch.from_numpy(np.array(batch["context"])),
        ).sample.numpy()
    assert error(call(unet, batch).transpose(0, 4, 1, 2, 3), wanted) <= 1e-4


def test_the_photo_matters_and_gradients_reach_its_layers(filled):
    condition, image = filled(make_condition), inputs()["image"]
    options = {"xla_backend_optimization_level": 0}

    def loss(condition, image):
        features, tokens = condition(image, 3)
        return jnp.square(features).sum() + jnp.square(tokens).sum()

    by_layer, by_image = jax.jit(jax.grad(loss, (0, 1)), compiler_options=options)(
        condition, image
    )
    for path, x in mapping.flatten(by_layer).items():
        assert np.isfinite(x).all() and np.abs(x).max() > 0, path
    assert np.abs(by_image.latent).min() > 0 and np.abs(by_image.embedding).max() > 0


@pytest.mark.parametrize("size", [20, 32, 48])
def test_any_size_gives_as_many_tokens(filled, size):
    tokens = filled(make_condition).tokens_of_latent(jnp.ones((1, size, size, 4)))
    assert tokens.shape == (1, 64, 8)
    # Away from the border, where zeros are seen, a constant stays one.
    inner = tokens.reshape(8, 8, 8)[2:-2, 2:-2]
    np.testing.assert_allclose(
        inner, jnp.broadcast_to(inner[:1, :1], inner.shape), 1e-4
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": None}, "image is missing"),
        ({"image": ImagePrompt(jnp.ones((2, 8, 8, 4)), None)}, "image.latent is"),
        ({"image": ImagePrompt(jnp.ones((2, 4, 4, 4)), jnp.ones((2, 9)))}, "embedding"),
    ],
)
def test_bad_input_is_named(small, change, words):
    with pytest.raises(InputError, match=words):
        small(**(inputs() | change))


def test_a_model_for_texts_takes_no_photo():
    unet = nnx.eval_shape(lambda: make(dataclasses.replace(SMALL, image=None)))
    with pytest.raises(InputError, match="image is given"):
        unet(**inputs())
