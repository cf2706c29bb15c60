"""Where our cameras meet other people's axes.

Ours: world z up, camera x right, y down, z forward (OpenCV). The original's networks
were trained on OpenGL camera-to-world matrices (x right, y up, z backward) and, for
the Gaussian branch, in a frame tied to the first view. Facts: VideoMV's released code.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_jax.splat.cameras import Cameras


def opengl_camera_to_world(cameras: Cameras) -> Float[Array, "*b f 4 4"]:
    """Camera-to-world matrices whose columns are right, up, back and position."""
    flip = jnp.asarray([1.0, -1.0, -1.0, 1.0])
    matrix = cameras.camera_to_world
    return matrix * flip.reshape((1,) * (matrix.ndim - 1) + (4,))


def unet_condition(cameras: Cameras) -> Float[Array, "*b f 16"]:
    """What the UNet's camera embedding reads: OpenGL camera-to-world, row by row."""
    matrix = opengl_camera_to_world(cameras)
    return matrix.reshape(*matrix.shape[:-2], 16)


def canonical_frame(cameras: Cameras) -> tuple[Cameras, Float[Array, "*b 4 4"]]:
    """Cameras in the frame the reconstructor works in, and the way back.

    There the first view stands at (0, 0, d), d its distance to the world's origin,
    with its OpenGL axes along the frame's: x right, y up, z towards the camera.

    Returns:
        The cameras, and `world_from_canonical` to map Gaussians back.
    """
    first = opengl_camera_to_world(cameras)[..., 0, :, :]
    distance = jnp.linalg.norm(first[..., :3, 3], axis=-1)[..., None]
    origin = first[..., :3, 3] - distance * first[..., :3, 2]
    back = first.at[..., :3, 3].set(origin)
    matrix = cameras.world_to_camera @ back[..., None, :, :].astype(jnp.float32)
    return dataclasses.replace(cameras, world_to_camera=matrix), back


def plucker_rays(cameras: Cameras) -> Float[Array, "*b f h w 6"]:
    """Rays through the pixel centres, (origin x direction, direction), |d| = 1.

    In the frame the cameras are given in.
    """
    x = jnp.arange(cameras.width, dtype=jnp.float32) + 0.5
    y = jnp.arange(cameras.height, dtype=jnp.float32) + 0.5
    fx, fy, cx, cy = (cameras.intrinsics[..., i, None] for i in range(4))
    ones = (1,) * (cx.ndim - 1)
    u = ((x.reshape(*ones, -1) - cx) / fx)[..., None, :]
    v = ((y.reshape(*ones, -1) - cy) / fy)[..., :, None]
    u, v = jnp.broadcast_arrays(u, v)
    local = jnp.stack([u, v, jnp.ones_like(u)], -1)
    local /= jnp.linalg.norm(local, axis=-1, keepdims=True)
    matrix = cameras.camera_to_world
    direction = jnp.einsum("...ij,...hwj->...hwi", matrix[..., :3, :3], local)
    origin = jnp.broadcast_to(cameras.positions[..., None, None, :], direction.shape)
    return jnp.concatenate([jnp.cross(origin, direction), direction], -1)
