"""The learning rate against the original's scheduler."""

from pathlib import Path

import numpy as np
import pytest

from videomv_jax.training.learning_rate import cosine
from videomv_jax.types import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion.npz"


def test_values_equal_the_original():
    z = np.load(GOLDEN)
    rate = cosine(3e-5, 10, 1_000_000)
    ours = [float(rate(step)) for step in z["out/lr/step"]]
    np.testing.assert_allclose(ours, z["out/lr/value"], rtol=1e-6, atol=1e-12)


def test_ends():
    rate = cosine(1.0, 0, 100)
    assert rate(0) == 1 and rate(100) == 0 and rate(1000) == 0


def test_warm_up_longer_than_the_run():
    with pytest.raises(InputError, match="warmup_steps: got 10, want 0 to 9"):
        cosine(1.0, 10, 10)
