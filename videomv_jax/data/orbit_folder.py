"""Rendered orbits on disk, laid out as G-Objaverse lays them out.

    <root>/<collection>/<object>/caption.txt
    <root>/<collection>/<object>/campos_512_v4/00000/00000.png   RGBA, straight alpha
    <root>/<collection>/<object>/campos_512_v4/00000/00000.json  camera

A camera's json holds its axes in the world, `x` right, `y` down, `z` forward, its
position `origin`, and the fields of view `x_fov`, `y_fov` in radians. `caption.txt` is
ours; the name of the folder of views is the data set's, whatever the image size.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from videomv_jax import atomic
from videomv_jax.splat.cameras import Cameras
from videomv_jax.types import InputError

VIEWS = "campos_512_v4"
CAPTION = "caption.txt"
FOV = math.radians(39.6)
"""Of every G-Objaverse view, where the json does not say."""


def write_orbit_folder(
    root: str | os.PathLike[str],
    name: str,
    rgb: Float[np.ndarray, "f h w 3"],
    alpha: Float[np.ndarray, "f h w"],
    cameras: Cameras,
    caption: str,
    *,
    background: float = 0.5,
) -> Path:
    """Write one object; its folder appears whole or not at all.

    Args:
        root: the data set's folder.
        name: "<collection>/<object>".
        rgb: views in [0, 1], composited over `background`.
        alpha: their coverage.
        cameras: `[f]`.
        caption: the object's text.
        background: grey level to remove from partly covered pixels.

    Returns:
        The object's folder.

    Raises:
        InputError: the name has not two parts, shapes disagree, a principal point is
            off the middle, or `root` cannot be written.
    """
    rgb, alpha = np.asarray(rgb), np.asarray(alpha)
    views = len(alpha)
    if rgb.shape != (*alpha.shape, 3) or cameras.intrinsics.shape != (views, 4):
        raise InputError(
            f"orbit: rgb {rgb.shape}, alpha {alpha.shape} and cameras "
            f"{cameras.intrinsics.shape} disagree; want [f h w 3], [f h w], [f 4]"
        )
    middle = np.array([cameras.width / 2, cameras.height / 2])
    if not np.allclose(cameras.intrinsics[:, 2:], middle, atol=1e-3):
        raise InputError("cameras: the layout wants principal points in the middle")
    if len(parts := Path(name).parts) != 2 or ".." in parts:
        raise InputError(f"name: got {name!r}, want '<collection>/<object>'")
    cover = np.maximum(alpha, 1e-6)[..., None]
    straight = np.clip((rgb - (1 - alpha[..., None]) * background) / cover, 0, 1)
    rgba = np.concatenate([straight, alpha[..., None]], -1)
    pixels = np.round(255 * rgba.clip(0, 1)).astype(np.uint8)
    target = Path(root) / name
    with atomic.replacing(target, CAPTION) as folder:
        for k in range(views):
            stem = folder / VIEWS / f"{k:05d}" / f"{k:05d}"
            stem.parent.mkdir(parents=True)
            Image.fromarray(pixels[k]).save(stem.with_suffix(".png"))
            stem.with_suffix(".json").write_text(json.dumps(_camera_json(cameras, k)))
        (folder / CAPTION).write_text(caption + "\n", encoding="utf-8")
    return target


def _camera_json(cameras: Cameras, view: int) -> dict[str, Any]:
    matrix = np.asarray(cameras.camera_to_world[view], np.float64)
    fx, fy = np.asarray(cameras.intrinsics[view, :2], np.float64)
    axes = {name: matrix[:3, i].tolist() for i, name in enumerate("xyz")}
    return axes | {
        "origin": matrix[:3, 3].tolist(),
        "x_fov": 2 * math.atan(cameras.width / 2 / fx),
        "y_fov": 2 * math.atan(cameras.height / 2 / fy),
    }


class OrbitFolderSource:
    """Objects of a folder of orbits, in the order of their names.

    Args:
        root: the data set's folder.
        views: how many views an item has; further ones on disk are left alone.
        background: grey level behind the object.

    Attributes:
        names: complete objects.
        problems: what the others lack, by name.

    Raises:
        InputError: `root` is no folder or holds no complete object.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        views: int = 24,
        background: float = 0.5,
    ):
        self._root = Path(root)
        self._views = views
        self._background = background
        if not self._root.is_dir():
            raise InputError(f"root: {self._root} is not a folder")
        self.names: list[str] = []
        self.problems: dict[str, str] = {}
        for folder in sorted(self._root.glob(f"[!.]*/[!.]*/{VIEWS}")):
            name = folder.parent.relative_to(self._root).as_posix()
            if missing := self._missing(name):
                self.problems[name] = missing
            else:
                self.names.append(name)
        if not self.names:
            found = f"; incomplete: {self.problems}" if self.problems else ""
            raise InputError(f"root: no complete orbit in {self._root}{found}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`name`, `caption`, `images [f h w 3]`, `alpha [f h w]` and `cameras [f]`.

        Raises:
            InputError: a file is damaged; says which.
        """
        name = self.names[index]
        pixels, matrices, intrinsics = [], [], []
        for k in range(self._views):
            stem = self._stem(name, k)
            image = _read_png(stem.with_suffix(".png"))
            pixels.append(image)
            if image.shape != pixels[0].shape:
                raise InputError(
                    f"{stem}.png: shape {image.shape}, view 0 has {pixels[0].shape}"
                )
            matrix, intrinsic = _read_camera(stem.with_suffix(".json"), image.shape)
            matrices.append(matrix)
            intrinsics.append(intrinsic)
        rgba = np.stack(pixels)
        alpha = rgba[..., 3]
        images = rgba[..., :3] * alpha[..., None]
        # numpy, as Grain's threads should not touch devices.
        cameras = Cameras(
            np.stack(matrices),  # pyright: ignore[reportArgumentType]
            np.stack(intrinsics),  # pyright: ignore[reportArgumentType]
            *alpha.shape[1:],
        )
        return {
            "name": name,
            "caption": (self._root / name / CAPTION).read_text("utf-8").strip(),
            "images": images + (1 - alpha[..., None]) * np.float32(self._background),
            "alpha": alpha,
            "cameras": cameras,
        }

    def _stem(self, name: str, view: int) -> Path:
        return self._root / name / VIEWS / f"{view:05d}" / f"{view:05d}"

    def _missing(self, name: str) -> str:
        """The first files an object lacks, as text; "" if it is complete."""
        stems = [self._stem(name, k) for k in range(self._views)]
        files = [s.with_suffix(kind) for s in stems for kind in (".png", ".json")]
        files.append(self._root / name / CAPTION)
        lost = [f.relative_to(self._root / name) for f in files if not f.is_file()]
        if not lost:
            return ""
        return f"{len(lost)} missing: {', '.join(map(str, lost[:3]))}" + (
            " ..." if len(lost) > 3 else ""
        )


def _read_png(path: Path) -> Float[np.ndarray, "h w 4"]:
    try:
        with Image.open(path) as image:
            if image.mode != "RGBA":
                raise InputError(f"{path}: mode {image.mode}, want RGBA")
            return np.asarray(image, np.float32) / 255
    except (OSError, SyntaxError) as error:  # PIL's word for a broken chunk
        raise InputError(f"{path}: damaged image: {error}") from error


def _read_camera(
    path: Path, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4"]]:
    """World-to-camera matrix and intrinsics at the size of the view's image."""
    try:
        fields = json.loads(path.read_text())
        axes = np.array([fields[name] for name in "xyz"], np.float64)
        origin = np.array(fields["origin"], np.float64)
        fov = float(fields.get("x_fov", FOV)), float(fields.get("y_fov", FOV))
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = axes, -axes @ origin
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged camera: {error!r}") from error
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
        raise InputError(f"{path}: x, y, z are not a rotation")
    height, width = shape[:2]
    focal = width / 2 / math.tan(fov[0] / 2), height / 2 / math.tan(fov[1] / 2)
    intrinsics = np.array([*focal, width / 2, height / 2], np.float32)
    return matrix.astype(np.float32), intrinsics
