"""Named arrays in safetensors files: read one by one, written in shards, checked.

Whoever converts a checkpoint holds one tensor at a time: `Tensor` tells shape and type
before it is read, and `write` asks for the values while it writes.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from videomv_jax.types import InputError

SUMS = "SHA256SUMS"
SHARD = 4 * 2**30
"""Bytes of tensors that a file holds unless told otherwise."""

_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class Tensor(NamedTuple):
    """An array that is not in memory yet.

    Attributes:
        shape, dtype: of what `read` returns.
        read: gives the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


Tensors = Mapping[str, Tensor]


def of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays in memory as tensors."""
    return {k: Tensor(x.shape, x.dtype, lambda x=x: x) for k, x in arrays.items()}


def open_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        InputError: no such file, not a safetensors file, or types beyond numpy's
            and bfloat16.
    """
    try:
        with safetensors.safe_open(path, "np"):
            pass  # it checks the header
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        dtype = _TYPES.get(about["dtype"])
        if dtype is None:
            raise InputError(f"{path}: {name} is {about['dtype']}; want {list(_TYPES)}")
        shape, begin = tuple(about["shape"]), 8 + size + about["data_offsets"][0]
        tensors[name] = Tensor(shape, dtype, _reader(path, begin, shape, dtype))
    return tensors


def _reader(path, begin: int, shape: tuple[int, ...], dtype: np.dtype):
    """Reads, where mapping the file would count what was read as memory in use."""

    def read() -> np.ndarray:
        count = math.prod(shape)
        with open(path, "rb") as file:
            file.seek(begin)
            raw = np.fromfile(file, np.uint8, count * dtype.itemsize)
        if raw.size != count * dtype.itemsize:
            raise InputError(f"{path} has become shorter")
        return raw.view(dtype).reshape(shape)

    return read


def open_stem(folder: str | os.PathLike[str], stem: str) -> dict[str, Tensor]:
    """The tensors of `<stem>.safetensors`, or of its shards by their index.

    Raises:
        InputError: neither is there, or a file is broken.
    """
    return {
        name: tensor
        for path in files(folder, stem)
        for name, tensor in open_file(path).items()
    }


def files(folder: str | os.PathLike[str], stem: str) -> list[Path]:
    """The file of a stem, or its shards.

    Raises:
        InputError: an index that cannot be understood.
    """
    index = Path(folder) / f"{stem}.safetensors.index.json"
    return shards(index) if index.is_file() else [Path(folder) / f"{stem}.safetensors"]


def shards(index: Path) -> list[Path]:
    """The files that an index of shards names.

    Raises:
        InputError: it is not such an index, or names files outside its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is not an index of shards: {error!r}") from error
    if any(Path(name).name != name for name in names):
        raise InputError(f"{index} names files outside its folder")
    return [index.with_name(name) for name in names]


def write(
    folder: Path,
    stem: str,
    tensors: Tensors,
    *,
    shard: int = SHARD,
    told: Callable[[str], Any] = lambda name: None,
) -> list[Path]:
    """Write tensors to `<stem>.safetensors`, or to shards and an index.

    One tensor is in memory at a time.

    Args:
        folder: to write into.
        stem: of the names of the files.
        tensors: by name.
        shard: bytes of tensors per file; a larger tensor has a file of its own.
        told: called with each name before it is read.

    Returns:
        The files of tensors.
    """
    groups: list[list[str]] = [[]]
    room = shard
    for name, tensor in tensors.items():
        if groups[-1] and tensor.nbytes > room:
            groups.append([])
            room = shard
        groups[-1].append(name)
        room -= tensor.nbytes
    count = len(groups)
    names = [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    names = names if count > 1 else [f"{stem}.safetensors"]
    for name, group in zip(names, groups, strict=True):
        _write_file(folder / name, {key: tensors[key] for key in group}, told)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {
                key: name
                for name, group in zip(names, groups, strict=True)
                for key in group
            },
        }
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def _write_file(path: Path, tensors: Tensors, told: Callable[[str], Any]) -> None:
    # The widest types first, so that every tensor is aligned to its own.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header, begin = {}, 0
    for name, tensor in ordered:
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in ordered:
            told(name)
            x = tensor.read()
            assert (x.shape, x.dtype) == (tensor.shape, tensor.dtype), name
            # As bytes, for bfloat16 has no buffer of its own.
            file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file below a folder, as `sha256sum -c` reads them."""
    lines = (f"{_digest(path)}  {path.relative_to(folder)}\n" for path in _all(folder))
    (folder / SUMS).write_text("".join(lines))


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Compare a folder with its SHA256SUMS.

    Returns:
        What differs, one sentence per file; nothing when all is well.

    Raises:
        InputError: the folder has no such file, or it cannot be understood.
    """
    folder = Path(folder)
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except OSError as error:
        raise InputError(
            f"{folder} has no {SUMS}: there is nothing to verify it by"
        ) from error
    wanted = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise InputError(f"{folder / SUMS}: cannot understand {line!r}")
        wanted[name] = digest
    seen = {str(path.relative_to(folder)): path for path in _all(folder)}
    faults = [f"{name} is missing" for name in wanted if name not in seen]
    faults += [f"{name} is not listed" for name in seen if name not in wanted]
    both = [name for name in wanted if name in seen]
    changed = [name for name in both if _digest(seen[name]) != wanted[name]]
    return faults + [f"{name} has changed" for name in changed]


def _all(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SUMS:
            yield path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
