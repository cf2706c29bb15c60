"""Cameras and the orbit."""

import numpy as np
import pytest

from videomv_jax.splat.cameras import orbit
from videomv_jax.types import InputError


def test_orbit_stands_where_it_says():
    cameras = orbit(4, elevation=30, radius=2, fov=60, size=10, azimuth=90)
    assert (cameras.height, cameras.width) == (10, 10)
    high, out = 2 * 0.5, 2 * np.sqrt(0.75)
    wanted = [[0, out, high], [-out, 0, high], [0, -out, high], [out, 0, high]]
    np.testing.assert_allclose(cameras.positions, wanted, atol=1e-6)
    # The origin lies straight ahead; up in the world is up (-y) in the image.
    origin = cameras.world_to_camera[:, :3, 3]
    np.testing.assert_allclose(origin, [[0, 0, 2]] * 4, atol=1e-6)
    assert (cameras.world_to_camera[:, 1, 2] < -0.8).all()
    focal = 5 / np.tan(np.pi / 6)
    np.testing.assert_allclose(cameras.intrinsics[0], [focal, focal, 5, 5], rtol=1e-6)


def test_camera_to_world_inverts():
    cameras = orbit(3, elevation=-20, size=4)
    product = cameras.camera_to_world @ cameras.world_to_camera
    np.testing.assert_allclose(product, np.stack([np.eye(4)] * 3), atol=1e-6)


def test_resize_and_select():
    cameras = orbit(5, size=8)[np.array([3, 1])].resize(16, 4)
    assert cameras.world_to_camera.shape == (2, 4, 4)
    assert (cameras.height, cameras.width) == (16, 4)
    fx, fy, cx, cy = np.asarray(cameras.intrinsics[0])
    assert (cx, cy) == (2, 8) and np.isclose(fy, 4 * fx)
    np.testing.assert_array_equal(
        cameras.world_to_camera[0], orbit(5, size=8).world_to_camera[3]
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"views": 0},
        {"elevation": 91.0},
        {"elevation": float("nan")},
        {"radius": 0.0},
        {"radius": float("inf")},
        {"fov": 180.0},
        {"size": 0},
        {"azimuth": float("nan")},
    ],
)
def test_bad_orbit(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        orbit(**bad)
