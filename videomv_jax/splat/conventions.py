"""Foreign cameras to ours and back: the one border where conventions change.

| whose | axes of a camera | world | numbers |
|---|---|---|---|
| ours | OpenCV: x right, y down, z forward | z up | matrices act on columns |
| UNet condition | OpenGL: x right, y up, z back | z up | camera-to-world, flattened |
| G-Objaverse json | OpenCV | z up | axes as vectors in the world |
| LGM, Gaussian branch | OpenGL | y up, view 0 on +z | camera-to-world |
| CUDA rasterizer | OpenCV | any | matrices act on rows |
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videomv_jax.splat.cameras import Cameras, orbit
from videomv_jax.types import InputError

FOV = 39.6
"""Full field of view in degrees of G-Objaverse and of every VideoMV model."""

# Between OpenCV and OpenGL axes: the second and third column change sign.
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)


def unet_condition(cameras: Cameras) -> Float[Array, "*b f 16"]:
    """The vectors that the UNet's camera MLP sees.

    Camera-to-world matrices with OpenGL columns (right, up, back, position), row by
    row; the world has z up and distances are not normalised.
    """
    matrix = _matmul(cameras.camera_to_world, _FLIP)
    return matrix.reshape(*matrix.shape[:-2], 16)


def plucker_rays(cameras: Cameras) -> Float[Array, "*b f h w 6"]:
    """Plücker coordinates (o x d, d) of every pixel's ray, in the cameras' frame.

    o is the camera's position, d the normalised direction through the pixel's centre.
    """
    y, x = np.mgrid[: cameras.height, : cameras.width].astype(np.float32) + 0.5
    fx, fy, cx, cy = (cameras.intrinsics[..., i, None, None] for i in range(4))
    ones = (1,) * (fx.ndim - 2)
    x, y = x.reshape(*ones, *x.shape), y.reshape(*ones, *y.shape)
    u, v = jnp.broadcast_arrays((x - cx) / fx, (y - cy) / fy)
    local = jnp.stack([u, v, jnp.ones_like(u)], -1)
    matrix = cameras.camera_to_world
    direction = jnp.einsum(
        "...ij,...hwj->...hwi", matrix[..., :3, :3], local, precision="highest"
    )
    direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True)
    origin = jnp.broadcast_to(matrix[..., None, None, :3, 3], direction.shape)
    return jnp.concatenate([jnp.cross(origin, direction), direction], -1)


def canonical_frame(
    cameras: Cameras, variant: Literal["consistent", "released"] = "consistent"
) -> tuple[Cameras, Float[Array, "*b 4 4"]]:
    """The cameras in the frame that LGM reconstructs in.

    View 0 looks down the z axis from (0, 0, distance) with x right and y up, where
    distance is its distance to the world's origin, so that the world's origin stays
    the origin if view 0 looks at it.

    Args:
        cameras: in the world.
        variant: "consistent" as the original's training code. "released" as its
            inference scripts, which change the sign of two axes once too often: the
            cameras then circle (0, 0, 2 distance) and look outward.

    Returns:
        The cameras there, and the matrix from that frame to the world. (For
        "released" it maps the cameras' positions back; their directions are not the
        world's.)

    Raises:
        InputError: unknown variant.
    """
    if variant not in ("consistent", "released"):
        raise InputError(f"variant: got {variant!r}, want 'consistent' or 'released'")
    # Both take view 0's matrix for OpenGL; "released" hands over the OpenCV one, and
    # turns every camera's axes afterwards.
    first = cameras.camera_to_world[..., 0, :, :]
    world_to_camera = cameras.world_to_camera
    if variant == "consistent":
        first = _matmul(first, _FLIP)
    else:
        world_to_camera = _matmul(_FLIP, world_to_camera)
    distance = jnp.linalg.norm(first[..., :3, 3], axis=-1)
    lowered = first[..., :3, 3] - distance[..., None] * first[..., :3, 2]
    world_from_canonical = first.at[..., :3, 3].set(lowered)
    moved = dataclasses.replace(
        cameras,
        world_to_camera=_matmul(world_to_camera, world_from_canonical[..., None, :, :]),
    )
    return moved, world_from_canonical


def objaverse_cameras(
    axes: Float[np.ndarray, "*b f 4 3"], height: int, width: int, *, fov: float = FOV
) -> Cameras:
    """Cameras of G-Objaverse's json files.

    Args:
        axes: the vectors `x`, `y`, `z` (OpenCV axes in a world with z up) and
            `origin` (position) of each view.
        height, width: image size in pixels.
        fov: full horizontal field of view in degrees; pixels are square.

    Raises:
        InputError: wrong shape, or the axes of a view are no rotation.
    """
    axes = np.asarray(axes, np.float64)
    if axes.ndim < 3 or axes.shape[-2:] != (4, 3):
        raise InputError(f"axes: got {axes.shape}, want [..., f, 4, 3]")
    rotation, origin = axes[..., :3, :], axes[..., 3, :]
    if not np.allclose(rotation @ rotation.swapaxes(-1, -2), np.eye(3), atol=1e-3):
        raise InputError("axes: x, y, z of a view are no rotation")
    matrix = np.zeros((*axes.shape[:-2], 4, 4), np.float32)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, origin)
    matrix[..., 3, 3] = 1
    focal = width / 2 / np.tan(np.deg2rad(fov) / 2)
    intrinsics = np.array([focal, focal, width / 2, height / 2], np.float32)
    intrinsics = np.broadcast_to(intrinsics, (*axes.shape[:-2], 4))
    return Cameras(jnp.asarray(matrix), jnp.asarray(intrinsics), height, width)


def lgm_default_cameras(size: int = 256, *, fov: float = FOV) -> Cameras:
    """The four cameras LGM assumes where it is told none, in its canonical frame.

    Azimuth 0, 90, 180 and 270 degrees on the equator, at a distance of 1.5.

    Args:
        size: height and width in pixels.
        fov: full field of view in degrees; LGM itself takes 49.1, VideoMV 39.6.
    """
    return canonical_frame(orbit(4, elevation=0, radius=1.5, fov=fov, size=size))[0]


def to_row_vectors(
    cameras: Cameras, *, near: float = 0.5, far: float = 2.5
) -> tuple[Float[Array, "*b f 4 4"], Float[Array, "*b f 4 4"]]:
    """The matrices `cam_view` and `cam_view_proj` of the original's CUDA rasterizer.

    They act on row vectors. The original has pixel centres at integers, a pixel being
    ((ndc + 1) size - 1) / 2, so the same matrices are half a pixel apart from ours as
    coordinates, and the same as places in the image.

    Args:
        cameras: any.
        near, far: distances of its clip planes. Its rasterizer never looks at the
            depth they make, and its matrix is one factor 2 short there: kept.
    """
    fx, fy, cx, cy = (cameras.intrinsics[..., i] for i in range(4))
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    width, height = cameras.width, cameras.height
    rows = [
        [2 * fx / width, zero, zero, zero],
        [zero, 2 * fy / height, zero, zero],
        [
            2 * cx / width - 1,
            2 * cy / height - 1,
            one * ((far + near) / (far - near)),
            one,
        ],
        [zero, zero, one * (-far * near / (far - near)), zero],
    ]
    projection = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    view = cameras.world_to_camera.mT
    return view, _matmul(view, projection)


def from_row_vectors(
    cam_view: Float[Array, "*b f 4 4"],
    cam_view_proj: Float[Array, "*b f 4 4"],
    height: int,
    width: int,
) -> Cameras:
    """Inverse of `to_row_vectors`, at a given image size."""
    cameras = Cameras(cam_view.mT, cam_view[..., 0], height, width)
    projection = _matmul(cameras.camera_to_world.mT, cam_view_proj)
    intrinsics = [
        projection[..., 0, 0] * (width / 2),
        projection[..., 1, 1] * (height / 2),
        (projection[..., 2, 0] + 1) * (width / 2),
        (projection[..., 2, 1] + 1) * (height / 2),
    ]
    return dataclasses.replace(cameras, intrinsics=jnp.stack(intrinsics, -1))


def _matmul(a, b):
    """Matrix product in full float32, whatever the default precision."""
    return jnp.matmul(a, b, precision="highest")
