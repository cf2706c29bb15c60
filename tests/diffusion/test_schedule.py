"""Schedules against the original's float64 tables."""

from pathlib import Path

import numpy as np
import pytest

from videomv_jax.diffusion import schedule
from videomv_jax.types import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion.npz"
SETS = {"linear_sd": "eps_linear_sd", "cosine_zero_snr": "v_cosine_ztsnr"}


@pytest.mark.parametrize("name", SETS)
def test_tables_equal_the_original(name):
    golden = np.load(GOLDEN)
    s = schedule.by_name(name)
    with np.errstate(divide="ignore"):
        tables = {
            "betas": s.betas,
            "alphas_cumprod": s.alphas_cumprod,
            "sqrt_alphas_cumprod": s.alpha,
            "sqrt_one_minus_alphas_cumprod": s.sigma,
            "sqrt_recip_alphas_cumprod": 1 / s.alpha,
            "sqrt_recipm1_alphas_cumprod": s.sigma / s.alpha,
        }
    for key, ours in tables.items():
        wanted = golden[f"out/{SETS[name]}/{key}"]
        assert ours.dtype == np.float64 and ours.shape == (schedule.TIMES,)
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-14, err_msg=key)


def test_zero_terminal_snr_is_exactly_zero():
    s = schedule.cosine_zero_snr()
    assert s.alpha[-1] == 0 and s.sigma[-1] == 1
    assert (np.diff(s.alpha) < 0).all()
    assert schedule.linear_sd().alpha[-1] > 0


def test_unknown_schedule_names_the_closest():
    with pytest.raises(InputError, match="schedule 'linear'.*'linear_sd'"):
        schedule.by_name("linear")
