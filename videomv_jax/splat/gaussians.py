"""3D Gaussians as the rest of the project sees them: activated, in the world frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from videomv_jax.types import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """A set (or batch of sets) of n coloured 3D Gaussians.

    Attributes:
        means: `[..., n, 3]` centres.
        quats: `[..., n, 4]` rotations (w, x, y, z), normalised.
        scales: `[..., n, 3]` standard deviations along the rotated axes, > 0.
        opacities: `[..., n]` in (0, 1).
        colors: `[..., n, 3]` rgb in [0, 1].
    """

    means: Float[Array, "*b n 3"]
    quats: Float[Array, "*b n 4"]
    scales: Float[Array, "*b n 3"]
    opacities: Float[Array, "*b n"]
    colors: Float[Array, "*b n 3"]

    def transform(self, matrix: Float[Array, "*#b 4 4"]) -> "Gaussians":
        """The Gaussians moved by a rotation, a shift and a uniform scale.

        Args:
            matrix: acts on columns; one, or one for each set. Anything else than a
                rotation times one positive factor gives wrong results.
        """
        batch = self.means.shape[:-2]
        matrix = jnp.broadcast_to(matrix, (*batch, 4, 4))
        linear, shift = matrix[..., :3, :3], matrix[..., None, :3, 3]
        factor = jnp.cbrt(jnp.linalg.det(linear))[..., None, None]
        means = jnp.matmul(self.means, linear.mT, precision="highest") + shift
        turn = quaternions(linear / factor)[..., None, :]
        return dataclasses.replace(
            self,
            means=means,
            quats=_multiply(turn, self.quats),
            scales=self.scales * factor,
        )

    def select(self, which: Bool[ArrayLike, "n"] | Int[ArrayLike, "k"]) -> "Gaussians":
        """Some of the Gaussians, the same of every set.

        Args:
            which: a mask, or numbers along the n axis.

        Raises:
            InputError: a mask of another length.
        """
        which, n = jnp.asarray(which), self.opacities.shape[-1]
        if which.dtype == jnp.bool_:
            if which.shape != (n,):
                raise InputError(f"which: got a mask {which.shape}, want {(n,)}")
            which = np.flatnonzero(which)
        return Gaussians(
            self.means[..., which, :],
            self.quats[..., which, :],
            self.scales[..., which, :],
            self.opacities[..., which],
            self.colors[..., which, :],
        )

    def orthonormalize(self) -> "Gaussians":
        """The same Gaussians with unit quaternions and matching scales.

        The rasterizer takes a quaternion of another length as it is, which shears
        (VideoMV's released reconstructor relies on it); everything else that reads
        Gaussians would normalise it and see another shape. This finds the axes of
        the sheared ellipsoid instead. Not meant to be differentiated.
        """
        sheared = rotation_matrices(self.quats) * self.scales[..., None, :]
        axes, scales, _ = jnp.linalg.svd(sheared)
        # A proper rotation: the sign of an axis is free.
        axes = axes.at[..., 2].multiply(jnp.linalg.det(axes)[..., None])
        return dataclasses.replace(self, quats=quaternions(axes), scales=scales)

    def check(self) -> "Gaussians":
        """These Gaussians, if they can be drawn. Looks at values: not under `jit`.

        Raises:
            InputError: shapes that do not fit together, a number that is not finite,
                a scale or quaternion of zero size, an opacity outside [0, 1].
        """
        if self.means.ndim < 2:
            raise InputError(f"means: got {self.means.shape}, want [..., n, 3]")
        batch, n = self.means.shape[:-2], self.means.shape[-2]
        wanted = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": ()}
        for name, axes in (wanted | {"colors": (3,)}).items():
            values = np.asarray(getattr(self, name))
            if values.shape != (*batch, n, *axes):
                raise InputError(
                    f"{name}: got {values.shape}, want {(*batch, n, *axes)}"
                )
            if bad := np.count_nonzero(~np.isfinite(values)):
                raise InputError(f"{name}: {bad} numbers are not finite")
        if not (np.asarray(self.scales) > 0).all():
            raise InputError("scales: some are not positive")
        if not np.asarray(self.quats).any(-1).all():
            raise InputError("quats: some are zero")
        opacities = np.asarray(self.opacities)
        if not ((opacities >= 0) & (opacities <= 1)).all():
            raise InputError("opacities: some lie outside [0, 1]")
        return self


def rotation_matrices(quats: Float[Array, "*n 4"]) -> Float[Array, "*n 3 3"]:
    """Matrices of quaternions (w, x, y, z), which are not normalised here."""
    w, x, y, z = (quats[..., i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def quaternions(matrices: Float[Array, "*n 3 3"]) -> Float[Array, "*n 4"]:
    """Unit quaternions (w, x, y, z), w >= 0, of rotation matrices."""
    m = [[matrices[..., i, j] for j in range(3)] for i in range(3)]
    # Rows of 4 q q^T: the one with the largest diagonal entry divides by no small
    # number.
    w, x = m[2][1] - m[1][2], m[0][2] - m[2][0]
    y = m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    a, b, c = m[0][0], m[1][1], m[2][2]
    outer = jnp.stack(
        [
            jnp.stack([1 + a + b + c, w, x, y], -1),
            jnp.stack([w, 1 + a - b - c, xy, xz], -1),
            jnp.stack([x, xy, 1 - a + b - c, yz], -1),
            jnp.stack([y, xz, yz, 1 - a - b + c], -1),
        ],
        -2,
    )
    diagonal = jnp.diagonal(outer, axis1=-2, axis2=-1)
    best = jnp.argmax(diagonal, -1)[..., None, None]
    row = jnp.take_along_axis(outer, best, -2)[..., 0, :]
    row = jnp.where(row[..., :1] < 0, -row, row)
    return row / jnp.linalg.norm(row, axis=-1, keepdims=True)


def _multiply(p, q):
    """Hamilton product: the rotation q, then p."""
    pw, px, py, pz = (p[..., i] for i in range(4))
    qw, qx, qy, qz = (q[..., i] for i in range(4))
    product = [
        pw * qw - px * qx - py * qy - pz * qz,
        pw * qx + px * qw + py * qz - pz * qy,
        pw * qy - px * qz + py * qw + pz * qx,
        pw * qz + px * qy - py * qx + pz * qw,
    ]
    return jnp.stack(product, -1)
