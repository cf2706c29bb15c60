"""Noise schedules: how much signal and how much noise x_t holds at each time.

x_t = alpha_t x0 + sigma_t noise with alpha_t^2 + sigma_t^2 = 1, for 1,000 times
0 ... 999. Everything is computed in float64 and cast where it is gathered.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Float

from videomv_jax.types import InputError

TIMES = 1000


class Levels(Protocol):
    """Anything that tabulates noise levels: a `Schedule` by time, `Steps` by step."""

    @property
    def alpha(self) -> Float[np.ndarray | jax.Array, "s"]:
        """Share of signal, sqrt(alpha_bar)."""
        ...

    @property
    def sigma(self) -> Float[np.ndarray | jax.Array, "s"]:
        """Share of noise, sqrt(1 - alpha_bar)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a variance-preserving diffusion, float64, on the host.

    A constant of its model: close over it in jitted functions.

    Attributes:
        betas: variance added by each time.
        alphas_cumprod: alpha_bar, the product of 1 - beta up to each time.
        alpha: sqrt(alpha_bar).
        sigma: sqrt(1 - alpha_bar).
    """

    betas: Float[np.ndarray, "1000"]
    alphas_cumprod: Float[np.ndarray, "1000"]
    alpha: Float[np.ndarray, "1000"]
    sigma: Float[np.ndarray, "1000"]


def linear_sd() -> Schedule:
    """Stable Diffusion's schedule: sqrt(beta) linear from 0.00085^0.5 to 0.012^0.5.

    The released text-to-views model uses it, predicting epsilon.
    """
    return _schedule(np.linspace(0.00085**0.5, 0.012**0.5, TIMES) ** 2)


def cosine_zero_snr() -> Schedule:
    """Cosine schedule rescaled to zero terminal signal-to-noise ratio.

    Cosine: Nichol and Dhariwal, arXiv 2102.09672, equation 17, betas at most 0.999.
    Rescaling: Lin et al., arXiv 2305.08891, algorithm 1: sqrt(alpha_bar) is shifted
    and scaled so that it keeps its first value and ends at exactly 0. There x_t is
    pure noise and says nothing about epsilon, so models on it predict v or x0. The
    released image-to-views model uses it, predicting v.
    """
    angle = (np.arange(TIMES + 1) / TIMES + 0.008) / 1.008 * np.pi / 2
    bar = np.cos(angle) ** 2
    betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root**2
    return _schedule(1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]]))


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear_sd": linear_sd,
    "cosine_zero_snr": cosine_zero_snr,
}


def by_name(name: str) -> Schedule:
    """The schedule a model's config names.

    Raises:
        InputError: the name is not in `SCHEDULES`.
    """
    if name not in SCHEDULES:
        raise InputError.unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name]()


def _schedule(betas: Float[np.ndarray, "1000"]) -> Schedule:
    bar = np.cumprod(1 - betas)
    return Schedule(betas, bar, np.sqrt(bar), np.sqrt(1 - bar))
