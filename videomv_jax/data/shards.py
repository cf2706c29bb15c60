"""Encoded samples on disk: ArrayRecord files that a pod reads.

    <folder>/manifest.json                        what was encoded, with what
    <folder>/00000-of-00004.latents.array_record  a record per sample: VAE mean and
                                                  logarithm of the variance, text
                                                  states, cameras, name, caption
    <folder>/00000-of-00004.views.array_record    a record per sample: its views
    <folder>/00000-of-00004.json                  names, sums and problems; the shard
                                                  is complete once this is there

A record is a safetensors file in memory; views are PNGs in it. Latents and views lie
apart, as most training reads one of the two.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter
from flax import nnx
from PIL import Image

from videomv_jax.convert import mapping
from videomv_jax.data.samples import Sample, make_cameras, read_image, read_json
from videomv_jax.types import InputError

MANIFEST = "manifest.json"
VERSION = 1
LATENTS, VIEWS = "latents", "views"
_CHUNK = 1 << 20

Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the shards of a folder have in common.

    Attributes:
        version: of the files' layout.
        source, layout: where the samples came from.
        samples: how many the source lists, unreadable ones included.
        listing: sha256 of their names.
        per_shard: samples in a shard, unreadable ones included.
        views, size: of a sample; pixels of a side.
        background: grey behind the views that were encoded.
        suffix: what captions of objects end in, in the texts that were encoded.
        vae: fingerprint of the encoder of the views.
        text: fingerprint of the encoder of the captions; "": not encoded.
    """

    version: int
    source: str
    layout: str
    samples: int
    listing: str
    per_shard: int
    views: int
    size: int
    background: float
    suffix: str
    vae: str
    text: str

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.samples // self.per_shard)

    def stem(self, shard: int) -> str:
        """The beginning of the names of a shard's files."""
        return f"{shard:05d}-of-{self.shards:05d}"

    def files(self, shard: int) -> list[str]:
        """Names of a shard's files; the last one makes it complete."""
        stem = self.stem(shard)
        return [*(f"{stem}.{k}.array_record" for k in (LATENTS, VIEWS)), f"{stem}.json"]


def fingerprint(module: nnx.Module, *more: str) -> str:
    """What tells encoders apart: sizes and weights in float32, but not the compute
    type, and further texts."""
    sizes = dataclasses.asdict(module.config)  # type: ignore[attr-defined]
    sizes.pop("dtype", None)
    digest = hashlib.sha256(repr((sorted(sizes.items()), more)).encode())
    for name, value in sorted(mapping.flatten(module).items()):
        digest.update(f"{name}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def listing(names: list[str]) -> str:
    """The sum of a source's names."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def begin(folder: Path, manifest: Manifest) -> bool:
    """Write the manifest, or go on under one that is there; whether it is new.

    Raises:
        InputError: the one that is there differs, or the folder cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        there, ours = dataclasses.asdict(read_manifest(folder)), manifest
        for name, value in dataclasses.asdict(ours).items():
            if there[name] != value:
                raise InputError(
                    f"{path}: {name} is {there[name]!r}, now it is {value!r}; choose "
                    "another folder, or remove this one"
                )
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
        _write(path, text.encode())
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return True


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        InputError: there is none, or it cannot be understood.
    """
    path = Path(folder) / MANIFEST
    fields = read_json(path)
    if fields.get("version") != VERSION:
        raise InputError(f"{path}: version {fields.get('version')!r}, want {VERSION}")
    known = {f.name: f.type for f in dataclasses.fields(Manifest)}
    if fields.keys() != known.keys() or any(
        not isinstance(fields[name], kind)  # type: ignore[arg-type]
        for name, kind in known.items()
    ):
        raise InputError(f"{path}: want {', '.join(known)}")
    return Manifest(**fields)


class ShardWriter:
    """Writes one shard; call `close` for it to appear.

    Args:
        folder: of the shards.
        manifest: theirs.
        shard: its number.
    """

    def __init__(self, folder: Path, manifest: Manifest, shard: int):
        self._folder, self._stem = folder, manifest.stem(shard)
        self._names: list[str] = []
        self._problems: dict[str, str] = {}
        # A fixed name: what an interrupted run left is written over.
        self._paths = {
            kind: (
                folder / f".{self._stem}.{kind}.part",
                folder / f"{self._stem}.{kind}.array_record",
            )
            for kind in (LATENTS, VIEWS)
        }
        self._writers = {
            kind: ArrayRecordWriter(str(part), "group_size:1,uncompressed")
            for kind, (part, _) in self._paths.items()
        }

    def add(self, sample: Sample, encoded: Mapping[str, np.ndarray]) -> None:
        """One sample.

        Args:
            sample: its name, caption, cameras and views are written.
            encoded: "mean", "logvar", and "text" where captions are encoded.
        """
        record = {
            **encoded,
            "name": _text(sample.name),
            "caption": _text(sample.caption),
        }
        if sample.cameras is not None:
            for field in ("world_to_camera", "intrinsics"):
                record[field] = np.asarray(getattr(sample.cameras, field))
        self._writers[LATENTS].write(safetensors.numpy.save(record))
        views = {}
        for number, view in enumerate(sample.views):
            # Colours that nobody sees would be stored all the same.
            file = io.BytesIO()
            Image.fromarray(view * (view[..., 3:] > 0)).save(file, "PNG")
            views[f"{number:03d}"] = np.frombuffer(file.getvalue(), np.uint8)
        self._writers[VIEWS].write(safetensors.numpy.save(views))
        self._names.append(sample.name)

    def skip(self, name: str, problem: str) -> None:
        """Note a sample that cannot be read."""
        self._problems[name] = problem

    def close(self) -> dict[str, str]:
        """Put the shard in its place; returns what was skipped, and why."""
        files = {}
        for kind, (part, final) in self._paths.items():
            self._writers[kind].close()
            files[final.name] = {"bytes": part.stat().st_size, "sha256": _sum(part)}
            os.replace(part, final)
        entry = {"names": self._names, "problems": self._problems, "files": files}
        _write(self._folder / f"{self._stem}.json", json.dumps(entry).encode())
        return self._problems


def complete(folder: Path, manifest: Manifest, shard: int) -> bool:
    """Whether a shard is there."""
    return (folder / f"{manifest.stem(shard)}.json").is_file()


class ShardSource:
    """The samples of a folder of shards.

    Attributes:
        manifest: the folder's.
        names: of all samples.
        problems: samples that could not be read when the shards were made, and why.

    Raises:
        InputError: no manifest, or a shard is missing or has another size than it
            should have.
    """

    layout = "shards"

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(folder)
        self.manifest = read_manifest(self._folder)
        self.names: list[str] = []
        self.problems: dict[str, str] = {}
        missing = []
        paths: dict[str, list[str]] = {LATENTS: [], VIEWS: []}
        for shard in range(self.manifest.shards):
            stem = self.manifest.stem(shard)
            if not complete(self._folder, self.manifest, shard):
                missing.append(stem)
                continue
            entry = self._entry(stem)
            for name, facts in entry["files"].items():
                path = self._folder / name
                size = path.stat().st_size if path.is_file() else None
                if size != facts["bytes"]:
                    raise InputError(
                        f"{path}: {size} bytes, want {facts['bytes']}; remove "
                        f"{stem}.json and encode again"
                    )
            self.problems |= entry["problems"]
            self.names += entry["names"]
            if entry["names"]:
                for kind, files in paths.items():
                    files.append(str(self._folder / f"{stem}.{kind}.array_record"))
        if missing:
            raise InputError(
                f"{self._folder}: {len(missing)} of {self.manifest.shards} shards are "
                f"missing, {missing[0]} first; the same `videomv data encode` goes on"
            )
        if not self.names:
            raise InputError(f"{self._folder}: no samples")
        try:
            # Grain's stubs do not say that it has a length.
            self._records: dict[str, Any] = {
                kind: grain.sources.ArrayRecordDataSource(files)
                for kind, files in paths.items()
            }
        except Exception as error:  # whatever damaged files become
            raise InputError(
                f"{self._folder}: damaged; `videomv data inspect` tells which file: "
                f"{error}"
            ) from error
        for kind, records in self._records.items():
            if len(records) != len(self.names):
                raise InputError(
                    f"{self._folder}: {len(records)} records of {kind}, "
                    f"{len(self.names)} names"
                )

    def _entry(self, stem: str) -> dict[str, Any]:
        path = self._folder / f"{stem}.json"
        entry = read_json(path)
        kinds = {"names": list, "problems": dict, "files": dict}
        if any(not isinstance(entry.get(n), kind) for n, kind in kinds.items()):
            raise InputError(f"{path}: want {', '.join(kinds)}")
        return entry

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """See `SampleSource`."""
        record = self.latents(index)
        files = self._read(VIEWS, index)
        views = [
            read_image(files[key].tobytes(), f"{self.names[index]}: view {key}")
            for key in sorted(files)
        ]
        pixels = np.stack(views)
        cameras = None
        if "intrinsics" in record:
            cameras = make_cameras(
                record["world_to_camera"], record["intrinsics"], *pixels.shape[1:3]
            )
        return Sample(self.names[index], caption(record), pixels, cameras)

    def latents(self, index: int) -> Record:
        """What is stored of a sample beside its views.

        Raises:
            InputError: the record is damaged.
        """
        return self._read(LATENTS, index)

    def _read(self, kind: str, index: int) -> Record:
        try:
            return safetensors.numpy.load(self._records[kind][index])
        except Exception as error:  # whatever damaged files become
            raise InputError(
                f"{self._folder}: damaged {kind} of {self.names[index]}: {error!r}"
            ) from error

    def verify(self) -> None:
        """Compare all files with their sums.

        Raises:
            InputError: one differs.
        """
        for shard in range(self.manifest.shards):
            for name, facts in self._entry(self.manifest.stem(shard))["files"].items():
                if _sum(self._folder / name) != facts["sha256"]:
                    raise InputError(f"{self._folder / name}: damaged: wrong sum")

    def check_encoders(self, *, vae: str, text: str | None = None) -> None:
        """Compare the encoders of the records with those that will read them.

        Args:
            vae, text: fingerprints; None: the records' text states are not read.

        Raises:
            InputError: they differ.
        """
        for name, ours in (("vae", vae), ("text", text)):
            theirs = getattr(self.manifest, name)
            if ours is not None and theirs != ours:
                kind = "autoencoder" if name == "vae" else "text encoder"
                raise InputError(
                    f"{self._folder}: encoded with another {kind} than the run's "
                    f"({theirs[:12] or 'none'}, not {ours[:12]}); encode again with "
                    "`--model` as the run's `init_from`"
                )


def caption(record: Record) -> str:
    """A record's caption."""
    return record["caption"].tobytes().decode()


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)
