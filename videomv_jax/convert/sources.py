"""What lies on disk: files and folders of checkpoints as named tensors.

A source is one network's files, or one file that may hold several networks. Which
networks those are is for `videomv_jax.convert.recognise` to say.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videomv_jax import weights
from videomv_jax.convert import pickles
from videomv_jax.types import InputError
from videomv_jax.weights import Tensor

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
EXPORT = "export.json"
"""What was left out, and the config.json of the folder that was exported."""
_INDEX = ".index.json"
# Weights of a network's folder, the first that is there; the part after the stem is
# what diffusers calls a variant.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16")
_ENDINGS = (".safetensors", f".safetensors{_INDEX}", ".bin", f".bin{_INDEX}")


@dataclasses.dataclass(frozen=True)
class Source:
    """Tensors and what is told beside them.

    Attributes:
        path: the file or the folder they come from.
        tensors: by name, not read yet.
        dropped: what the files hold beside tensors, with the reason to leave it out.
        config: config.json of the folder, {} where there is none.
        licence: as the folder's README.md declares it, None where it does not.
    """

    path: Path
    tensors: dict[str, Tensor]
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    licence: str | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """Everything some paths hold.

    Attributes:
        sources: tensors.
        tokenizers: folders with the files of a tokenizer.
        ours: model folders of this package.
        ignored: paths that are left out, with the reason.
        exported: config.json of the model folder, of what was made of one before.
    """

    sources: list[Source]
    tokenizers: list[Path]
    ours: list[Path]
    ignored: dict[str, str]
    exported: list[dict[str, Any]]


def find(paths: list[Path]) -> Found:
    """Look into files and folders; nothing but names, shapes and configs is read.

    Args:
        paths: files of weights; folders of one network, of a diffusers pipeline, of
            a tokenizer, of a model of ours, or with such files in them.

    Raises:
        InputError: a path is not there, cannot be read, or holds nothing.
    """
    found = Found([], [], [], {}, [])
    for path in paths:
        before = len(found.sources) + len(found.tokenizers) + len(found.ours)
        _visit(path, found, _licence(path))
        if len(found.sources) + len(found.tokenizers) + len(found.ours) == before:
            raise InputError(f"source: {path} holds no weights and no tokenizer")
    return found


def _visit(path: Path, found: Found, licence: str | None) -> None:
    if path.is_file():
        found.sources.append(_file(path, licence))
        return
    if not path.is_dir():
        raise InputError(f"source: no file or folder {str(path)!r}")
    config = _json(path / "config.json")
    if {"name", "provenance"} <= config.keys():
        found.ours.append(path)
        return
    told = _json(path / EXPORT)
    if {"format", "left out", "model"} <= told.keys():
        found.exported.append(told["model"])
        licence = licence or told["model"].get("licence")
    files = {file.name for file in path.iterdir()}
    if "tokenizer_config.json" in files and {"vocab.json", "tokenizer.json"} & files:
        found.tokenizers.append(path)
    if pipeline := _json(path / "model_index.json"):
        for name in sorted(pipeline):
            part = path / name
            if part.is_dir() and any(f.suffix == ".json" for f in part.iterdir()):
                _component(part, found, licence)
        return
    if config:
        if (names := _weights(files)) is None:
            if path not in found.tokenizers:
                raise InputError(f"source: {path} holds a config.json and no weights")
            return
        opened = [_open(path / name) for name in names]
        found.sources.append(_joined(path, opened, config, licence))
        return
    for name in sorted(files):
        if name.endswith((".safetensors", *PICKLES)):
            found.sources.append(_file(path / name, licence))
    if (path / "tokenizer").is_dir():
        _visit(path / "tokenizer", found, licence)


def _component(part: Path, found: Found, licence: str | None) -> None:
    """One folder of a diffusers pipeline."""
    if part.name in ("scheduler", "feature_extractor", "safety_checker"):
        reason = "settings of ours take its place" if part.name == "scheduler" else ""
        found.ignored[str(part)] = reason or "not needed for making views"
        return
    _visit(part, found, licence)


def _weights(files: set[str]) -> list[str] | None:
    """Names of a folder's weights, or of the index of their shards."""
    for variant in _VARIANTS:
        for ending in _ENDINGS:
            for stem in _STEMS:
                # diffusers puts the variant before the ending, and within an index.
                name = f"{stem}{variant}{ending}"
                if ending.endswith(_INDEX) and variant:
                    name = f"{stem}{ending.removesuffix('.json')}{variant}.json"
                if name in files:
                    return [name]
    return None


def _file(path: Path, licence: str | None) -> Source:
    return _joined(path, [_open(path)], {}, licence)


def _joined(path: Path, opened: list, config: dict, licence: str | None) -> Source:
    tensors, dropped = {}, {}
    for more, beside in opened:
        tensors |= more
        dropped |= beside
    return Source(path, tensors, dropped, config, licence)


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.name.endswith(_INDEX) or re.search(r"\.index\..*\.json$", path.name):
        tensors, dropped = {}, {}
        for shard in weights.shards(path):
            more, beside = _open(shard)
            tensors |= more
            dropped |= beside
        return tensors, dropped
    if path.suffix == ".safetensors":
        return weights.open_file(path), {}
    if path.suffix in PICKLES:
        return pickles.open_file(path)
    known = ", ".join((".safetensors", *PICKLES))
    raise InputError(f"source: {path} is not a file of weights; want {known}")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"source: {path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _licence(path: Path) -> str | None:
    """`license:` in the front matter of the README.md beside or within a path."""
    readme = (path if path.is_dir() else path.parent) / "README.md"
    if not readme.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", readme.read_text(errors="replace"), re.S)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.M) if front else None
    return found[1] if found else None


def tokenizer_files(folder: Path) -> Iterator[Path]:
    """The files of a tokenizer in a folder that may hold more."""
    for name in TOKENIZER:
        if (folder / name).is_file():
            yield folder / name
