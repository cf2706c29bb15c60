"""A random scene, and a dense rasterizer in float64 that shares nothing with ours.

`dense` puts every Gaussian at every pixel, is written from the formulas with plain
matrices and differentiated by autodiff; call it under `jax.enable_x64(True)`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def scene():
    """See `_scene`."""
    return _scene


@pytest.fixture(scope="session")
def dense():
    """See `_dense`."""
    return _dense


def _scene(seed=0, *, n=100, batch=(), views=2, scale=0.08, opacity=(0.05, 1.0)):
    """The arrays of `rasterize` by name, in its order, as numpy: random Gaussians
    around the origin and cameras on a circle.

    Quaternions are not unit, lenses are off-centre and not square, and some Gaussians
    lie behind a camera, because this is what the rasterizer has to live with.
    """
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(*batch, n, 4))
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    quats *= rng.uniform(0.9, 1.1, size=(*batch, n, 1))
    means = rng.normal(size=(*batch, n, 3)) * 0.5
    means[..., :5, :] *= 6
    angles = rng.uniform(0, 2 * np.pi, size=(*batch, views))
    cos, sin, zero = np.cos(angles), np.sin(angles), np.zeros_like(angles)
    rows = [[cos, -sin, zero], [zero, zero, -zero - 1], [sin, cos, zero]]
    matrix = np.zeros((*batch, views, 4, 4))
    matrix[..., :3, :3] = np.stack([np.stack(row, -1) for row in rows], -2)
    matrix[..., :3, 3] = [0.05, -0.1, 2.0]
    matrix[..., 3, 3] = 1
    intrinsics = np.broadcast_to([60.0, 50.0, 27.0, 17.0], (*batch, views, 4))
    return {
        "means": means,
        "quats": quats,
        "scales": scale * np.exp(0.5 * rng.normal(size=(*batch, n, 3))),
        "opacities": rng.uniform(*opacity, size=(*batch, n)),
        "colors": rng.uniform(size=(*batch, n, 3)),
        "world_to_camera": matrix,
        "intrinsics": intrinsics.copy(),
    }


def _dense(
    means,
    quats,
    scales,
    opacities,
    colors,
    world_to_camera,
    intrinsics,
    *,
    height,
    width,
    background=0.0,
    drop_at=None,
    straight_through=False,
    alpha_min=1 / 255,
    alpha_max=0.99,
):
    """rgb, alpha, depth of one scene, `[v, h, w, ...]`.

    Args:
        drop_at: stop a pixel before the Gaussian that takes it below this
            transmittance (None: never stop).
        straight_through: let gradients pass the limit of alpha.
    """
    y, x = np.mgrid[:height, :width] + 0.5

    def view(matrix, lens):
        fx, fy, cx, cy = lens
        local = means @ matrix[:3, :3].T + matrix[:3, 3]
        z = local[:, 2]
        seen = z > 0.2
        z = jnp.where(seen, z, 1.0)
        u, v = local[:, 0] / z, local[:, 1] / z
        mean = jnp.stack([fx * u + cx, fy * v + cy], -1)
        u = u.clip((-cx - 0.15 * width) / fx, (1.15 * width - cx) / fx)
        v = v.clip((-cy - 0.15 * height) / fy, (1.15 * height - cy) / fy)
        zero = jnp.zeros_like(z)
        jacobian = jnp.stack(
            [
                jnp.stack([fx / z, zero, -fx * u / z], -1),
                jnp.stack([zero, fy / z, -fy * v / z], -1),
            ],
            -2,
        )
        axes = jax.vmap(_rotation)(quats) * scales[:, None, :]
        spread = jacobian @ matrix[:3, :3] @ axes
        covariance = spread @ spread.mT + 0.3 * jnp.eye(2)
        conic = jnp.linalg.inv(covariance)

        order = jnp.argsort(jnp.where(seen, z, jnp.inf))
        offset = jnp.asarray(np.stack([x, y], -1))[None] - mean[order][:, None, None]
        form = jnp.einsum("nhwi,nij,nhwj->nhw", offset, conic[order], offset)
        raw = opacities[order][:, None, None] * jnp.exp(-form / 2)
        alpha = jnp.minimum(raw, alpha_max)
        if straight_through:
            alpha = raw + jax.lax.stop_gradient(alpha - raw)
        counts = seen[order][:, None, None] & (raw >= alpha_min)
        alpha = jnp.where(counts, alpha, 0.0)
        through = jnp.cumprod(1 - alpha, 0)
        before = jnp.concatenate([jnp.ones_like(through[:1]), through[:-1]])
        weight = alpha * before
        if drop_at is not None:
            weight = jnp.where(through >= drop_at, weight, 0.0)
        rgb = jnp.einsum("nhw,nc->hwc", weight, colors[order])
        total = weight.sum(0)
        depth = jnp.einsum("nhw,n->hw", weight, z[order])
        return rgb + (1 - total)[..., None] * background, total, depth

    with jax.numpy_rank_promotion("allow"):
        rows = [view(m, k) for m, k in zip(world_to_camera, intrinsics, strict=True)]
    return tuple(jnp.stack(part) for part in zip(*rows, strict=True))


def _rotation(quat):
    """Matrix of a quaternion (w, x, y, z), not normalised."""
    w, (x, y, z) = quat[0], quat[1:]
    cross = jnp.asarray([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return jnp.eye(3) + 2 * w * cross + 2 * cross @ cross
