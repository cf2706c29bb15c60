"""Step tables: time steps, coefficients, 3D-aware marks, bad input."""

import numpy as np
import pytest

from videomv_jax.diffusion.schedule import cosine_zero_snr, linear_sd
from videomv_jax.sampling import samplers
from videomv_jax.types import InputError

SCHEDULES = [linear_sd(), cosine_zero_snr()]


def test_ddim_times():
    steps = samplers.ddim(linear_sd(), 50)
    assert steps.count == 50 and steps.t[:50].tolist() == list(range(981, 0, -20))
    assert samplers.ddim(linear_sd(), 1).t[0] == 1
    uneven = samplers.ddim(linear_sd(), 30)
    assert uneven.count == 31 and uneven.t[:31].tolist() == list(range(991, 0, -33))
    assert samplers.ddim(linear_sd(), 1000).t[:3].tolist() == [999, 999, 998]


def test_dpm_solver_levels():
    schedule = linear_sd()
    uniform = samplers.dpm_solver_pp_2m(schedule, 20, "uniform")
    assert uniform.t[:3].tolist() == [999, 949, 899] and uniform.t[19] == 50
    np.testing.assert_allclose(
        uniform.alpha[:20], schedule.alpha[uniform.t[:20]], rtol=1e-6
    )
    karras = samplers.dpm_solver_pp_2m(schedule, 20, "karras")
    assert karras.t[0] == 999 and karras.t[19] == 0
    # Evenly spaced in (sigma / alpha)^(1/7).
    levels = (karras.sigma[:20] / karras.alpha[:20]).astype(float) ** (1 / 7)
    np.testing.assert_allclose(np.diff(levels), np.diff(levels).mean(), rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("count", [1, 2, 3, 20, 999, 1000])
def test_tables_are_sound(schedule, sampler, count):
    """Finite, padded with zeros, and each step keeps signal and noise consistent.

    If x = alpha X + sigma e and every x0 is X, the next x must have the next row's
    levels: b + c + a alpha = alpha_next and a sigma = sigma_next.
    """
    steps = samplers.by_name(sampler)(schedule, count)
    n = int(steps.count)
    for name in ("alpha", "sigma", "a", "b", "c"):
        column = getattr(steps, name)
        assert column.dtype == np.float32 and column.shape == (samplers.MAX_STEPS,)
        assert np.isfinite(column).all() and not column[n:].any()
    assert steps.t.dtype == np.int32 and (np.diff(steps.t[:n]) <= 0).all()
    assert steps.t[:n].min() >= 0 and steps.t[:n].max() <= 999
    assert not steps.project.any()
    a, b, c, alpha, sigma = (
        getattr(steps, name)[:n].astype(float)
        for name in ("a", "b", "c", "alpha", "sigma")
    )
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
    rows = np.arange(n - 1)
    if sampler == "ddim":  # the original clips 1000 to 999 and strides from there
        rows = rows[steps.t[: n - 1] < 999]
    signal, noise = (b + c + a * alpha)[rows], (a * sigma)[rows]
    np.testing.assert_allclose(signal, alpha[rows + 1], atol=1e-5)
    np.testing.assert_allclose(noise, sigma[rows + 1], atol=1e-5)
    if sampler != "ddim":
        assert (a[-1], b[-1], c[-1]) == (0, 1, 0)


def marked(steps):
    return np.flatnonzero(steps.project).tolist()


def test_fractions_equal_the_original_at_50_steps():
    steps = samplers.ddim(linear_sd(), 50)
    aware = samplers.project_at(steps)
    assert marked(aware) == marked(samplers.project_at_indices(steps)) == [20, 30, 40]
    assert aware.t[[20, 30, 40]].tolist() == [581, 381, 181]
    assert marked(samplers.project_at_indices(samplers.ddim(linear_sd(), 25))) == [20]


def test_fractions_mean_the_same_noise_for_every_sampler():
    for count in (10, 20, 37):
        for name in samplers.SAMPLERS:
            steps = samplers.by_name(name)(linear_sd(), count)
            aware = samplers.project_at(steps, [0.5])
            (index,) = marked(aware)
            assert steps.t[index] <= 500 < steps.t[index - 1]
    last = samplers.project_at(samplers.ddim(linear_sd(), 10), [0.0, 0.9999])
    assert marked(last) == [0, 9]


def test_projection_restarts_the_multistep_history():
    steps = samplers.dpm_solver_pp_2m(linear_sd(), 20)
    aware = samplers.project_at_indices(steps, [5])
    changed = np.flatnonzero(aware.c != steps.c).tolist()
    assert changed == [5, 6] and not aware.c[[5, 6]].any()
    np.testing.assert_allclose(aware.b + aware.c, steps.b + steps.c, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_bad_step_counts(sampler, steps):
    with pytest.raises(InputError, match=f"steps: got {steps}, want 1 to 1000"):
        samplers.by_name(sampler)(linear_sd(), steps)


def test_bad_names_and_marks():
    steps = samplers.ddim(linear_sd(), 10)
    with pytest.raises(InputError, match="spacing 'karas'.*'karras'"):
        samplers.dpm_solver_pp_2m(linear_sd(), 20, "karas")
    with pytest.raises(InputError, match="sampler 'dim'.*'ddim'"):
        samplers.by_name("dim")
    with pytest.raises(InputError, match="fractions: got 1.0"):
        samplers.project_at(steps, [0.4, 1.0])
    with pytest.raises(InputError, match="indices"):
        samplers.project_at_indices(steps, [-1])
