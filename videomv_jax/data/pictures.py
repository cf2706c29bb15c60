"""Pictures with captions, as samples of one view without a camera.

Folders hold `name.png|jpg|jpeg|webp` beside `name.txt`; WebDataset's tars hold the
same, in any number of files `*.tar`. For joint training with orbits.
"""

import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from videomv_jax.data.captions import caption_of
from videomv_jax.data.samples import Sample, listed_once, read_image
from videomv_jax.types import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class PictureFolderSource:
    """Pictures of a folder and the folders in it, in the order of their names.

    Args:
        root: the folder.
        captions: by name without ending; others have what is in `name.txt`.
        objects: names to read, in this order; None: all.

    Raises:
        InputError: `root` is no folder or holds no picture.
    """

    layout = "pictures"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        captions: Mapping[str, str] | None = None,
        objects: Sequence[str] | None = None,
    ):
        self._root, self._captions = Path(root), captions or {}
        if not self._root.is_dir():
            raise InputError(f"root: {self._root} is not a folder")
        paths = [p for p in self._root.rglob("*") if p.suffix.lower() in SUFFIXES]
        files = [p.relative_to(self._root) for p in paths]
        self._files = {p.with_suffix("").as_posix(): p for p in sorted(files)}
        wanted = list(objects or self._files)
        if unknown := [name for name in wanted if name not in self._files]:
            raise InputError(f"objects: no picture {unknown[0]!r} in {self._root}")
        self.names = listed_once(wanted, f"root: {self._root}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """See `SampleSource`."""
        name = self.names[index]
        path = self._root / self._files[name]
        view = read_image(path)
        caption = caption_of(name, self._captions, path.with_suffix(".txt"))
        return Sample(name, caption, view[None], None)


class PictureTarSource:
    """Pictures of WebDataset's tars, in the order of the files and in them.

    The tars are read through once for the places of their members; a truncated one
    gives what comes before the cut.

    Args:
        root: a folder of tars, or one.
        captions: by name; others have what is in the member `name.txt`.

    Attributes:
        problems: tars that end early, and how.

    Raises:
        InputError: no tar, or none holds a picture.
    """

    layout = "tars"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        captions: Mapping[str, str] | None = None,
    ):
        root = Path(root)
        tars = [root] if root.is_file() else sorted(root.glob("*.tar"))
        if not tars:
            raise InputError(f"root: no .tar in {root}")
        self._captions = captions or {}
        self.problems: dict[str, str] = {}
        self._members: dict[str, tuple[Path, dict[str, tuple[int, int]]]] = {}
        for tar in tars:
            for key, parts in self._scan(tar).items():
                if any(suffix in parts for suffix in SUFFIXES):
                    self._members[f"{tar.stem}/{key}"] = tar, parts
        self.names = listed_once(list(self._members), f"root: {root}")

    def _scan(self, tar: Path) -> dict[str, dict[str, tuple[int, int]]]:
        """Offset and length of every member, by key and ending."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(tar, "r:") as members:
                for member in members:
                    if not member.isfile():
                        continue
                    # WebDataset's rule: the ending begins at the name's first dot.
                    path = PurePosixPath(member.name)
                    stem, dot, ending = path.name.partition(".")
                    key = path.with_name(stem or path.name).as_posix()
                    place = member.offset_data, member.size
                    found.setdefault(key, {})[dot + ending.lower()] = place
        except (tarfile.TarError, OSError, ValueError) as error:
            self.problems[tar.name] = str(error)
        return found

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """See `SampleSource`."""
        name = self.names[index]
        tar, parts = self._members[name]
        suffix = next(s for s in SUFFIXES if s in parts)
        view = read_image(_read(tar, *parts[suffix]), f"{tar}: {name}{suffix}")
        caption = caption_of(name, self._captions)
        if not caption and ".txt" in parts:
            caption = _read(tar, *parts[".txt"]).decode("utf-8", "replace").strip()
        return Sample(name, caption, view[None], None)


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
