"""Meshes of files to orbits on disk, rendered by Blender in processes of their own."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from videomv_jax import atomic
from videomv_jax.data.captions import caption_of
from videomv_jax.data.orbit_folder import CAPTION, VIEWS, camera_fields, view_stem
from videomv_jax.data.samples import make_cameras
from videomv_jax.splat.cameras import Cameras, orbit
from videomv_jax.types import InputError

KINDS = (".glb", ".gltf", ".obj", ".ply", ".stl")
ENGINES = ("cycles", "eevee")
_PROGRAM = Path(__file__).with_name("blender.py")


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How meshes are rendered.

    Attributes:
        size: height and width in pixels.
        orbit: views of the orbit, which come first.
        others: further views, from anywhere between 10 degrees below the equator and
            60 above, decided by the object's name.
        elevation, radius, fov: of the orbit; degrees, and the objects' unit.
        extent: the farthest corner's distance from the origin; 0.65 just fits into
            views of 39.6 degrees from a distance of 2.
        samples: light paths per pixel (cycles).
        engine: "cycles", on the CPU, or "eevee", which wants a GPU.
        geometry: write depth and normals too, as an OpenEXR of several layers.
        threads: of one Blender.
        timeout: seconds for one object.
    """

    size: int = 512
    orbit: int = 24
    others: int = 8
    elevation: float = 15.0
    radius: float = 2.0
    fov: float = 39.6
    extent: float = 0.65
    samples: int = 16
    engine: str = "cycles"
    geometry: bool = False
    threads: int = 1
    timeout: float = 3600.0


def find_meshes(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Files of meshes in a folder and below, by the names of their objects.

    Names are "<collection>/<object>": the folders between, and the file's stem; the
    ending is added where two files have the same.

    Raises:
        InputError: no folder, or no mesh in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"models: {root} is not a folder")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in KINDS)
    if not files:
        raise InputError(f"models: no {', '.join(KINDS)} in {root}")
    stems: dict[str, list[Path]] = {}
    for file in files:
        folders = file.relative_to(root).parts[:-1]
        collection = "-".join(folders) or root.absolute().name
        name = f"{_plain(collection)}/{_plain(file.stem)}"
        stems.setdefault(name, []).append(file)
    found: dict[str, Path] = {}
    for name, same in stems.items():
        for file in same:
            ending = f"-{file.suffix[1:].lower()}" if len(same) > 1 else ""
            found[name + ending] = file
    return found


def _plain(name: str) -> str:
    """A name for a folder: neither hidden nor with odd characters."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"


def render_meshes(
    models: Mapping[str, Path],
    out: str | os.PathLike[str],
    settings: RenderSettings,
    *,
    captions: Mapping[str, str] | None = None,
    python: str = sys.executable,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Render objects in the layout of `orbit_folder`; those that are there stay.

    Args:
        models: from `find_meshes`.
        out: the data set's folder.
        settings: how.
        captions: by name; others have the words of their files' names.
        python: a Python that has `bpy`.
        processes: objects rendered at the same time.
        progress: is told how many objects are done, and of how many.

    Returns:
        What could not be rendered, and why.

    Raises:
        InputError: a setting out of range, or `python` has no `bpy`.
    """
    _check(settings)
    _check_python(python)
    problems: dict[str, str] = {}
    todo = [n for n in models if not (Path(out) / n / CAPTION).is_file()]
    done = len(models) - len(todo)
    progress(done, len(models))

    def one(name: str) -> tuple[str, str]:
        caption = caption_of(name, captions or {}) or words(models[name].stem)
        return name, _render(models[name], Path(out) / name, caption, settings, python)

    with ThreadPoolExecutor(processes) as pool:
        for name, problem in pool.map(one, todo):
            if problem:
                problems[name] = problem
            done += 1
            progress(done, len(models))
    return problems


def words(stem: str) -> str:
    """A file's name as a caption: "red_chair-02" is "red chair"."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem)
    return " ".join(re.findall(r"[^\W\d_]+", spaced)).lower()


def cameras_of(name: str, settings: RenderSettings) -> Cameras:
    """The orbit's cameras, then those from anywhere."""
    options = {"radius": settings.radius, "fov": settings.fov, "size": settings.size}
    around = orbit(settings.orbit, elevation=settings.elevation, **options)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    parts = [around]
    for _ in range(settings.others):
        # As much of the sphere at every height.
        low, high = np.sin(np.deg2rad([-10, 60]))
        height = float(np.rad2deg(np.arcsin(rng.uniform(low, high))))
        azimuth = float(rng.uniform(0, 360))
        parts.append(orbit(1, elevation=height, azimuth=azimuth, **options))
    matrices, intrinsics = (
        np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        for name in ("world_to_camera", "intrinsics")
    )
    return make_cameras(matrices, intrinsics, settings.size, settings.size)


def _render(
    model: Path, target: Path, caption: str, settings: RenderSettings, python: str
) -> str:
    """Render one object; returns what went wrong, or ""."""
    cameras = cameras_of(f"{target.parent.name}/{target.name}", settings)
    # Blender's cameras have OpenGL's axes: right, up, back.
    poses = np.linalg.inv(np.asarray(cameras.world_to_camera, np.float64))
    poses = poses @ np.diag([1.0, -1.0, -1.0, 1.0])
    with tempfile.TemporaryDirectory() as work:
        views = Path(work) / VIEWS
        stems = [view_stem(views, k) for k in range(len(poses))]
        for k, stem in enumerate(stems):
            stem.parent.mkdir(parents=True)
            text = json.dumps(camera_fields(cameras, k))
            stem.with_suffix(".json").write_text(text)
        job = {
            "model": str(model.absolute()),
            "views": [
                {"stem": str(stem), "camera_to_world": pose.tolist()}
                for stem, pose in zip(stems, poses, strict=True)
            ],
            "fov": math.radians(settings.fov),
            "size": settings.size,
            "samples": settings.samples,
            "engine": settings.engine,
            "extent": settings.extent,
            "geometry": settings.geometry,
            "threads": settings.threads,
        }
        path = Path(work) / "job.json"
        path.write_text(json.dumps(job))
        # -P: the folder of the program is no place to import from.
        command = [python, "-P", str(_PROGRAM), str(path)]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=settings.timeout
            )
        except subprocess.TimeoutExpired:
            return f"took longer than {settings.timeout:.0f} s"
        lines = [line for line in ended.stdout.splitlines() if line.strip()]
        if ended.returncode:
            told = lines or ended.stderr.strip().splitlines() or ["no word"]
            return f"Blender ended with {ended.returncode}: {told[-1]}"
        if missing := [s.name for s in stems if not s.with_suffix(".png").is_file()]:
            return f"Blender wrote no view {missing[0]}"
        with atomic.replacing(target, CAPTION) as folder:
            shutil.copytree(views, folder / VIEWS)
            (folder / CAPTION).write_text(caption + "\n", encoding="utf-8")
    return ""


def _check(settings: RenderSettings) -> None:
    for name, least in (("size", 8), ("orbit", 0), ("others", 0), ("samples", 1)):
        if getattr(settings, name) < least:
            raise InputError(f"{name}: {getattr(settings, name)}; want {least} or more")
    if settings.orbit + settings.others < 1:
        raise InputError("orbit, others: no view is asked for")
    if settings.engine not in ENGINES:
        raise InputError.unknown("engine", settings.engine, ENGINES)
    if not 0 < settings.extent < settings.radius:
        raise InputError(
            f"extent: {settings.extent}; want above 0 and below the radius "
            f"{settings.radius}"
        )


def _check_python(python: str) -> None:
    try:
        found = subprocess.run(
            [python, "-c", "import bpy"], capture_output=True, text=True
        )
    except OSError as error:
        raise InputError(f"python: cannot run {python}: {error.strerror}") from error
    if found.returncode:
        raise InputError(
            f"python: {python} has no bpy. Blender's module wants Python 3.11 and an "
            "older numpy, so give it an environment of its own: `python3.11 -m venv "
            "blender`, `blender/bin/pip install bpy==5.0.1`, `--python "
            "blender/bin/python`"
        )
