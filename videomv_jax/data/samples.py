"""What every source of real data gives: views, cameras and a caption.

Everything here is numpy: samples are read by threads that should not touch devices.
"""

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from videomv_jax.splat.cameras import Cameras
from videomv_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Sample:
    """One object, or one picture.

    Attributes:
        name: unique in its source.
        caption: "" where the source has none.
        views: `[f, h, w, 4]` red, green, blue and coverage, colours not multiplied.
        cameras: `[f]`, numpy leaves; None for pictures, which have no camera.
        lost: what is wrong with the views that should be here and are not, by name.
    """

    name: str
    caption: str
    views: UInt8[np.ndarray, "f h w 4"]
    cameras: Cameras | None
    lost: Mapping[str, str] = dataclasses.field(default_factory=dict)


class SampleSource(Protocol):
    """Samples by number, in an order that damage does not change.

    Attributes:
        layout: how the files lie.
        names: of all samples; a sample that cannot be read has its place.
    """

    layout: str
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            InputError: nothing usable is left of it; says what is wrong.
        """
        ...


View = tuple[
    UInt8[np.ndarray, "h w 4"], Float[np.ndarray, "4 4"], Float[np.ndarray, "4"]
]
"""Pixels, world-to-camera matrix, and fx, fy, cx, cy."""


def assemble(
    name: str,
    caption: str,
    readers: Mapping[str, Callable[[], View]],
    least: int | None = None,
) -> Sample:
    """A sample of the views that can be read.

    Args:
        name, caption: of the sample.
        readers: a function per view, by the view's name; raises InputError where the
            view is missing or damaged.
        least: views without which the sample is of no use; None: all of them.

    Raises:
        InputError: too few are left; says what is wrong with the first.
    """
    views: list[View] = []
    lost: dict[str, str] = {}
    for label, read in readers.items():
        try:
            view = read()
            if views and view[0].shape != views[0][0].shape:
                raise InputError(
                    f"{label}: shape {view[0].shape}, other views {views[0][0].shape}"
                )
            views.append(view)
        except InputError as error:
            lost[label] = str(error)
    needed = len(readers) if least is None else min(least, len(readers))
    if len(views) < max(needed, 1):
        first = next(iter(lost.values()), "there are none")
        raise InputError(
            f"{name}: {len(views)} views of {len(readers)} can be read, want "
            f"{max(needed, 1)}: {first}"
        )
    pixels, matrices, intrinsics = (np.stack(x) for x in zip(*views, strict=True))
    cameras = make_cameras(matrices, intrinsics, *pixels.shape[1:3])
    return Sample(name, caption, pixels, cameras, lost)


def make_cameras(
    matrices: Float[np.ndarray, "f 4 4"],
    intrinsics: Float[np.ndarray, "f 4"],
    height: int,
    width: int,
) -> Cameras:
    """Cameras with numpy leaves, float32."""
    return Cameras(
        np.asarray(matrices, np.float32),  # pyright: ignore[reportArgumentType]
        np.asarray(intrinsics, np.float32),  # pyright: ignore[reportArgumentType]
        height,
        width,
    )


def read_image(
    source: str | os.PathLike[str] | bytes, where: str = "", *, alpha: bool = False
) -> UInt8[np.ndarray, "h w 4"]:
    """A picture with 8 bits a channel; without coverage in the file it is full.

    Args:
        source: a file, or its content.
        where: name for messages; the file's by default.
        alpha: want coverage in the file.

    Raises:
        InputError: missing, damaged, or of another kind.
    """
    where = where or str(source)
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(opened) as image:
            mode, known = image.mode, ("RGBA",) if alpha else _MODES
            if mode in known:
                return np.asarray(image.convert("RGBA"))
    except FileNotFoundError as error:
        raise InputError(f"{where}: missing") from error
    except Exception as error:  # whatever Pillow makes of damaged files
        raise InputError(f"{where}: damaged image: {error!r}") from error
    raise InputError(f"{where}: mode {mode}, want one of {', '.join(known)}")


_MODES = ("RGBA", "RGB", "L", "LA", "P", "PA", "CMYK", "YCbCr")


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """The value in a JSON file, of one type.

    Raises:
        InputError: missing, no JSON, or a value of another type.
    """
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged JSON: {error!r}") from error
    if not isinstance(value, kind):
        raise InputError(
            f"{path}: holds a {type(value).__name__}, want a {kind.__name__}"
        )
    return value


def numbers(value: Any, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
    """Finite numbers of one shape from JSON, float64.

    Raises:
        InputError: something else; names `where`.
    """
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: not numbers: {error}") from error
    if found.shape != shape or not np.isfinite(found).all():
        raise InputError(f"{where}: {value!r:.80}; want finite numbers {list(shape)}")
    return found


def world_to_camera(
    axes: Float[np.ndarray, "3 3"], origin: Float[np.ndarray, "3"], where: str
) -> Float[np.ndarray, "4 4"]:
    """The matrix of a camera.

    Args:
        axes: rows x right, y down, z forward, as vectors in the world.
        origin: the camera's place.
        where: name for messages.

    Raises:
        InputError: the axes are no rotation, or left-handed.
    """
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
        raise InputError(f"{where}: the axes are not a rotation")
    if np.linalg.det(axes) < 0:
        raise InputError(
            f"{where}: the axes are left-handed; want x right, y down, z forward"
        )
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3], matrix[:3, 3] = axes, -axes @ origin
    return matrix


def fit(sample: Sample, size: int) -> Sample:
    """The sample with square views: the middle of the picture, resized.

    Colours are weighted by coverage, so that the result over a grey is what resizing
    the views over that grey gives (bicubic, antialiased: as the original).

    Args:
        sample: any.
        size: height and width in pixels.
    """
    height, width = sample.views.shape[1:3]
    if (height, width) == (size, size):
        return sample
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    box = (left, top, left + side, top + side)
    views = [
        np.asarray(
            Image.fromarray(view).resize((size, size), Image.Resampling.BICUBIC, box)
        )
        for view in sample.views
    ]
    cameras = sample.cameras
    if cameras is not None:
        moved = np.asarray(cameras.intrinsics) - np.array([0, 0, left, top], np.float32)
        moved = moved * np.float32(size / side)
        cameras = make_cameras(np.asarray(cameras.world_to_camera), moved, size, size)
    return dataclasses.replace(sample, views=np.stack(views), cameras=cameras)


def over(
    views: UInt8[np.ndarray, "*f h w 4"], background: float
) -> UInt8[np.ndarray, "*f h w 3"]:
    """Views over a grey in [0, 1], rounded; 0.5 is 128, as the original has it."""
    grey = math.floor(255 * background + 0.5)
    alpha = views[..., 3:].astype(np.uint16)
    mixed = views[..., :3] * alpha + np.uint16(grey) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` positions, evenly spread from the first; None: all."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def listed_once(names: Sequence[str], where: str) -> list[str]:
    """The names, if there are some and none comes twice.

    Raises:
        InputError: otherwise.
    """
    if not names:
        raise InputError(f"{where}: no samples")
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})[:3]
        raise InputError(f"{where}: names come twice: {', '.join(twice)}")
    return list(names)


def subfolders(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """The folders in a folder that are not hidden.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error
