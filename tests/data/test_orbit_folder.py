"""Orbits on disk: the same after a round trip, and damage is named."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from videomv_jax.data.orbit_folder import OrbitFolderSource, write_orbit_folder
from videomv_jax.splat.cameras import orbit
from videomv_jax.types import InputError

VIEWS = 3
CAMERAS = orbit(VIEWS, elevation=20.0, size=16).resize(16, 20)
PATH = "one/a/campos_512_v4/00001/00001"


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(size=(VIEWS, 16, 20)).astype(np.float32)
    alpha[alpha < 0.3] = 0
    alpha[alpha > 0.7] = 1
    color = rng.uniform(size=(VIEWS, 16, 20, 3)).astype(np.float32)
    return alpha[..., None] * color + (1 - alpha[..., None]) * 0.5, alpha


@pytest.fixture
def root(tmp_path):
    for name in ("one/a", "one/b", "two/a"):
        rgb, alpha = pictures()
        write_orbit_folder(tmp_path, name, rgb, alpha, CAMERAS, f"thing {name}")
    return tmp_path


def test_round_trip(root):
    source = OrbitFolderSource(root, views=VIEWS)
    assert source.names == ["one/a", "one/b", "two/a"]
    sample = source[2]
    rgb, alpha = pictures()
    assert sample.name == "two/a" and sample.caption == "thing two/a"
    seen = sample.views.astype(np.float32) / 255
    np.testing.assert_allclose(seen[..., 3], alpha, atol=0.6 / 255)
    cover = seen[..., 3:]
    want = rgb + (1 - alpha[..., None]) * 0.5  # over white
    np.testing.assert_allclose(seen[..., :3] * cover + 1 - cover, want, atol=1.2 / 255)
    cameras = sample.cameras
    assert (cameras.height, cameras.width) == (16, 20)
    np.testing.assert_allclose(
        cameras.world_to_camera, CAMERAS.world_to_camera, atol=1e-5
    )
    np.testing.assert_allclose(cameras.intrinsics, CAMERAS.intrinsics, rtol=1e-5)


def test_layout_is_g_objaverses(root):
    fields = json.loads((root / f"{PATH}.json").read_text())
    matrix = np.asarray(CAMERAS.camera_to_world[1])
    # OpenCV axes as rows of the json: columns of camera-to-world.
    np.testing.assert_allclose(fields["y"], matrix[:3, 1], atol=1e-6)
    np.testing.assert_allclose(fields["origin"], matrix[:3, 3], atol=1e-6)
    assert fields["x_fov"] == pytest.approx(np.deg2rad(39.6), rel=1e-5)
    with Image.open(root / f"{PATH}.png") as image:
        assert image.mode == "RGBA" and image.size == (20, 16)


def test_a_json_without_fov_means_the_data_sets(root):
    path = root / f"{PATH}.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: fields[k] for k in ("x", "y", "z", "origin")}))
    cameras = OrbitFolderSource(root, views=VIEWS)[0].cameras
    np.testing.assert_allclose(cameras.intrinsics[1], CAMERAS.intrinsics[1], rtol=1e-5)


def test_missing_files_are_reported(root):
    (root / f"{PATH}.png").unlink()
    (root / "one/b/caption.txt").unlink()
    source = OrbitFolderSource(root, views=VIEWS)
    assert source.names == ["one/a", "one/b", "two/a"]  # places stay
    with pytest.raises(InputError, match=r"00001\.png: missing"):
        source[0]
    assert source[1].caption == ""
    with pytest.raises(InputError, match="3 views of 24"):
        OrbitFolderSource(root, views=24)[2]
    with pytest.raises(InputError, match="not a folder"):
        OrbitFolderSource(root / "nowhere")
    with pytest.raises(InputError, match="collection"):
        OrbitFolderSource(root, objects=["../a"])[0]


@pytest.mark.parametrize("kind", ["cut", "gray", "size", "json", "axes", "fov"])
def test_damaged_files_are_named(root, kind):
    png, camera = root / f"{PATH}.png", root / f"{PATH}.json"
    if kind == "cut":
        png.write_bytes(png.read_bytes()[:200])
    elif kind == "gray":
        Image.new("L", (20, 16)).save(png)
    elif kind == "size":
        Image.new("RGBA", (8, 8)).save(png)
    elif kind == "json":
        camera.write_text("{")
    else:
        fields = json.loads(camera.read_text())
        wrong = {"x": fields["y"]} if kind == "axes" else {"x_fov": 4.0}
        camera.write_text(json.dumps(fields | wrong))
    source = OrbitFolderSource(root, views=VIEWS)
    with pytest.raises(InputError, match="00001"):
        source[0]
    assert source[1].name == "one/b"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    saved = []

    def interrupt(self, path, *_, **__):
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    rgb, alpha = pictures()
    with pytest.raises(KeyboardInterrupt):
        write_orbit_folder(tmp_path, "one/a", rgb, alpha, CAMERAS, "thing")
    assert list((tmp_path / "one").iterdir()) == []


def test_bad_input(tmp_path):
    rgb, alpha = pictures()
    with pytest.raises(InputError, match="name"):
        write_orbit_folder(tmp_path, "a", rgb, alpha, CAMERAS, "thing")
    with pytest.raises(InputError, match="disagree"):
        write_orbit_folder(tmp_path, "a/b", rgb[:2], alpha, CAMERAS, "thing")
    aside = dataclasses.replace(CAMERAS, intrinsics=CAMERAS.intrinsics + 1.0)
    with pytest.raises(InputError, match="principal"):
        write_orbit_folder(tmp_path, "a/b", rgb, alpha, aside, "thing")
