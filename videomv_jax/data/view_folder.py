"""Folders of pictures beside one file of cameras: our plain layout, and NeRF's.

Plain, an object per folder:

    <root>/<object>/cameras.json   {"width", "height", "views": [{"file",
                                   "world_to_camera" (4 x 4 rows, OpenCV axes, z up),
                                   "intrinsics" [fx, fy, cx, cy]}, ...]}
    <root>/<object>/views/00.png
    <root>/<object>/caption.txt

NeRF's, likewise with `transforms.json` (or `transforms_train.json`): OpenGL
camera-to-world matrices, z up, and a field of view or focal lengths in pixels.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from videomv_jax import atomic
from videomv_jax.data.captions import caption_of
from videomv_jax.data.orbit_folder import CAPTION
from videomv_jax.data.samples import (
    Sample,
    View,
    assemble,
    listed_once,
    numbers,
    read_image,
    read_json,
    spread,
    subfolders,
    world_to_camera,
)
from videomv_jax.splat.cameras import Cameras
from videomv_jax.types import InputError

CAMERAS = "cameras.json"
TRANSFORMS = ("transforms.json", "transforms_train.json")


def write_view_folder(
    folder: str | os.PathLike[str],
    views: UInt8[np.ndarray, "f h w c"],
    cameras: Cameras,
    caption: str,
) -> Path:
    """Write one object in the plain layout; its folder appears whole or not at all.

    Args:
        folder: the object's.
        views: with 3 channels, or with coverage as the fourth, not multiplied.
        cameras: `[f]`.
        caption: its text.

    Raises:
        InputError: views and cameras disagree, or the folder cannot be written.
    """
    shape = (*cameras.intrinsics.shape[:1], cameras.height, cameras.width)
    if views.shape[:3] != shape or views.shape[3:] not in ((3,), (4,)):
        raise InputError(f"views: {views.shape}; the cameras want {shape} and 3 or 4")
    entries = [
        {
            "file": f"views/{k:02d}.png",
            "world_to_camera": np.asarray(cameras.world_to_camera[k]).tolist(),
            "intrinsics": np.asarray(cameras.intrinsics[k]).tolist(),
        }
        for k in range(len(views))
    ]
    fields = {"width": cameras.width, "height": cameras.height, "views": entries}
    with atomic.replacing(folder, CAMERAS) as fresh:
        (fresh / "views").mkdir()
        for view, entry in zip(views, entries, strict=True):
            Image.fromarray(view).save(fresh / entry["file"])
        (fresh / CAPTION).write_text(caption + "\n", encoding="utf-8")
        (fresh / CAMERAS).write_text(json.dumps(fields))
    return Path(folder)


class _Folders:
    """Objects that are folders with a file of cameras in them.

    Args:
        root: holds them, or is one.
        views: how many of an object's views are read, evenly spread over its list;
            None: all.
        captions: by name; objects without one have what is in their `caption.txt`.
        objects: names to read, in this order; None: all, in the order of their names.
        least: views without which an object is of no use; None: all of them.

    Raises:
        InputError: `root` is no folder or holds no object.
    """

    layout = ""
    files: Sequence[str] = ()

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        views: int | None = 24,
        captions: Mapping[str, str] | None = None,
        objects: Sequence[str] | None = None,
        least: int | None = None,
    ):
        self._root, self._views, self._least = Path(root), views, least
        self._captions = captions or {}
        if not self._root.is_dir():
            raise InputError(f"root: {self._root} is not a folder")
        self._alone = any((self._root / file).exists() for file in self.files)
        if self._alone:
            found = [self._root.absolute().name]
        else:
            found = objects or sorted(e.name for e in subfolders(self._root))
        self.names = listed_once(list(found), f"root: {self._root}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """See `SampleSource`."""
        name = self.names[index]
        folder = self._root if self._alone else self._root / name
        path = next((p for f in self.files if (p := folder / f).exists()), None)
        if path is None:
            raise InputError(f"{folder}: no {' or '.join(self.files)}")
        fields = read_json(path)
        entries = fields.get(self._list)
        if not isinstance(entries, list):
            raise InputError(f"{path}: {self._list} is no list")
        readers = {
            f"{k:05d}": lambda k=k: self._read(
                folder, fields, entries[k], f"{path}: view {k}"
            )
            for k in spread(len(entries), self._views)
        }
        caption = caption_of(name, self._captions, folder / CAPTION)
        return assemble(name, caption, readers, self._least)

    _list = ""

    def _read(self, folder: Path, fields: dict, entry: Any, where: str) -> View:
        raise NotImplementedError


class ViewFolderSource(_Folders):
    """The plain layout; the arguments are those of every folder of views."""

    layout, files, _list = "views", (CAMERAS,), "views"

    def _read(self, folder: Path, fields: dict, entry: Any, where: str) -> View:
        image = read_image(folder / _file(entry, "file", where))
        height, width = image.shape[:2]
        if (fields.get("height"), fields.get("width")) != (height, width):
            raise InputError(f"{where}: the picture is {width}x{height}, not as said")
        matrix = numbers(entry.get("world_to_camera"), (4, 4), where)
        intrinsics = numbers(entry.get("intrinsics"), (4,), where)
        axes = matrix[:3, :3]
        return (
            image,
            world_to_camera(axes, -axes.T @ matrix[:3, 3], where),
            intrinsics.astype(np.float32),
        )


class NerfFolderSource(_Folders):
    """NeRF's `transforms.json`, as its synthetic scenes and instant-ngp have it.

    Distances stay as they are: an object that does not fill the unit ball is not
    scaled. Lens distortion is not undone: views with any are refused.
    """

    layout, files, _list = "nerf", TRANSFORMS, "frames"

    def _read(self, folder: Path, fields: dict, entry: Any, where: str) -> View:
        file = folder / _file(entry, "file_path", where)
        if not file.suffix:
            file = file.with_name(f"{file.name}.png")
        image = read_image(file)
        height, width = image.shape[:2]
        fields = {**fields, **entry}
        if any(fields.get(k) for k in ("k1", "k2", "k3", "k4", "p1", "p2")):
            raise InputError(f"{where}: a distorted lens; undistort the pictures")
        # Focal lengths are for the size that the file gives, if it does.
        size = [fields.get("w", width), fields.get("h", height)]
        w, h = numbers(size, (2,), where)
        if not (w > 0 and h > 0):
            raise InputError(f"{where}: size {size}")
        focal_x = fields.get("fl_x") or _focal(fields, "camera_angle_x", w, where)
        if not focal_x:
            raise InputError(f"{where}: neither fl_x nor camera_angle_x")
        focal_y = fields.get("fl_y") or _focal(fields, "camera_angle_y", h, where)
        center = [fields.get("cx", w / 2), fields.get("cy", h / 2)]
        given = [focal_x, focal_y or focal_x, *center]
        intrinsics = numbers(given, (4,), f"{where}: focal lengths and centre")
        intrinsics *= np.array([width / w, height / h] * 2)
        matrix = numbers(entry.get("transform_matrix"), (4, 4), where)
        # OpenGL's axes are right, up, back.
        axes = matrix[:3, :3].T * np.array([[1], [-1], [-1]])
        return (
            image,
            world_to_camera(axes, matrix[:3, 3], where),
            intrinsics.astype(np.float32),
        )


def _focal(fields: dict, name: str, pixels: float, where: str) -> float | None:
    if fields.get(name) is None:
        return None
    angle = float(numbers(fields[name], (), f"{where}: {name}"))
    if not 0 < angle < math.pi:
        raise InputError(f"{where}: {name} {angle}; want radians between 0 and pi")
    return pixels / 2 / math.tan(angle / 2)


def _file(entry: Any, key: str, where: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise InputError(f"{where}: no {key}")
    return entry[key]
