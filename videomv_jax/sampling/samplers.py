"""Samplers as tables: one row of scalars per denoising step, made on the host.

Every sampler here is linear in what the loop holds,

    x_next = a x + b x0 + c x0_previous,

so the loop needs no code per sampler, and another sampler, spacing or number of
steps is other numbers in the same arrays: nothing recompiles.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videomv_jax.diffusion.schedule import TIMES, Schedule
from videomv_jax.types import InputError

MAX_STEPS = TIMES
Spacing = Literal["karras", "uniform"]

# Where the original's 3D-aware steps lie in its 50 DDIM steps: hard-wired indices,
# and the same as fractions of the schedule.
REFERENCE_INDICES = (20, 30, 40)
REFERENCE_FRACTIONS = (0.4, 0.6, 0.8)

# Stands in for a terminal alpha_bar of 0, whose log-SNR is infinite; diffusers' value.
_MIN_ALPHA_BAR = 2.0**-24
# Exponent of Karras spacing: arXiv 2206.00364, section 3.
_RHO = 7.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """What a denoising loop does, padded with zeros to `MAX_STEPS` rows.

    Attributes:
        t: the time the network is told, 0 ... 999.
        alpha, sigma: signal and noise of x at the step (not always those of t).
        a, b, c: x_next = a x + b x0 + c x0_previous.
        project: whether the step replaces x0 by its 3D projection.
        count: how many rows are steps.
    """

    t: Int[np.ndarray | Array, "s"]
    alpha: Float[np.ndarray | Array, "s"]
    sigma: Float[np.ndarray | Array, "s"]
    a: Float[np.ndarray | Array, "s"]
    b: Float[np.ndarray | Array, "s"]
    c: Float[np.ndarray | Array, "s"]
    project: Bool[np.ndarray | Array, "s"]
    count: Int[np.ndarray | Array, ""]


def ddim(schedule: Schedule, steps: int = 50) -> Steps:
    """Deterministic DDIM (Song et al., arXiv 2010.02502) on the original's times.

    1, 1 + k, 1 + 2k, ... with stride k = 1000 // steps, descending; each step goes k
    back, the last to time 0, which keeps a trace of noise. 50 steps: 981, 961 ... 1.
    Where `steps` does not divide 1000 the stride decides and there are more steps
    than asked for (30: 31); `count` has the number.

    Raises:
        InputError: steps outside 1 ... 1000.
    """
    _check_steps(steps)
    stride = TIMES // steps
    t = np.clip(1 + np.arange(0, TIMES, stride), 0, TIMES - 1)[::-1]
    to = np.maximum(t - stride, 0)
    alpha, sigma = schedule.alpha, schedule.sigma
    a = sigma[to] / sigma[t]
    b = alpha[to] - alpha[t] * a
    return _steps(t, alpha[t], sigma[t], a, b, np.zeros_like(a))


def dpm_solver_pp_2m(
    schedule: Schedule, steps: int = 20, spacing: Spacing = "karras"
) -> Steps:
    """DPM-Solver++(2M): Lu et al., arXiv 2211.01095, algorithm 2.

    Second order in log-SNR from the last two x0; first order on the first step and on
    the last, which returns x0 itself (noise 0).

    Args:
        steps: number of steps, exactly.
        spacing: of the noise levels sigma / alpha. "uniform": those of evenly spaced
            times from 999. "karras": arXiv 2206.00364, equation 5, rho 7, between the
            schedule's ends; they fall between times and the network is told the
            nearest. On a zero-terminal-SNR schedule Karras spacing spends half of
            its steps where nearly nothing but noise is left: prefer "uniform".

    Both start at time 999; with zero terminal SNR its alpha_bar counts as 2^-24.

    Raises:
        InputError: steps outside 1 ... 1000, or an unknown spacing.
    """
    _check_steps(steps)
    if spacing not in get_args(Spacing):
        raise InputError.unknown("spacing", spacing, get_args(Spacing))
    bar = np.maximum(schedule.alphas_cumprod, _MIN_ALPHA_BAR)
    ratios = np.sqrt((1 - bar) / bar)
    if spacing == "uniform":
        t = np.linspace(0, TIMES - 1, steps + 1).round()[:0:-1].astype(int)
        ratio = ratios[t]
    else:
        low, high = ratios[0] ** (1 / _RHO), ratios[-1] ** (1 / _RHO)
        ratio = (high + np.linspace(0, 1, steps) * (low - high)) ** _RHO
        t = np.interp(np.log(ratio), np.log(ratios), np.arange(TIMES)).round()
    to = np.append(ratio[1:], 0.0)
    alpha, alpha_to = 1 / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + to**2)
    a = to * alpha_to / (ratio * alpha)
    first_order = alpha_to * (1 - to / ratio)
    # The correction adds (h / 2 h_previous) (x0 - x0_previous), h the step in log-SNR.
    h = -np.diff(np.log(ratio))
    c = np.zeros(steps)
    inner = np.arange(1, steps - 1)
    inner = inner[h[inner - 1] > 0]  # 1000 uniform steps visit one time twice
    c[inner] = -first_order[inner] * h[inner] / (2 * h[inner - 1])
    return _steps(t, alpha, ratio * alpha, a, first_order - c, c)


SAMPLERS: dict[str, Callable[[Schedule, int], Steps]] = {
    "ddim": ddim,
    "dpmpp": lambda schedule, steps: dpm_solver_pp_2m(schedule, steps, "uniform"),
    "dpmpp_karras": lambda schedule, steps: dpm_solver_pp_2m(schedule, steps, "karras"),
}


def by_name(name: str) -> Callable[[Schedule, int], Steps]:
    """The function `(schedule, steps) -> Steps` that a config or user names.

    Raises:
        InputError: the name is not in `SAMPLERS`.
    """
    if name not in SAMPLERS:
        raise InputError.unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def project_at(steps: Steps, fractions: Sequence[float] = REFERENCE_FRACTIONS) -> Steps:
    """Make steps 3D-aware, given as fractions of the schedule.

    A fraction f means the first step whose time is at most (1 - f) 1000, so the same
    fraction means about the same noise whatever the sampler. The default marks
    indices 20, 30 and 40 of 50 DDIM steps, as the original.

    Raises:
        InputError: a fraction outside [0, 1).
    """
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise InputError(f"fractions: got {fraction}, want 0 <= fraction < 1")
    count = int(steps.count)
    times = steps.t[:count]
    # Rounded: 1 - 0.8 leaves a last digit that must not decide.
    limits = np.round((1 - np.asarray(fractions, float)) * TIMES, 6)
    first = (times[None] > limits[:, None]).sum(1)
    return project_at_indices(steps, np.minimum(first, count - 1).tolist())


def project_at_indices(
    steps: Steps, indices: Sequence[int] = REFERENCE_INDICES
) -> Steps:
    """Make steps 3D-aware, given by number; those past the last step are left out.

    A projected step and the one after are of first order: what x0 gained between the
    two is the projection's doing, not a trend to extrapolate.

    Raises:
        InputError: a negative index.
    """
    if any(index < 0 for index in indices):
        raise InputError(f"indices: got {list(indices)}, want none below 0")
    project = np.zeros(MAX_STEPS, bool)
    project[[index for index in indices if index < steps.count]] = True
    restart = project.copy()
    restart[1:] |= project[:-1]
    b = np.where(restart, steps.b + steps.c, steps.b)
    c = np.where(restart, np.zeros_like(steps.c), steps.c)
    return dataclasses.replace(steps, b=b, c=c, project=project)


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps: got {steps}, want 1 to {MAX_STEPS}")


def _steps(t, alpha, sigma, a, b, c) -> Steps:
    def padded(column, dtype):
        return np.pad(column, (0, MAX_STEPS - len(t))).astype(dtype)

    return Steps(
        padded(t, np.int32),
        *(padded(column, np.float32) for column in (alpha, sigma, a, b, c)),
        project=np.zeros(MAX_STEPS, bool),
        count=np.asarray(len(t), np.int32),
    )
