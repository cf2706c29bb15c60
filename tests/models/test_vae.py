"""The autoencoder against the original and diffusers, and its own promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import vae as convert
from videomv_jax.models.vae import PRESETS, VAE, VAEConfig
from videomv_jax.types import InputError

SMALL = VAEConfig(channels=16, multipliers=(1, 2), layers=1, groups=4, dtype="float32")
TOLERANCE = 2e-5


def make(config: VAEConfig) -> VAE:
    return VAE(config, rngs=nnx.Rngs(0))


def images(*batch: int) -> np.ndarray:
    """Mostly of one shape, so that the tests share compiled programs."""
    shape = (*(batch or (2, 3)), 16, 8, 3)
    return np.random.default_rng(0).random(shape, np.float32)


@nnx.jit
def moments(vae, x):
    return vae.moments(x)


@functools.partial(nnx.jit, static_argnames="chunk")
def encode(vae, x, key=None, chunk=None):
    return vae.encode(x, key, chunk=chunk)


@functools.partial(nnx.jit, static_argnames="chunk")
def decode(vae, x, chunk=None):
    return vae.decode(x, chunk=chunk)


def test_equals_the_original(golden, error):
    z = golden("autoencoder_tiny")
    sizes = z.config["ddconfig"]
    config = VAEConfig(
        channels=sizes["ch"],
        multipliers=tuple(sizes["ch_mult"]),
        layers=sizes["num_res_blocks"],
        scale_factor=z.config["scale_factor"],
        dtype="float32",
    )
    vae = nnx.eval_shape(lambda: make(config))
    mapping.assign(vae, convert.load(vae, z.param))

    wanted = {k: np.moveaxis(x, 1, -1) for k, x in z.out.items()}
    noise = np.moveaxis(z.in_["noise"], 1, -1)
    x = (np.moveaxis(z.in_["image"], 1, -1) + 1) / 2
    mean, logvar = moments(vae, x)
    std = np.exp(0.5 * logvar)
    # No variance of this fixture reaches the limits, so these are the raw moments.
    assert error(np.concatenate([mean, logvar], -1), wanted["moments"]) < TOLERANCE
    assert error(mean, wanted["mean"]) < TOLERANCE
    assert error(logvar, wanted["logvar"]) < TOLERANCE
    assert error(std, wanted["std"]) < TOLERANCE
    sample = (mean + std * noise) * config.scale_factor
    assert error(sample, wanted["scaled_latent"]) < TOLERANCE

    z_in = np.moveaxis(z.in_["z"], 1, -1) * np.float32(config.scale_factor)
    assert error(2 * decode(vae, z_in) - 1, wanted["decoded"]) < TOLERANCE
    again = decode(vae, mean * config.scale_factor)
    assert error(2 * again - 1, wanted["reconstruction"]) < TOLERANCE


def test_sampled_latents_follow_the_posterior(filled):
    vae = filled(lambda: make(SMALL))
    key, x = jax.random.key(1), images()
    mean, logvar = moments(vae, x)
    found = encode(vae, x)
    np.testing.assert_allclose(found, SMALL.scale_factor * mean, rtol=1e-4, atol=1e-6)
    noise = jax.random.normal(key, mean.shape)
    wanted = SMALL.scale_factor * (mean + jnp.exp(0.5 * logvar) * noise)
    np.testing.assert_allclose(encode(vae, x, key), wanted, rtol=1e-4, atol=1e-6)


def test_variance_is_limited(filled):
    vae = filled(lambda: make(SMALL))
    c = SMALL.latent_channels
    vae.quant.bias[...] = jnp.repeat(jnp.asarray([0.0, 1e4]), c)
    assert (moments(vae, images())[1] == 20).all()
    vae.quant.bias[...] = -vae.quant.bias[...]
    assert (moments(vae, images())[1] == -30).all()


@pytest.mark.parametrize("chunk", [4, 6])
def test_chunks_change_nothing(chunk, filled):
    vae = filled(lambda: make(SMALL))
    x = images()
    latents = encode(vae, x)
    assert latents.shape == (2, 3, 8, 4, 4)
    found = encode(vae, x, chunk=chunk)
    np.testing.assert_allclose(found, latents, rtol=1e-4, atol=1e-5)
    assert decode(vae, latents).shape == x.shape
    found = decode(vae, latents, chunk=chunk)
    np.testing.assert_allclose(found, decode(vae, latents), rtol=1e-4, atol=1e-5)


def test_chunks_bound_memory(filled):
    vae = filled(lambda: make(SMALL))
    latents = jnp.zeros((16, 16, 16, 4))

    def scratch(chunk):
        lowered = jax.jit(lambda z: vae.decode(z, chunk=chunk)).lower(latents)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert scratch(1) < scratch(None) / 4


def test_one_program_sees_each_image_alone(filled):
    vae = filled(lambda: make(SMALL))
    x = images()
    changed = x.copy()
    changed[0, 1] = 0
    a, b = encode(vae, x), encode(vae, changed)
    assert (a[0, 1] != b[0, 1]).any()
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(a[0, ::2], b[0, ::2])


def loss(vae, x):
    mean, logvar = vae.moments(x)
    latents = mean + jnp.exp(0.5 * logvar)
    return jnp.square(vae.decode(latents) - x).mean() + jnp.square(logvar).mean()


def test_gradients_reach_every_parameter(filled, gradients):
    x = images(1)
    gradients(lambda vae: loss(vae, x), filled(lambda: make(SMALL)))


def test_remat_recomputes_each_block(filled):
    def remats(remat):
        vae = filled(lambda: make(dataclasses.replace(SMALL, remat=remat)))
        program = jax.make_jaxpr(lambda x: loss(vae, x))(images(1))
        names = [e.primitive.name for e in program.eqns]
        return sum(name.startswith(("remat", "checkpoint")) for name in names)

    assert remats("none") == 0
    assert remats("block") == 2 * (1 + 3) + 2 * 2


def test_remat_keeps_gradients(filled, gradients, error):
    x = np.random.default_rng(0).random((1, 4, 4, 32), np.float32)

    def found(remat):
        config = dataclasses.replace(SMALL, remat=remat)
        middle = filled(lambda: make(config)).decoder.middle
        return gradients(lambda middle: jnp.square(middle(x)).mean(), middle)

    again = found("block")
    for path, gradient in found("none").items():
        assert error(again[path], gradient) < 1e-4, path


def test_bfloat16_multiplies_in_bfloat16(filled, product_types, error):
    vae = filled(lambda: make(SMALL))
    half = filled(lambda: make(dataclasses.replace(SMALL, dtype="bfloat16")))
    x = images()
    types = product_types(lambda x: half.decode(half.encode(x)), x)
    assert set(types) == {jnp.dtype("bfloat16")}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    latents, wanted = encode(half, x), encode(vae, x)
    assert latents.dtype == jnp.float32
    assert 0 < error(latents, wanted) < 0.05
    again = decode(half, wanted)
    assert again.dtype == jnp.float32
    assert 0 < error(again, decode(vae, wanted)) < 0.05


def test_starts_with_variance(filled):
    vae = nnx.jit(lambda: make(SMALL))()
    latents = encode(vae, images())
    assert 0.05 < latents.std() / SMALL.scale_factor < 5
    assert 0.01 < decode(vae, latents).std() < 5


@pytest.mark.parametrize(("name", "count"), [("sd", 83_653_863), ("tiny", 1_991_463)])
def test_presets_have_the_documented_size(name, count):
    shapes = mapping.shapes(nnx.eval_shape(lambda: make(PRESETS[name])))
    assert sum(int(np.prod(s)) for s in shapes.values()) == count
    assert PRESETS[name].downsampling == 8


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda vae: vae.encode(jnp.zeros((1, 16, 8, 4))), "images"),
        (lambda vae: vae.encode(jnp.zeros((1, 16, 7, 3))), "multiples of 2"),
        (lambda vae: vae.decode(jnp.zeros((1, 8, 8, 3))), "latents"),
        (lambda vae: vae.decode(jnp.zeros((1, 8, 8, 4)), chunk=0), "chunk"),
        (lambda vae: dataclasses.replace(vae.config, groups=5), "groups"),
    ],
)
def test_bad_input_is_named(call, word, filled):
    vae = filled(lambda: make(SMALL))
    with pytest.raises(InputError, match=word):
        call(vae)


@pytest.mark.parity
def test_equals_diffusers(error):
    import diffusers
    import torch

    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 32),
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()
    for p in theirs.parameters():
        if p.ndim == 1:  # norms and biases start at 1 and 0, which would hide swaps
            torch.nn.init.normal_(p, mean=p.detach().mean().item(), std=0.1)
    config = VAEConfig(
        channels=8, multipliers=(2, 3, 4), layers=1, groups=8, dtype="float32"
    )
    vae = nnx.eval_shape(lambda: make(config))
    state = {k: x.numpy() for k, x in theirs.state_dict().items()}
    mapping.assign(vae, convert.load(vae, state, "diffusers"))
    for name, x in convert.save(vae, "diffusers").items():
        np.testing.assert_array_equal(x, state[name])

    x = np.random.default_rng(0).random((2, 24, 16, 3), np.float32)
    with torch.no_grad():
        channels_first = torch.from_numpy(np.moveaxis(2 * x - 1, -1, 1).copy())
        posterior = theirs.encode(channels_first).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    mean, logvar = moments(vae, x)
    assert error(mean, np.moveaxis(posterior.mean.numpy(), 1, -1)) < 1e-4
    assert error(logvar, np.moveaxis(posterior.logvar.numpy(), 1, -1)) < 1e-4
    again = decode(vae, mean * config.scale_factor)
    assert error(2 * again - 1, np.moveaxis(decoded.numpy(), 1, -1)) < 1e-4
