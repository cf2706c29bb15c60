"""Captions by name, as Cap3D publishes them and as folders hold them."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from videomv_jax.data.samples import read_json
from videomv_jax.types import InputError


def read_captions(
    path: str | os.PathLike[str], index: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """Captions by the names of samples.

    Args:
        path: a .json object of captions by name (Cap3D as G-Objaverse hands it out:
            `text_captions_cap3d.json`, keys "dictionary/instance"); or a .csv without
            a header, a name and its caption per row (Cap3D's own: names are Objaverse
            uids).
        index: `gobjaverse_280k_index_to_objaverse.json`, which says by G-Objaverse
            name which file of Objaverse it is; captions by uid become captions by
            those names.

    Returns:
        The captions that are text; other values are left out.

    Raises:
        InputError: a file is missing, of another kind, or holds no caption.
    """
    path = Path(path)
    if path.suffix == ".json":
        found = read_json(path)
    elif path.suffix == ".csv":
        found = _read_csv(path)
    else:
        raise InputError(f"captions: {path} is neither .json nor .csv")
    captions = {
        name: text.strip()
        for name, text in found.items()
        if isinstance(text, str) and text.strip()
    }
    if not captions:
        raise InputError(f"captions: {path} holds none")
    if index is None:
        return captions
    files = read_json(index)
    uids = {
        name: PurePosixPath(file).stem
        for name, file in files.items()
        if isinstance(file, str)
    }
    return {name: captions[uid] for name, uid in uids.items() if uid in captions}


def caption_of(name: str, captions: Mapping[str, str], file: Path | None = None) -> str:
    """A sample's caption: by its name, by its last part, or from a file; else "".

    Args:
        name: "<collection>/<object>" or "<object>".
        captions: from `read_captions`.
        file: a text file that may be there.
    """
    for key in (name, PurePosixPath(name).name):
        if key in captions:
            return captions[key]
    if file is None:
        return ""
    try:
        return file.read_text("utf-8").strip()
    except (OSError, ValueError):  # none, or not text: reported as "no caption"
        return ""


def _read_csv(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"captions: cannot read {path}: {error}") from error
    return {row[0].strip(): row[1] for row in rows}
