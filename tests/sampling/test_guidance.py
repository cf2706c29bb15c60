"""Classifier-free guidance and its rescaling."""

import jax
import jax.numpy as jnp
import numpy as np

from videomv_jax.sampling.guidance import guide

C, U = jax.random.normal(jax.random.key(0), (2, 3, 4, 2, 2, 4))


def test_scale():
    np.testing.assert_array_equal(guide(C, U, 0.0), U)
    np.testing.assert_allclose(guide(C, U, 1.0), C, atol=1e-6)
    np.testing.assert_allclose(guide(C, U, 9.0), U + 9 * (C - U), atol=1e-5)


def test_full_rescale_restores_the_spread_of_each_sample():
    c = C * jnp.asarray([1.0, 2.0, 3.0])[:, None, None, None, None]
    guided = guide(c, U, 9.0, 1.0)
    np.testing.assert_allclose(guided.std((1, 2, 3, 4)), c.std((1, 2, 3, 4)), rtol=1e-5)
    half = guide(c, U, 9.0, 0.5)
    np.testing.assert_allclose(half, (guided + guide(c, U, 9.0)) / 2, atol=1e-5)


def test_constant_outputs_stay_finite():
    zero = jnp.zeros_like(C)
    assert np.isfinite(guide(zero, zero, 9.0, 0.7)).all()
    assert np.isfinite(guide(C, zero, 0.0, 0.7)).all()
