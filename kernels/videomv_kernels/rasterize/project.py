"""Projection of 3D Gaussians to image space: plain JAX, differentiated by autodiff.

The elliptical weighted average of Zwicker et al. (2001) as 3D Gaussian splatting
uses it. Vectors are tuples of planes `[..., v, n]`: everything is elementwise, so XLA
fuses it, and no matrix unit rounds it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomv_kernels.rasterize.config import RasterConfig

# The linearisation of the projection is taken no farther outside the image than this
# share of the half field of view (3DGS).
_MARGIN = 0.3
# Variances above it, in square pixels, are culled: their determinant overflows.
_MAX_VARIANCE = 1e15


class Projected(NamedTuple):
    """Gaussians in image space, one entry per view and Gaussian.

    Attributes:
        mean: x, y in pixels, pixel centres at +0.5.
        conic: a, b, c of the inverse covariance [[a, b], [b, c]], in 1 / pixels^2.
        covariance: the diagonal and the determinant of the covariance: xx, yy, det.
        depth: distance along the optical axis.
        opacity: opacity.
        visible: whether the entry counts. Where it does not, the other fields hold
            harmless finite values that carry no gradient.
    """

    mean: tuple[Float[Array, "*b v n"], ...]
    conic: tuple[Float[Array, "*b v n"], ...]
    covariance: tuple[Float[Array, "*b v n"], ...]
    depth: Float[Array, "*b v n"]
    opacity: Float[Array, "*b v n"]
    visible: Bool[Array, "*b v n"]


def _dot(u, v):
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def _cross(u, v):
    return (
        u[1] * v[2] - u[2] * v[1],
        u[2] * v[0] - u[0] * v[2],
        u[0] * v[1] - u[1] * v[0],
    )


def _rotation(quats):
    """Rows of the rotation matrices of quaternions (w, x, y, z), not normalised."""
    w, x, y, z = (quats[..., i] for i in range(4))
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def project(
    means: Float[Array, "*b n 3"],
    quats: Float[Array, "*b n 4"],
    scales: Float[Array, "*b n 3"],
    opacities: Float[Array, "*b n"],
    colors: Float[Array, "*b n c"],
    world_to_camera: Float[Array, "*b v 4 4"],
    intrinsics: Float[Array, "*b v 4"],
    *,
    height: int,
    width: int,
    config: RasterConfig,
) -> Projected:
    """Project every Gaussian into every view.

    An entry is visible if all its numbers and those of its camera are finite, it lies
    beyond `config.near`, and its opacity reaches `config.alpha_min`. Colours are only
    looked at for that.
    """
    # Whatever is not finite becomes a constant here: a NaN times the zero gradient of
    # an invisible entry would still be a NaN.
    inputs = (means, quats, scales, opacities[..., None], colors)
    finite = jnp.all(jnp.isfinite(jnp.concatenate(inputs, -1)), -1)
    finite_view = jnp.isfinite(world_to_camera).all((-2, -1))
    finite_view &= jnp.isfinite(intrinsics).all(-1)
    means, quats, scales = (
        jnp.where(finite[..., None], x, jnp.zeros_like(x))
        for x in (means, quats, scales)
    )
    opacities = jnp.where(finite, opacities, jnp.zeros_like(opacities))
    camera = jnp.where(
        finite_view[..., None, None], world_to_camera, jnp.zeros_like(world_to_camera)
    )
    intrinsics = jnp.where(
        finite_view[..., None], intrinsics, jnp.ones_like(intrinsics)
    )

    # Planes: Gaussians [*b, 1, n], cameras [*b, v, 1].
    mean = tuple(means[..., None, :, i] for i in range(3))
    row = [tuple(camera[..., i, j, None] for j in range(4)) for i in range(3)]
    fx, fy, cx, cy = (intrinsics[..., i, None] for i in range(4))
    x, y, z = (_dot(r, mean) + r[3] for r in row)
    opacity = jnp.broadcast_to(opacities[..., None, :], z.shape)
    visible = finite[..., None, :] & finite_view[..., None]
    visible &= (z > config.near) & (opacity >= config.alpha_min)
    x, y, z = (jnp.where(visible, p, jnp.ones_like(p)) for p in (x, y, z))
    u, v = x / z, y / z
    mean2d = (fx * u + cx, fy * v + cy)

    # Covariance = m m^T + low_pass I with m = J W R S, of which J W comes first.
    half_x, half_y = _MARGIN * 0.5 * width / fx, _MARGIN * 0.5 * height / fy
    u = jnp.clip(u, -cx / fx - half_x, (width - cx) / fx + half_x)
    v = jnp.clip(v, -cy / fy - half_y, (height - cy) / fy + half_y)
    jacobian_x = [fx / z * (row[0][j] - u * row[2][j]) for j in range(3)]
    jacobian_y = [fy / z * (row[1][j] - v * row[2][j]) for j in range(3)]
    rotation = _rotation(quats[..., None, :, :])
    axes = [[r[j] * scales[..., None, :, j] for r in rotation] for j in range(3)]
    mx = [_dot(jacobian_x, axis) for axis in axes]
    my = [_dot(jacobian_y, axis) for axis in axes]
    trace = _dot(mx, mx) + _dot(my, my)
    visible &= (trace < _MAX_VARIANCE) & jnp.isfinite(mean2d[0] + mean2d[1])
    zeros = jnp.zeros_like(z)
    mx, my = ([jnp.where(visible, p, zeros) for p in m] for m in (mx, my))
    xx, xy, yy = _dot(mx, mx), _dot(mx, my), _dot(my, my)
    # xx yy - xy^2 by Lagrange's identity: no cancellation for needles.
    area = _cross(mx, my)
    det = _dot(area, area) + config.low_pass * (xx + yy) + config.low_pass**2
    xx, yy = xx + config.low_pass, yy + config.low_pass
    return Projected(
        mean=tuple(jnp.where(visible, p, zeros) for p in mean2d),
        conic=(yy / det, -xy / det, xx / det),
        covariance=jax.lax.stop_gradient((xx, yy, det)),
        depth=z,
        opacity=jnp.where(visible, opacity, jnp.ones_like(opacity)),
        visible=visible,
    )
