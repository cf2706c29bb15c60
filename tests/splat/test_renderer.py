"""From Gaussians and cameras to pictures, by way of the public types."""

import jax
import jax.numpy as jnp
import numpy as np

from videomv_jax.sharding import make_mesh
from videomv_jax.splat.cameras import orbit
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import render


def ball(position):
    """One small opaque red Gaussian."""
    one = jnp.ones((1, 1), jnp.float32)
    return Gaussians(
        jnp.asarray([[position]], jnp.float32),
        jnp.asarray([[[1.0, 0, 0, 0]]]),
        jnp.full((1, 1, 3), 0.05),
        0.99 * one,
        jnp.asarray([[[1.0, 0, 0]]]),
    )


def test_pictures():
    """Where a ball on the +x axis, above the ground, is seen from four sides."""
    cameras = orbit(4, elevation=0, radius=2, fov=60, size=32)

    @jax.jit
    def run(gaussians):
        both = jax.tree.map(lambda x: jnp.concatenate([x, x]), gaussians)
        return render(both, cameras, background=jnp.asarray([0.0, 0.5, 1.0]))

    renders = run(ball([0.5, 0.0, 0.3]))
    assert renders.rgb.shape == (2, 4, 32, 32, 3)
    assert renders.overflow.shape == (2,) and not renders.overflow.any()
    np.testing.assert_array_equal(renders.rgb[0], renders.rgb[1])
    alpha = np.asarray(renders.alpha[0])
    focal = 16 / np.tan(np.pi / 6)
    # In front, to the left of the view from +y, behind, to the right from -y.
    for view, (aside, depth) in enumerate([(0, 1.5), (-0.5, 2), (0, 2.5), (0.5, 2)]):
        y, x = np.mgrid[:32, :32] + 0.5
        total = alpha[view].sum()
        seen_x, seen_y = (
            (alpha[view] * x).sum() / total,
            (alpha[view] * y).sum() / total,
        )
        np.testing.assert_allclose(seen_x, 16 + focal * aside / depth, atol=0.1)
        np.testing.assert_allclose(seen_y, 16 - focal * 0.3 / depth, atol=0.1)
        mean = renders.depth[0, view].sum() / total
        np.testing.assert_allclose(mean, depth, rtol=1e-4)
    wanted = alpha[..., None] * [1, 0, 0] + (1 - alpha[..., None]) * [0, 0.5, 1]
    np.testing.assert_allclose(renders.rgb[0], wanted, atol=1e-5)


def test_over_a_mesh():
    """Scenes over data and fsdp, views over view: the same pictures and gradients."""
    cameras = orbit(4, elevation=10, radius=2, fov=60, size=16)
    balls = [ball([x, 0.0, 0.3]) for x in (0.1, 0.2, 0.3, 0.4)]
    gaussians = jax.tree.map(lambda *x: jnp.concatenate(x), *balls)

    def loss(gaussians):
        out = render(gaussians, cameras, background=jnp.asarray([0.0, 0.5, 1.0]))
        return jnp.square(out.rgb).sum() + out.depth.sum(), out.overflow

    wanted, _ = jax.jit(jax.grad(loss, has_aux=True))(gaussians)
    with jax.set_mesh(make_mesh(ici={"data": 2, "fsdp": 2, "view": 2})):
        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(gaussians)
        grads, overflow = jax.jit(jax.grad(loss, has_aux=True))(gaussians)
    assert overflow.shape == (4,) and not overflow.any()
    largest = max(np.abs(y).max() for y in jax.tree.leaves(wanted))
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        # Tiles that share a step wait for each other to stop, and fewer share one.
        np.testing.assert_allclose(x, y, atol=1e-4 * largest)
    # The compiler may not split kernels: a TPU's refuse to be lowered outside.
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 2
