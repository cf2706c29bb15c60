"""PSNR and SSIM against their definitions, LPIPS in parts against the whole."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videomv_jax.evaluation.metrics import mean_lpips, psnr, ssim
from videomv_jax.models.lpips import LPIPS, LPIPSConfig

RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(size=(2, 3, 16, 14, 3)).astype(np.float32)
IMAGES = (TRUTH + 0.1 * RNG.normal(size=TRUTH.shape)).astype(np.float32)


def test_psnr():
    error = np.square(IMAGES - TRUTH).mean((2, 3, 4))
    np.testing.assert_allclose(
        psnr(jnp.asarray(IMAGES), jnp.asarray(TRUTH)), -10 * np.log10(error), rtol=1e-5
    )


def test_ssim():
    offsets = np.arange(11) - 5
    line = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    got = ssim(jnp.asarray(IMAGES), jnp.asarray(TRUTH))
    assert got.shape == (2, 3)
    x, y = IMAGES[1, 2].astype(float), TRUTH[1, 2].astype(float)
    values = []
    for c in range(3):
        for i in range(16 - 10):
            for j in range(14 - 10):
                a = x[i : i + 11, j : j + 11, c]
                b = y[i : i + 11, j : j + 11, c]
                ma, mb = (window * a).sum(), (window * b).sum()
                va = (window * (a - ma) ** 2).sum()
                vb = (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append(
                    (2 * ma * mb + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
                )
    np.testing.assert_allclose(got[1, 2], np.mean(values), rtol=1e-4)


def test_equal_images_are_perfect():
    truth = jnp.asarray(TRUTH)
    assert float(psnr(truth, truth).min()) == 100
    np.testing.assert_allclose(ssim(truth, truth), 1, rtol=1e-5)


def test_lpips_of_many():
    config = LPIPSConfig(widths=(4,), convs=(1,))
    metric = nnx.jit(lambda: LPIPS(config, rngs=nnx.Rngs(0)))()
    whole = nnx.jit(lambda m, a, b: m(a, b))(metric, IMAGES, TRUTH)
    assert whole.shape == (2, 3) and np.ptp(whole) > 1e-4
    np.testing.assert_allclose(mean_lpips(metric, IMAGES, TRUTH), whole.mean(), 1e-5)
