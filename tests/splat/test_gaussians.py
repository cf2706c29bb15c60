"""Gaussians: moving, choosing, checking."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.splat.gaussians import Gaussians, quaternions, rotation_matrices
from videomv_jax.types import InputError


def some(*shape, seed=0, unit=True):
    """Random Gaussians `[*shape, ...]`."""
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(*shape, 4))
    if unit:
        quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    else:
        quats *= 0.3
    fields = (
        rng.normal(size=(*shape, 3)),
        quats,
        rng.uniform(0.1, 1, size=(*shape, 3)),
        rng.uniform(size=shape),
        rng.uniform(size=(*shape, 3)),
    )
    return Gaussians(*(jnp.asarray(x, jnp.float32) for x in fields))


def covariances(gaussians):
    axes = rotation_matrices(gaussians.quats) * gaussians.scales[..., None, :]
    return axes @ axes.mT


def similarity(seed=3, factor=1.7):
    """A rotation, a shift and a uniform scale."""
    quat = np.random.default_rng(seed).normal(size=4)
    quat = jnp.asarray(quat / np.linalg.norm(quat), jnp.float32)
    matrix = jnp.eye(4).at[:3, :3].set(factor * rotation_matrices(quat))
    return matrix.at[:3, 3].set(jnp.asarray([0.3, -2.0, 1.0]))


@pytest.mark.parametrize("batched", [False, True])
def test_transform(batched):
    gaussians, matrix = some(2, 5), similarity()
    if batched:
        matrix = jnp.stack([matrix, similarity(9, 0.4)])
    moved = jax.jit(Gaussians.transform)(gaussians, matrix)
    matrix = jnp.broadcast_to(matrix, (2, 4, 4))
    a, shift = matrix[:, None, :3, :3], matrix[:, None, :3, 3]
    means = (a @ gaussians.means[..., None])[..., 0] + shift
    np.testing.assert_allclose(moved.means, means, atol=1e-5)
    wanted = a @ covariances(gaussians) @ a.mT
    np.testing.assert_allclose(covariances(moved), wanted, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(moved.quats, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(moved.colors, gaussians.colors)
    again = moved.transform(jnp.linalg.inv(matrix))
    np.testing.assert_allclose(again.means, gaussians.means, atol=1e-5)


def test_quaternions_invert_rotation_matrices():
    quats = some(200).quats
    # Half turns have w = 0, where the naive formula divides by zero.
    quats = jnp.concatenate([quats, jnp.eye(4), -jnp.eye(4)])
    found = quaternions(rotation_matrices(quats))
    match = jnp.abs((found * quats).sum(-1))
    np.testing.assert_allclose(match, 1.0, atol=1e-5)
    assert (found[:, 0] >= 0).all()


def test_select():
    gaussians = some(2, 5)
    kept = gaussians.select(np.array([True, False, False, True, False]))
    assert kept.opacities.shape == (2, 2)
    chosen = jax.jit(Gaussians.select)(gaussians, jnp.asarray([3, 0]))
    for field in dataclasses.fields(Gaussians):
        values = np.asarray(getattr(gaussians, field.name))
        np.testing.assert_array_equal(getattr(kept, field.name), values[:, [0, 3]])
        np.testing.assert_array_equal(getattr(chosen, field.name), values[:, [3, 0]])
    with pytest.raises(InputError, match=r"which: got a mask \(4,\), want \(5,\)"):
        gaussians.select(np.ones(4, bool))


def test_orthonormalize_keeps_the_shape():
    sheared = some(50, unit=False)
    plain = sheared.orthonormalize()
    np.testing.assert_allclose(jnp.linalg.norm(plain.quats, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(covariances(plain), covariances(sheared), atol=1e-5)
    assert (plain.scales > 0).all()


def test_check():
    gaussians = some(2, 5)
    assert gaussians.check() is gaussians
    nan = gaussians.means.at[0, 1].set(jnp.nan)
    for bad, message in (
        ({"means": nan}, "means: 3 numbers are not finite"),
        ({"quats": gaussians.means}, r"quats: got \(2, 5, 3\), want \(2, 5, 4\)"),
        ({"colors": gaussians.colors[:1]}, r"colors: got \(1, 5, 3\)"),
        ({"scales": -gaussians.scales}, "scales: some are not positive"),
        ({"quats": jnp.zeros((2, 5, 4))}, "quats: some are zero"),
        ({"opacities": gaussians.opacities + 1}, "opacities: some lie outside"),
        ({"means": jnp.zeros(3)}, r"means: got \(3,\), want"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(gaussians, **bad).check()
