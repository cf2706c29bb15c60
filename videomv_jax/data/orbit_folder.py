"""Rendered orbits on disk, laid out as G-Objaverse lays them out.

    <root>/<collection>/<object>/caption.txt
    <root>/<collection>/<object>/campos_512_v4/00000/00000.png   RGBA, straight alpha
    <root>/<collection>/<object>/campos_512_v4/00000/00000.json  camera

A camera's json holds its axes in the world, `x` right, `y` down, `z` forward, its
position `origin`, and the fields of view `x_fov`, `y_fov` in radians; z is up. Code
that reads them for OpenGL changes the sign of `y` and of `z`: changing one alone, or
taking `y` for up, makes a left-handed camera, which is refused here. `caption.txt` is
ours; the name of the folder of views is the data set's, whatever the image size.
G-Objaverse has 40 views, of which 0 to 23 are the orbit; what else it has of a view,
albedo, normals, depth and roughness, is not read.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from videomv_jax import atomic
from videomv_jax.data.captions import caption_of
from videomv_jax.data.samples import (
    Sample,
    View,
    assemble,
    listed_once,
    numbers,
    read_image,
    read_json,
    subfolders,
    world_to_camera,
)
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
            stem = view_stem(folder / VIEWS, k)
            stem.parent.mkdir(parents=True)
            Image.fromarray(pixels[k]).save(stem.with_suffix(".png"))
            stem.with_suffix(".json").write_text(json.dumps(camera_fields(cameras, k)))
        (folder / CAPTION).write_text(caption + "\n", encoding="utf-8")
    return target


def camera_fields(cameras: Cameras, view: int) -> dict[str, Any]:
    """The json of one view's camera."""
    matrix = np.asarray(cameras.camera_to_world[view], np.float64)
    fx, fy = np.asarray(cameras.intrinsics[view, :2], np.float64)
    axes = {name: matrix[:3, i].tolist() for i, name in enumerate("xyz")}
    return axes | {
        "origin": matrix[:3, 3].tolist(),
        "x_fov": 2 * math.atan(cameras.width / 2 / fx),
        "y_fov": 2 * math.atan(cameras.height / 2 / fy),
    }


class OrbitFolderSource:
    """Objects of a folder of orbits.

    Args:
        root: the data set's folder.
        views: views 0 up to this are read; None: all that are there.
        captions: by name; objects without one have what is in their `caption.txt`.
        objects: names to read, in this order; None: all, in the order of their names.
        elevations: read the `views` first views of those whose camera stands within
            this many degrees above the equator, from and to, instead.
        least: views without which an object is of no use; None: all of them.

    Attributes:
        names: "<collection>/<object>" of all objects.

    Raises:
        InputError: `root` is no folder or holds no object, or names come twice.
    """

    layout = "orbits"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        views: int | None = 24,
        captions: Mapping[str, str] | None = None,
        objects: Sequence[str] | None = None,
        elevations: tuple[float, float] | None = None,
        least: int | None = None,
    ):
        self._root = Path(root)
        self._views = views
        self._captions = captions or {}
        self._elevations = elevations
        self._least = least
        if not self._root.is_dir():
            raise InputError(f"root: {self._root} is not a folder")
        # Objects are not looked into: there may be 280,000 of them, far away.
        self.names = listed_once(
            list(objects or _two_levels(self._root)), f"root: {self._root}"
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """See `SampleSource`."""
        name = self.names[index]
        if len(Path(name).parts) != 2 or ".." in Path(name).parts:
            raise InputError(f"{name!r}: want '<collection>/<object>'")
        folder = self._root / name
        stems = {stem.name: stem for stem in self._stems(folder / VIEWS)}
        caption = caption_of(name, self._captions, folder / CAPTION)
        readers = {n: lambda stem=stem: _read_view(stem) for n, stem in stems.items()}
        return assemble(name, caption, readers, self._least)

    def _stems(self, folder: Path) -> list[Path]:
        """The views to read, as paths without an ending."""
        if self._views is not None and self._elevations is None:
            return [view_stem(folder, k) for k in range(self._views)]
        try:
            found = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}") from error
        stems = [view_stem(folder, k) for k in found]
        if self._elevations is None:
            return stems
        low, high = self._elevations
        within = []
        for stem in stems:
            try:
                path = stem.with_suffix(".json")
                _, origin = _axes(read_json(path), path)
            except InputError:  # without a camera it is in no band
                continue
            ground = math.hypot(origin[0], origin[1])
            if low <= math.degrees(math.atan2(origin[2], ground)) <= high:
                within.append(stem)
        return within[: self._views]


def _two_levels(root: Path) -> list[str]:
    """Names of folders in folders, but for hidden ones."""
    return sorted(
        f"{outer.name}/{inner.name}"
        for outer in subfolders(root)
        for inner in subfolders(outer.path)
    )


def view_stem(folder: Path, view: int) -> Path:
    """A view's files without their endings, in an object's folder of views."""
    return folder / f"{view:05d}" / f"{view:05d}"


def _read_view(stem: Path) -> View:
    image = read_image(stem.with_suffix(".png"), alpha=True)
    matrix, intrinsics = _read_camera(stem.with_suffix(".json"), image.shape)
    return image, matrix, intrinsics


def _axes(
    fields: dict[str, Any], path: Path
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    axes = numbers([fields.get(name) for name in "xyz"], (3, 3), f"{path}: x, y, z")
    return axes, numbers(fields.get("origin"), (3,), f"{path}: origin")


def _read_camera(
    path: Path, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4"]]:
    """World-to-camera matrix and intrinsics at the size of the view's image."""
    fields = read_json(path)
    axes, origin = _axes(fields, path)
    fov = [fields.get(f"{side}_fov", FOV) for side in "xy"]
    fov = numbers(fov, (2,), f"{path}: x_fov, y_fov")
    if not ((fov > 0) & (fov < math.pi)).all():
        raise InputError(f"{path}: x_fov, y_fov {fov}; want radians between 0 and pi")
    height, width = shape[:2]
    focal = np.array([width, height]) / 2 / np.tan(fov / 2)
    intrinsics = np.array([*focal, width / 2, height / 2], np.float32)
    return world_to_camera(axes, origin, str(path)), intrinsics
