"""The folder that a prompt or a photo becomes."""

import collections
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from videomv_jax import __version__, media
from videomv_jax.splat.files import write_ply
from videomv_jax.splat.gaussians import Gaussians

META = "meta.json"
# A turn of the views takes 3 seconds, of the finer turntable as well.
VIEWS_FPS = 8
TURNTABLE_FPS = 24


def free_folder(out: str | os.PathLike[str], prompt: str) -> Path:
    """The folder for a prompt: its slug, with a number if that exists already.

    Nothing that was made before is ever overwritten.
    """
    name = slug(prompt)
    folder, number = Path(out) / name, 1
    while folder.exists():
        number += 1
        folder = Path(out) / f"{name}-{number}"
    return folder


def slug(text: str) -> str:
    """A text as the name of a folder."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    return name or "prompt"


def photo_folders(
    out: str | os.PathLike[str], photos: Sequence[Path]
) -> dict[Path, Path]:
    """Each photo's folder, which depends on its name alone: a rerun finds it again.

    Photos whose names differ in nothing but what a folder's name cannot hold, such as
    "a.png" and "a.jpg", are told apart by the whole name, then by a number.
    """
    stems = collections.Counter(slug(photo.stem) for photo in photos)
    folders: dict[Path, Path] = {}
    for photo in photos:
        name = slug(photo.stem)
        name = slug(photo.name) if stems[name] > 1 else name
        twins = sum(folder.name == name for folder in folders.values())
        folders[photo] = Path(out) / (f"{name}-{twins + 1}" if twins else name)
    return folders


def write_views(folder: Path, views: Float[np.ndarray, "f h w 3"]) -> None:
    """Write views.mp4, views.gif, the contact sheet views.png and views/00.png ..."""
    media.write_mp4(folder / "views.mp4", views, fps=VIEWS_FPS)
    media.write_gif(folder / "views.gif", views, fps=VIEWS_FPS)
    sheet = media.contact_sheet(views, columns=-(-len(views) // 4))
    media.write_png(folder / "views.png", sheet)
    (folder / "views").mkdir()
    for number, view in enumerate(views):
        media.write_png(folder / "views" / f"{number:02d}.png", view)


def write_asset(
    folder: Path, gaussians: Gaussians, turntable: Float[np.ndarray, "f h w 3"]
) -> None:
    """Write asset.ply and turntable.mp4.

    Args:
        folder: where to.
        gaussians: one scene, `[n, ...]`.
        turntable: its frames.
    """
    write_ply(folder / "asset.ply", gaussians)
    media.write_mp4(folder / "turntable.mp4", turntable, fps=TURNTABLE_FPS)


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write meta.json: what is given, and the versions it was made with."""
    device = jax.devices()[0]
    versions = {
        "videomv_jax": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
    }
    data = {**meta, "device": device.device_kind, "versions": versions}
    (folder / META).write_text(json.dumps(data, indent=2) + "\n")
