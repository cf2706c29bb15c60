"""Noising, conversions and the loss."""

from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.diffusion import losses, process
from videomv_jax.diffusion.schedule import cosine_zero_snr, linear_sd
from videomv_jax.types import InputError, PredictionKind

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion.npz"
SETS = {
    "eps_linear_sd": (linear_sd(), "epsilon"),
    "v_cosine_ztsnr": (cosine_zero_snr(), "v"),
}
KINDS = get_args(PredictionKind)


def channels_last(x):
    """[b, c, f, h, w] to [b, f, h, w, c]."""
    return jnp.asarray(np.moveaxis(x, 1, -1))


def error(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


def draw(seed=0, shape=(4, 3, 2, 2, 4)):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", SETS)
def test_noising_and_loss_equal_the_original(name):
    z = np.load(GOLDEN)
    schedule, kind = SETS[name]
    x0, noise = channels_last(z["in/x0"]), channels_last(z["in/eps"])
    t = jnp.asarray(z["in/t_loss"], jnp.int32)
    x_t = process.add_noise(schedule, x0, noise, t)
    assert error(x_t, channels_last(z[f"out/{name}/xt_loss"])) < 1e-6
    shift = z["in/y_cond"][:, None, None, None] * np.cos(0.01 * z["in/t_loss"])
    output = jnp.tanh(x_t @ z["in/w"].T + shift.astype(np.float32))
    wanted = process.target(schedule, kind, x0, noise, t)
    assert error(losses.squared_error(output, wanted), z[f"out/{name}/loss"]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_conversions_invert_the_target(name, kind):
    schedule, _ = SETS[name]
    t = jnp.asarray([0, 300, 700, 990])
    x0, noise = draw(0), draw(1)
    x_t = process.add_noise(schedule, x0, noise, t)
    output = process.target(schedule, kind, x0, noise, t)
    # Dividing by the smallest alpha or sigma magnifies float32 rounding.
    assert error(process.to_x0(schedule, kind, x_t, output, t), x0) < 1e-3
    assert error(process.to_epsilon(schedule, kind, x_t, output, t), noise) < 1e-3
    if kind == "v":
        assert error(process.to_x0(schedule, kind, x_t, output, t), x0) < 1e-6


@pytest.mark.parametrize("source", KINDS)
def test_kinds_agree_with_each_other(source):
    """Any output, also a wrong one, means one pair (x0, epsilon) that makes x_t."""
    schedule = linear_sd()
    x_t, output, t = draw(0), draw(1), jnp.asarray([1, 250, 500, 981])
    x0 = process.to_x0(schedule, source, x_t, output, t)
    epsilon = process.to_epsilon(schedule, source, x_t, output, t)
    assert error(process.add_noise(schedule, x0, epsilon, t), x_t) < 1e-5
    again = process.target(schedule, source, x0, epsilon, t)
    assert error(again, output) < 1e-3


def test_zero_terminal_snr_is_safe_for_v_and_x0():
    schedule, t = cosine_zero_snr(), jnp.asarray([999])
    x0, noise = draw(0, (1, 2, 2, 2, 4)), draw(1, (1, 2, 2, 2, 4))
    x_t = process.add_noise(schedule, x0, noise, t)
    assert np.array_equal(x_t, noise)
    for kind in ("v", "x0"):
        output = process.target(schedule, kind, x0, noise, t)
        assert error(process.to_x0(schedule, kind, x_t, output, t), x0) == 0
        assert error(process.to_epsilon(schedule, kind, x_t, output, t), noise) == 0


def test_types_and_shapes_under_jit():
    schedule, t = linear_sd(), jnp.asarray([5, 6, 7, 8])
    x0 = draw().astype(jnp.bfloat16)
    x_t = jax.jit(lambda x, n, t: process.add_noise(schedule, x, n, t))(x0, x0, t)
    assert x_t.shape == x0.shape and x_t.dtype == jnp.bfloat16
    loss = losses.squared_error(x_t, x0)
    assert loss.shape == (4,) and loss.dtype == jnp.float32


def test_offset_noise_is_constant_per_view_and_channel():
    shape = (8, 6, 8, 8, 4)
    plain = process.sample_noise(jax.random.key(0), shape)
    shifted = process.sample_noise(jax.random.key(0), shape, offset=0.1)
    offset = np.asarray(shifted - plain)
    assert np.ptp(offset, axis=(2, 3)).max() < 1e-6
    constants = offset[:, :, 0, 0]
    assert 0.08 < constants.std() < 0.12
    assert len(np.unique(constants.round(6))) > 180
    assert abs(np.asarray(plain).std() - 1) < 0.03


@pytest.mark.parametrize("function", ["to_x0", "to_epsilon", "target"])
def test_unknown_kind(function):
    x, t = draw(), jnp.zeros(4, jnp.int32)
    with pytest.raises(InputError, match="prediction kind 'eps'.*'epsilon'"):
        getattr(process, function)(linear_sd(), "eps", x, x, t)
