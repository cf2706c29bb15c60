"""Cameras of the original, from its own code, against ours."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.splat import conventions
from videomv_jax.splat.cameras import Cameras, orbit
from videomv_jax.types import InputError

# Camera matrices, and every 16th row and column of the rays of every 5th view.
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "cameras.npz")
CONFIG = json.loads(str(GOLDEN["config"]))
RUNS = {name: CONFIG["runs"][name] for name in ("t2v", "i2v")}


def run_orbit(run):
    settings = RUNS[run]
    return orbit(
        settings["num_frames"],
        elevation=settings["elevation"],
        radius=settings["camera_distance"],
        size=CONFIG["ray_size"],
    )


def train_cameras():
    axes = GOLDEN["in/train/json_x_y_z_origin"]
    return conventions.objaverse_cameras(axes, 256, 256)


def check_branch(cameras, prefix, variant="consistent"):
    """Gaussian branch: rays and the rasterizer's matrices."""
    moved, _ = conventions.canonical_frame(cameras, variant)
    view, projected = conventions.to_row_vectors(moved)
    np.testing.assert_allclose(view, GOLDEN[f"{prefix}/cam_view"], atol=5e-6)
    np.testing.assert_allclose(projected, GOLDEN[f"{prefix}/cam_view_proj"], atol=1e-5)
    rays = conventions.plucker_rays(moved[::5])
    wanted = GOLDEN[f"{prefix}/plucker_every16"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(rays[:, ::16, ::16], wanted, atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_orbit_is_the_inference_path(run):
    condition = conventions.unet_condition(run_orbit(run))
    np.testing.assert_allclose(condition, GOLDEN[f"out/{run}/camera_data"], atol=1e-6)


@pytest.mark.parametrize("variant", ["consistent", "released"])
@pytest.mark.parametrize("run", RUNS)
def test_gaussian_branch(run, variant):
    check_branch(run_orbit(run), f"out/{run}/{variant}", variant)


def test_variants_differ():
    """What pitfall 2 of the original's inference scripts does to the cameras."""
    cameras = orbit(24, radius=2.0)
    for variant, depths in (
        ("consistent", 2.0 * np.ones(3)),
        ("released", np.array([2.0, 0.13, -5.5])),
    ):
        moved, _ = conventions.canonical_frame(cameras, variant)
        depth = moved.world_to_camera[np.array([0, 4, 12]), 2, 3]
        np.testing.assert_allclose(depth, depths, atol=0.05)


def test_training_records():
    cameras = train_cameras()
    condition = conventions.unet_condition(cameras)
    np.testing.assert_allclose(condition, GOLDEN["out/train/camera_data"], atol=1e-6)
    check_branch(cameras, "out/train")


def test_lgm_default_rays():
    rays = conventions.plucker_rays(conventions.lgm_default_cameras())
    wanted = GOLDEN["out/lgm_default_rays_every16"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(rays[:, ::16, ::16], wanted, atol=1e-6)


def test_canonical_frame_leads_back_to_the_world():
    cameras = orbit(6, elevation=20, radius=1.7, azimuth=33, size=8)
    cameras = Cameras(
        *(
            jnp.stack([x, x[::-1]])
            for x in (cameras.world_to_camera, cameras.intrinsics)
        ),
        8,
        8,
    )
    moved, back = conventions.canonical_frame(cameras)
    assert back.shape == (2, 4, 4)
    positions = jnp.einsum("bij,bfj->bfi", back[:, :3, :3], moved.positions)
    positions = positions + back[:, None, :3, 3]
    np.testing.assert_allclose(positions, cameras.positions, atol=1e-6)
    np.testing.assert_allclose(moved.positions[:, 0], [[0, 0, 1.7]] * 2, atol=1e-6)
    np.testing.assert_allclose(back[:, :3, 3], np.zeros((2, 3)), atol=1e-6)


def test_rays_pass_through_their_pixels():
    """A point on a ray projects onto the pixel's centre, off-centre lens included."""
    cameras = orbit(2, size=8)
    intrinsics = jnp.asarray([[9.0, 7.0, 3.0, 5.5]] * 2)
    cameras = Cameras(cameras.world_to_camera, intrinsics, 5, 6)
    rays = conventions.plucker_rays(cameras)
    moment, direction = rays[..., :3], rays[..., 3:]
    assert rays.shape == (2, 5, 6, 6)
    np.testing.assert_allclose(jnp.linalg.norm(direction, axis=-1), 1.0, atol=1e-6)
    point = jnp.cross(direction, moment) + 3.0 * direction
    matrix = cameras.world_to_camera
    local = jnp.einsum("fij,fhwj->fhwi", matrix[:, :3, :3], point)
    local = local + matrix[:, None, None, :3, 3]
    x = 9.0 * local[..., 0] / local[..., 2] + 3.0
    y = 7.0 * local[..., 1] / local[..., 2] + 5.5
    rows, columns = np.mgrid[:5, :6] + 0.5
    np.testing.assert_allclose(x, np.stack([columns] * 2), atol=1e-4)
    np.testing.assert_allclose(y, np.stack([rows] * 2), atol=1e-4)


def test_row_vectors_round_trip():
    cameras = orbit(3, size=8)
    intrinsics = jnp.asarray([[9.0, 7.0, 3.0, 5.5]] * 3)
    cameras = Cameras(cameras.world_to_camera, intrinsics, 5, 6)
    again = conventions.from_row_vectors(*conventions.to_row_vectors(cameras), 5, 6)
    np.testing.assert_allclose(again.world_to_camera, cameras.world_to_camera)
    np.testing.assert_allclose(again.intrinsics, cameras.intrinsics, atol=1e-5)


def test_bad_input():
    with pytest.raises(InputError, match="variant: got 'flipped'"):
        conventions.canonical_frame(orbit(2), "flipped")
    with pytest.raises(InputError, match=r"axes: got \(24, 3\)"):
        conventions.objaverse_cameras(np.zeros((24, 3)), 8, 8)
    with pytest.raises(InputError, match="no rotation"):
        conventions.objaverse_cameras(np.ones((2, 4, 3)), 8, 8)
