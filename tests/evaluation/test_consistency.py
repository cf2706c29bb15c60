"""Self-consistency: views of one object score above views of several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.data import synthetic
from videomv_jax.evaluation.consistency import fit, self_consistency
from videomv_jax.splat.cameras import orbit
from videomv_jax.splat.renderer import render

VIEWS = 8
CAMERAS = orbit(VIEWS, size=32)
FIT = {"count": 256, "iterations": 60, "views_a_step": 4}


@functools.cache
def turning(*seeds):
    """`[n, views, 32, 32, 3]` orbits of held-out objects."""
    scenes = [
        synthetic.build_scene(synthetic.sample_descriptions(1, seed, "heldout")[0])
        for seed in seeds
    ]
    images, _ = synthetic.render_orbit(synthetic.stack_scenes(scenes), CAMERAS, 0.5)
    return images


def scores(images):
    return np.asarray(self_consistency(images, CAMERAS, 0.5, jax.random.key(0), **FIT))


@pytest.fixture(scope="module")
def truth():
    return scores(turning(0, 2))


def test_one_object_is_consistent(truth):
    assert (truth > 21).all()


def test_another_object_in_between_is_not(truth):
    images = turning(0, 2)
    odd = jnp.arange(VIEWS) % 2 == 1
    mixed = jnp.where(odd[:, None, None, None], images[::-1], images)
    assert (scores(mixed) < truth - 5).all()


def test_coverage_and_the_cost_of_opacity():
    # Grey Gaussians before the grey background, and some that no camera sees.
    images = jnp.full((1, VIEWS, 32, 32, 3), 0.5)
    key, alpha = jax.random.key(0), jnp.ones(images.shape[:-1])
    options = FIT | {"count": 64}
    fog = fit(images, CAMERAS, 0.5, key, **options)
    start = dataclasses.replace(fog, means=fog.means.at[:, 32:, 2].add(90))
    options |= {"alpha": alpha, "thinning": 1e-4, "start": start}
    found = fit(images, CAMERAS, 0.5, key, **options)
    before, after = (render(g, CAMERAS).alpha.mean() for g in (start, found))
    assert after > 4 * before > 0
    assert (found.opacities[:, 32:] < 0.5 * start.opacities[:, 32:]).all()
    np.testing.assert_allclose(found.means[:, 32:], start.means[:, 32:], rtol=1e-6)
