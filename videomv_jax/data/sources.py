"""Sources by their place: which layout a folder has, and several sources as one."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from videomv_jax.data.captions import read_captions
from videomv_jax.data.orbit_folder import VIEWS, OrbitFolderSource
from videomv_jax.data.pictures import SUFFIXES, PictureFolderSource, PictureTarSource
from videomv_jax.data.samples import (
    SampleSource,
    numbers,
    read_json,
    subfolders,
)
from videomv_jax.data.shards import MANIFEST, ShardSource
from videomv_jax.data.view_folder import (
    CAMERAS,
    TRANSFORMS,
    NerfFolderSource,
    ViewFolderSource,
)
from videomv_jax.types import InputError

LAYOUTS: dict[str, Any] = {
    "orbits": OrbitFolderSource,
    "views": ViewFolderSource,
    "nerf": NerfFolderSource,
    "pictures": PictureFolderSource,
    "tars": PictureTarSource,
    "shards": ShardSource,
}


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Where samples are and how to read them.

    Attributes:
        path: a folder (or a .tar).
        layout: one of `LAYOUTS`; "": look.
        weight: its share where several sources are mixed, relative to the others'.
        captions: a file for `read_captions`; "": the folder's own.
        index: from G-Objaverse's names to Objaverse's files, where `captions` goes by
            uid.
        objects: a .json list of the names to read; "": all.
        elevations: degrees, from and to, of the views to read; orbits only.
    """

    path: str
    layout: str = ""
    weight: float = 1.0
    captions: str = ""
    index: str = ""
    objects: str = ""
    elevations: tuple[float, float] | None = None


def read_specs(source: str | os.PathLike[str]) -> list[SourceSpec]:
    """The sources a path means: itself; or those that a .json file lists, which are
    objects with the fields of `SourceSpec`, their paths relative to the file.

    Raises:
        InputError: nothing there, an address, or the file holds something else.
    """
    # A command's argument was a Path, which makes one slash of two.
    if re.match(r"[a-z0-9]{2,}:/", str(source)):
        raise InputError(
            f"source: {source} is an address; buckets are written, not read: mount it "
            "(Cloud Storage FUSE, for gs://) or copy it, and give the folder"
        )
    source = Path(source)
    if source.suffix != ".json":
        return [SourceSpec(str(source))]
    known = {f.name: f for f in dataclasses.fields(SourceSpec)}
    specs = []
    for number, entry in enumerate(read_json(source, list)):
        where = f"{source}: entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise InputError(f"{where}: want an object with a path")
        for name in entry:
            if name not in known:
                raise InputError.unknown(f"field in {where}", name, known)
        values = dict(entry)
        for name in ("layout", "captions", "index", "objects"):
            if not isinstance(values.get(name, ""), str):
                raise InputError(f"{where}: {name} is no text")
        for name in ("path", "captions", "index", "objects"):
            if values.get(name):
                values[name] = str(source.parent / values[name])
        if "weight" in values:
            values["weight"] = float(numbers(values["weight"], (), f"{where}: weight"))
            if values["weight"] <= 0:
                raise InputError(f"{where}: weight {values['weight']}; want above 0")
        if values.get("elevations") is not None:
            band = numbers(values["elevations"], (2,), f"{where}: elevations")
            values["elevations"] = (float(band[0]), float(band[1]))
        specs.append(SourceSpec(**values))
    if not specs:
        raise InputError(f"{source}: lists no source")
    return specs


def open_source(
    spec: SourceSpec, views: int | None = 24, *, least: int | None = None
) -> SampleSource:
    """The samples of one source.

    Args:
        spec: where and how.
        views: how many views a sample has; None: all there are.
        least: views without which a sample is of no use; None: all of them.

    Raises:
        InputError: nothing there, an unknown layout, or a file that cannot be read.
    """
    layout = spec.layout or recognise(spec.path)
    if layout not in LAYOUTS:
        raise InputError.unknown("layout", layout, LAYOUTS)
    options: dict[str, Any] = {}
    if spec.captions:
        options["captions"] = read_captions(spec.captions, spec.index or None)
    if spec.objects:
        names = read_json(spec.objects, list)
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{spec.objects}: want a list of names")
        options["objects"] = names
    if layout in ("orbits", "views", "nerf"):
        options |= {"views": views, "least": least}
    if spec.elevations is not None:
        options["elevations"] = spec.elevations
    try:
        return LAYOUTS[layout](spec.path, **options)
    except TypeError as error:
        raise InputError(f"{spec.path}: layout {layout!r}: {error}") from error


def recognise(path: str | os.PathLike[str]) -> str:
    """The name of a folder's layout, from what is in it.

    Raises:
        InputError: none of the known ones.
    """
    path = Path(path)
    if path.suffix == ".tar" and path.is_file():
        return "tars"
    if not path.is_dir():
        raise InputError(f"source: {path} is not a folder")
    if (path / MANIFEST).is_file():
        return "shards"
    if any(path.glob("*.tar")):
        return "tars"
    inner = [Path(entry.path) for entry in subfolders(path)]
    for files, layout in (((CAMERAS,), "views"), (TRANSFORMS, "nerf")):
        if any((f / name).exists() for f in (path, *inner) for name in files):
            return layout
    if any((Path(e.path) / VIEWS).exists() for f in inner for e in subfolders(f)):
        return "orbits"
    if any(p.suffix.lower() in SUFFIXES for p in path.rglob("*")):
        return "pictures"
    raise InputError(
        f"source: {path} has none of the known layouts {', '.join(LAYOUTS)}; "
        "docs/data.md shows them"
    )
