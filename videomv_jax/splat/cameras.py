"""Cameras: where each view stands and how it projects.

World frame: right-handed, z up, object in the unit ball. Camera frame: OpenCV, x
right, y down, z forward. Pixel centres lie at +0.5.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videomv_jax.types import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of one image size.

    Attributes:
        world_to_camera: `[..., f, 4, 4]` rigid transforms to OpenCV axes.
        intrinsics: `[..., f, 4]` fx, fy, cx, cy in pixels.
        height, width: image size in pixels (static).
    """

    world_to_camera: Float[Array, "*b f 4 4"]
    intrinsics: Float[Array, "*b f 4"]
    height: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})

    def __getitem__(self, views) -> "Cameras":
        """Select along the views axis (the axis before the matrices)."""
        return dataclasses.replace(
            self,
            world_to_camera=self.world_to_camera[..., views, :, :],
            intrinsics=self.intrinsics[..., views, :],
        )

    @property
    def camera_to_world(self) -> Float[Array, "*b f 4 4"]:
        """Inverse of `world_to_camera`, by transposing the rotation."""
        rotation = self.world_to_camera[..., :3, :3].mT
        translation = self.world_to_camera[..., :3, 3:]
        position = -jnp.matmul(rotation, translation, precision="highest")
        last = self.world_to_camera[..., 3:, :]
        return jnp.concatenate([jnp.concatenate([rotation, position], -1), last], -2)

    @property
    def positions(self) -> Float[Array, "*b f 3"]:
        """Camera centres in the world frame."""
        return self.camera_to_world[..., :3, 3]

    def resize(self, height: int, width: int) -> "Cameras":
        """The same views at another image size."""
        sx, sy = width / self.width, height / self.height
        scale = jnp.asarray([sx, sy, sx, sy], jnp.float32)
        scale = scale.reshape((1,) * (self.intrinsics.ndim - 1) + (4,))
        return dataclasses.replace(
            self, intrinsics=self.intrinsics * scale, height=height, width=width
        )


def orbit(
    views: int = 24,
    *,
    elevation: float | Float[np.ndarray, "*b"] = 15.0,
    radius: float = 2.0,
    fov: float = 39.6,
    size: int = 256,
    azimuth: float | Float[np.ndarray, "*b"] = 0.0,
) -> Cameras:
    """Cameras on a circle around the z axis, looking at the origin.

    Args:
        views: how many, evenly spaced over 360 degrees.
        elevation: degrees above the equator; of several orbits, an array.
        radius: distance to the origin.
        fov: full field of view in degrees, the same both ways.
        size: height and width in pixels.
        azimuth: degrees of the first view; 0 stands on +x, growing towards +y. An
            array like `elevation`.

    Returns:
        `[f]` cameras, or `[b, f]` of b orbits.

    Raises:
        InputError: a number is out of range.
    """
    upright = bool(np.all(np.abs(elevation) <= 90))
    finite = bool(np.isfinite(azimuth).all())
    for name, value, fits, wanted in (
        ("views", views, views >= 1, "at least 1"),
        ("elevation", elevation, upright, "-90 to 90 degrees"),
        ("radius", radius, 0 < radius < math.inf, "a positive number"),
        ("fov", fov, 0 < fov < 180, "between 0 and 180 degrees"),
        ("size", size, size >= 1, "at least 1 pixel"),
        ("azimuth", azimuth, finite, "a finite number of degrees"),
    ):
        if not fits:
            raise InputError(f"{name}: got {value}, want {wanted}")
    turn = 2 * np.pi * np.arange(views) / views
    a, e = np.broadcast_arrays(
        np.deg2rad(azimuth)[..., None] + turn, np.deg2rad(elevation)[..., None]
    )
    back = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1)
    right = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], -1)
    up = np.cross(back, right)
    rotation = np.stack([right, -up, -back], -2)
    matrix = np.tile(np.eye(4), (*a.shape, 1, 1))
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, radius * back)
    focal = size / 2 / math.tan(math.radians(fov) / 2)
    intrinsics = np.tile([focal, focal, size / 2, size / 2], (*a.shape, 1))
    return Cameras(
        jnp.asarray(matrix, jnp.float32),
        jnp.asarray(intrinsics, jnp.float32),
        size,
        size,
    )
