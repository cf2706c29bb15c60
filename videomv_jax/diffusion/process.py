"""Noising, and the one place where epsilon, v and x0 are converted.

x_t = alpha x0 + sigma epsilon and v = alpha epsilon - sigma x0 (Salimans and Ho,
arXiv 2202.00512), which is a rotation by the angle whose cosine is alpha. Tables are
looked up by `t`: times of a `Schedule` ([b] while training), or step indices of a
sampler's `Steps` (one for the whole batch).
"""

from collections.abc import Sequence
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomv_jax.diffusion.schedule import Levels
from videomv_jax.types import InputError, PredictionKind, PRNGKey


def sample_noise(
    key: PRNGKey, shape: Sequence[int], offset: float = 0.0
) -> Float[Array, "b f h w c"]:
    """Unit Gaussian noise of views, with an optional constant per view and channel.

    Args:
        shape: [b, f, h, w, c].
        offset: standard deviation of the constant (the released image-to-views
            model trained with 0.1; sampling starts without).
    """
    b, f, _, _, c = shape
    pixels, constants = jax.random.split(key)
    noise = jax.random.normal(pixels, tuple(shape), jnp.float32)
    if offset == 0:
        return noise
    return noise + offset * jax.random.normal(constants, (b, f, 1, 1, c), jnp.float32)


def add_noise(
    levels: Levels,
    x0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Int[Array, "#b"],
) -> Float[Array, "b ..."]:
    """x_t: clean latents with the noise of time t."""
    alpha, sigma = _at(levels, t, x0)
    return alpha * x0 + sigma * noise


def target(
    levels: Levels,
    kind: PredictionKind,
    x0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Int[Array, "#b"],
) -> Float[Array, "b ..."]:
    """What a network of this kind should output for `add_noise(levels, x0, noise, t)`.

    Raises:
        InputError: unknown kind.
    """
    alpha, sigma = _at(levels, t, x0)
    match _checked(kind):
        case "epsilon":
            return noise
        case "v":
            return alpha * noise - sigma * x0
        case "x0":
            return x0


def to_x0(
    levels: Levels,
    kind: PredictionKind,
    x_t: Float[Array, "b ..."],
    output: Float[Array, "b ..."],
    t: Int[Array, "#b"],
) -> Float[Array, "b ..."]:
    """The clean latents that a network's output at x_t implies.

    Finite for v and x0 at every level. With epsilon nothing is known where alpha is
    0 (the last time of a zero-terminal-SNR schedule) and the result is not finite.

    Raises:
        InputError: unknown kind.
    """
    alpha, sigma = _at(levels, t, x_t)
    match _checked(kind):
        case "epsilon":
            return (x_t - sigma * output) / alpha
        case "v":
            return alpha * x_t - sigma * output
        case "x0":
            return output


def to_epsilon(
    levels: Levels,
    kind: PredictionKind,
    x_t: Float[Array, "b ..."],
    output: Float[Array, "b ..."],
    t: Int[Array, "#b"],
) -> Float[Array, "b ..."]:
    """The noise that a network's output at x_t implies; finite for every kind.

    Raises:
        InputError: unknown kind.
    """
    alpha, sigma = _at(levels, t, x_t)
    match _checked(kind):
        case "epsilon":
            return output
        case "v":
            return sigma * x_t + alpha * output
        case "x0":
            return (x_t - alpha * output) / sigma


def _at(levels: Levels, t, x) -> tuple[Array, Array]:
    """alpha and sigma at t, in the type of x, shaped to multiply it."""
    tables = (jnp.asarray(table, x.dtype) for table in (levels.alpha, levels.sigma))
    alpha, sigma = (table[jnp.asarray(t)] for table in tables)
    shape = alpha.shape + (1,) * (x.ndim - alpha.ndim)
    return alpha.reshape(shape), sigma.reshape(shape)


def _checked(kind: PredictionKind) -> PredictionKind:
    if kind not in get_args(PredictionKind):
        raise InputError.unknown("prediction kind", kind, get_args(PredictionKind))
    return kind
