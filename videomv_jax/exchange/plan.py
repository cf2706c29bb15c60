"""What becomes of every tensor of some checkpoints, before anything is converted."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from videomv_jax import weights
from videomv_jax.convert import clip, lpips, mapping, recognise, sources, unet
from videomv_jax.convert.mapping import Entry
from videomv_jax.convert.recognise import KNOWN, Network
from videomv_jax.convert.sources import EXPORT
from videomv_jax.model_folder import (
    PARTS,
    TOKENIZER,
    ModelConfig,
    abstract,
    folder_of,
    read_config,
    stored_as,
)
from videomv_jax.models.lpips import LPIPS
from videomv_jax.presets import PRESETS
from videomv_jax.types import InputError
from videomv_jax.weights import Tensor

LPIPS_PART = "lpips"
"""The perceptual metric: a file of a model folder that config.json does not name."""

BUILDERS = PARTS | {LPIPS_PART: LPIPS}
DTYPES = ("source", "float32", "bfloat16", "float16")
# What neither shapes nor names tell, and `foreign.write` wrote down.
_UNTOLD = {part: (*names, "dtype") for part, names in KNOWN.items()}
_UNTOLD["unet"] += ("dropout",)
_UNTOLD["reconstructor"] += ("views", "position_bound", "scale_factor")
_UNTOLD["reconstructor"] += ("quaternion_norm", "anchors")


@dataclasses.dataclass(frozen=True)
class Part:
    """One network: where its parameters come from and what does not fit.

    Attributes:
        name: of the part.
        config: its sizes.
        origins: what was recognised, and in which files.
        layout: the naming of the tensors.
        licence: as the origins declare it.
        table: our parameters and the foreign names.
        shapes: of our parameters.
        tensors: by foreign name.
        filled: parameters that no source has, and which start afresh.
        dropped: names in the files that it has no use for, with the reason.
        missing, unexpected, mis_shaped: what does not fit, in foreign names.
        updates: by our name, reads what is added to a parameter; see `lora.merge`.
    """

    name: str
    config: Any
    origins: list[str]
    layout: str
    licence: str | None
    table: list[Entry]
    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, Tensor]
    filled: dict[str, np.ndarray]
    dropped: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    mis_shaped: list[str]
    updates: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    def ours(self, dtype: str) -> dict[str, Tensor]:
        """Our parameters, read and laid out one by one; see `folder.write`."""
        made = {entry.ours: self._tensor(entry, dtype) for entry in self.table}
        for name, value in self.filled.items():
            made[name] = weights.of_arrays({name: value})[name]
        return {name: made[name] for name in self.shapes}

    def _tensor(self, entry: Entry, dtype: str) -> Tensor:
        kept = dtype
        if dtype == "source":
            types = {self.tensors[name].dtype for name in entry.names}
            kept = types.pop().name if len(types) == 1 else "float32"
            kept = kept if kept in DTYPES else "float32"

        def read() -> np.ndarray:
            x = entry.load(lambda name: self.tensors[name].read())
            if entry.ours in self.updates:
                x = x.astype(np.float32) + self.updates[entry.ours]()
            return stored_as(f"{self.name}: {entry.ours}", x, kept)

        return Tensor(self.shapes[entry.ours], np.dtype(jnp.dtype(kept)), read)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model folder to be made.

    Attributes:
        config: its config.json.
        parts: its networks, with the perceptual metric.
        tokenizer: folder to copy the tokenizer from.
        dropped: per file, what belongs to no part and is left out, with the reason.
        unknown: per file, names that belong to nothing known.
        notes: decisions worth telling.
    """

    config: ModelConfig
    parts: list[Part]
    tokenizer: Path | None
    dropped: dict[str, dict[str, str]]
    unknown: dict[str, list[str]]
    notes: list[str]

    def faults(self) -> list[str]:
        """Why the folder cannot be made; nothing when it can."""
        told = []
        for part in self.parts:
            for word in ("missing", "unexpected", "mis_shaped"):
                if names := getattr(part, word):
                    word = word.replace("_", "-")
                    told.append(f"{part.name}: {len(names)} {word}: {some(names)}")
        for path, names in self.unknown.items():
            told.append(f"{path}: {len(names)} belong to nothing known: {some(names)}")
        return told


def plan(
    paths: Sequence[Path],
    *,
    name: str,
    licence: str | None = None,
    drop: Sequence[str] = (),
    parts: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Plan:
    """Look into checkpoints and decide what to make of them; no weight is read.

    Args:
        paths: see `convert.sources.find`; model folders of ours give their parts.
        name: of the model.
        licence: of its weights; None: what the sources declare.
        drop: regular expressions of names (whole ones) to leave out.
        parts: which parts to take; none: all.
        settings: "part.field=value" and "section.field=value" for config.json, such
            as "unet.head_dim=8".

    Raises:
        InputError: a source cannot be read, the same part comes from two of them, or
            a part, pattern or setting is not known.
    """
    for part in parts:
        if part not in BUILDERS:
            raise InputError.unknown("part", part, BUILDERS)
    given = _settings(settings)
    found = sources.find(list(paths))
    patterns = [_pattern(text) for text in drop]
    made: dict[str, list[Network]] = {}
    dropped: dict[str, dict[str, str]] = {
        path: {"": reason} for path, reason in found.ignored.items()
    }
    unknown, notes, seen = {}, [], []
    for source in found.sources:
        networks, beside, rest = recognise.networks(source, patterns)
        if beside:
            dropped[str(source.path)] = beside
        if rest:
            unknown[str(source.path)] = rest
        seen += networks
    for network in seen:
        if reason := _unwanted(network, seen, parts):
            names = dict.fromkeys(network.names.values(), reason) | network.dropped
            dropped.setdefault(str(network.source.path), {}).update(names)
        else:
            made.setdefault(network.kind.part, []).append(network)
    exported = [ModelConfig.from_json(json.dumps(x), EXPORT) for x in found.exported]
    for part in made.keys() & _UNTOLD.keys():
        given[part] = _untold(exported, part) | given.get(part, {})
    done = [_part(part, networks, given) for part, networks in made.items()]
    photos = any(_takes_photos(network) for network in made.get("unet", ()))
    base, own, tokenizer = _ours(found.ours, parts, photos, exported)
    for part in own:
        if part.name in made:
            raise InputError(f"{part.name}: it is in {part.origins[0]} and elsewhere")
        done.append(part)
    done.sort(key=lambda part: list(BUILDERS).index(part.name))
    tokenizers = found.tokenizers or ([tokenizer] if tokenizer else [])
    if found.tokenizers and tokenizer:
        notes.append(f"the tokenizer is that of {tokenizers[0]}, not of {tokenizer}")
    if len(tokenizers) > 1:
        raise InputError(f"tokenizer: it is in {tokenizers[0]} and in {tokenizers[1]}")
    if not done:
        names = some([name for names in unknown.values() for name in names])
        raise InputError(f"no network was recognised; the names are: {names}")
    config = _config(base, done, name, licence, given, notes)
    tokenizer = tokenizers[0] if tokenizers else None
    if config.text_encoder and tokenizer is None:
        notes.append("no tokenizer: prompts need one; add its folder as a source")
    return Plan(config, done, tokenizer, dropped, unknown, notes)


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names and how many more there are."""
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def _takes_photos(network: Network) -> bool:
    photo = ("local_image_concat.", "image_latents_proj_in.")
    return any(name.startswith(photo) for name in network.tensors)


def _unwanted(
    network: Network, seen: Sequence[Network], parts: Sequence[str]
) -> str | None:
    """Why a network is left out, if it is.

    The image tower that comes with a text encoder is of use to models for photos only.
    """
    if parts:
        return None if network.kind.part in parts else "not asked for"
    if network.kind.part != "image_encoder":
        return None
    with_text = any(
        other.kind.part == "text_encoder" and other.source is network.source
        for other in seen
    )
    photos = any(_takes_photos(other) for other in seen)
    return "the image tower" if with_text and not photos else None


def _part(name: str, networks: list[Network], given: Mapping[str, Any]) -> Part:
    """The networks of one part as one; several only where they complete each other."""
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for network in networks:
        path = str(network.source.path)
        twice = [n for n in network.tensors if n in tensors]
        if twice or network.kind.layout != networks[0].kind.layout:
            first = origin[twice[0]] if twice else str(networks[0].source.path)
            raise InputError(
                f"{name}: it is in {first} and in {path}; leave one out, by --drop "
                "where a file holds more"
            )
        tensors |= network.tensors
        origin |= dict.fromkeys(network.tensors, path)
    kind, source = networks[0].kind, networks[0].source
    shapes = {n: t.shape for n, t in tensors.items()}
    known = {k: v for k, v in given.get(name, {}).items() if k in KNOWN.get(name, ())}
    config = recognise.sizes(kind, shapes, source.config, **known)
    dropped = {k: v for network in networks for k, v in network.dropped.items()}
    if name == "text_encoder":
        unread = clip.unused(tensors, config)
        dropped |= {networks[0].names[n]: reason for n, reason in unread.items()}
        tensors = {n: t for n, t in tensors.items() if n not in unread}
    module = abstract(lambda rngs: BUILDERS[name](config, rngs=rngs))
    table, ours = recognise.table(kind, module), mapping.shapes(module)
    filled = {}
    if name == "unet" and not any(n.startswith("camera_embedding") for n in shapes):
        filled = unet.fresh_cameras(config)
        table = [entry for entry in table if entry.ours not in filled]
    licences = {n.source.licence for n in networks if n.source.licence}
    return Part(
        name,
        config,
        [f"{n.kind.what} in {_short(n.source.path)}" for n in networks],
        kind.layout,
        ", ".join(sorted(licences)) or None,
        table,
        ours,
        tensors,
        filled,
        dropped,
        *_compare(tensors, mapping.foreign_shapes(table, ours)),
    )


def _short(path: Path) -> str:
    """What a model folder remembers of a path, which may go to other machines."""
    return "/".join(path.parts[-2:])


def _compare(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, unexpected and mis-shaped."""
    return (
        [name for name in wanted if name not in tensors],
        [name for name in tensors if name not in wanted],
        [
            f"{name} {tensors[name].shape} instead of {shape}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
    )


def _untold(exported: Sequence[ModelConfig], part: str) -> dict[str, Any]:
    """What the first of some model folders with a part says of it, see `_UNTOLD`."""
    sizes = next(filter(None, (getattr(m, part, None) for m in exported)), None)
    return {name: getattr(sizes, name) for name in _UNTOLD[part] if sizes}


def _ours(
    folders: Iterable[Path],
    parts: Sequence[str],
    photos: bool,
    exported: Sequence[ModelConfig],
) -> tuple[ModelConfig, list[Part], Path | None]:
    """Parts of model folders, and the config of the one with the UNet.

    Args:
        folders: of ours.
        parts: that are asked for, all if there are none.
        photos: whether a foreign UNet takes photos: it decides the config.
        exported: configs of the folders that foreign files were made of.
    """
    preset = PRESETS["i2v" if photos else "t2v"]
    empty: dict[str, Any] = dict.fromkeys(PARTS)
    alone = {"shared": (), "shared_with": None} | empty
    base = dataclasses.replace((*exported, preset)[0], **alone)
    done, tokenizers = [], []
    for number, folder in enumerate(folders):
        config = read_config(folder)
        if (not number and not photos) or config.unet is not None:
            base = dataclasses.replace(config, **alone)
        sized = {name: getattr(config, name) for name in PARTS}
        metric = folder / f"{LPIPS_PART}.safetensors"
        sized[LPIPS_PART] = lpips.read(metric).config if metric.is_file() else None
        for name, sizes in sized.items():
            if sizes is None or (parts and name not in parts):
                continue
            if any(part.name == name for part in done):
                raise InputError(f"{name}: it is in {folder} and in another folder")
            home = folder_of(folder, config, name)
            done.append(_own(name, sizes, home, config.licence))
        home = folder_of(folder, config, TOKENIZER)
        if (home / TOKENIZER).is_dir():
            tokenizers.append(home / TOKENIZER)
    if len(tokenizers) > 1:
        raise InputError(f"tokenizer: it is in {tokenizers[0]} and in {tokenizers[1]}")
    return base, done, tokenizers[0] if tokenizers else None


def _own(name: str, sizes: Any, folder: Path, licence: str) -> Part:
    tensors = weights.open_stem(folder, name)
    module = abstract(lambda rngs: BUILDERS[name](sizes, rngs=rngs))
    shapes = mapping.shapes(module)
    faults = _compare(tensors, shapes)
    table = [Entry(path, path) for path in shapes]
    origin = f"{name} of {_short(folder)}"
    return Part(
        name, sizes, [origin], "ours", licence, table, shapes, tensors, {}, {}, *faults
    )


def _config(
    base: ModelConfig,
    parts: Sequence[Part],
    name: str,
    licence: str | None,
    given: Mapping[str, Any],
    notes: list[str],
) -> ModelConfig:
    """The model's config.json, with what the user set."""
    told = {p.name: p.licence for p in parts if p.licence}
    joined = "; ".join(f"{part}: {text}" for part, text in told.items())
    sized: dict[str, Any] = {p.name: p.config for p in parts if p.name in PARTS}
    config = dataclasses.replace(
        base,
        name=name,
        licence=licence or joined or "see the sources of the weights",
        provenance="; ".join(f"{p.name}: {' + '.join(p.origins)}" for p in parts),
        **sized,
    )
    sampling = config.sampling
    for part in parts:
        if part.name == "unet" and part.filled:
            notes.append(
                "the UNet has no embedding of cameras: a new one is added, whose last "
                "layer is zero, so cameras have no effect until it is trained; "
                "prompts get no suffix"
            )
            sampling = dataclasses.replace(sampling, prompt_suffix="")
        if part.name == "unet" and part.config.image and part.layout != "ours":
            times = {1.0: "once", 2.0: "twice"}[part.config.image.local_gain]
            notes.append(f"the photo's local features count {times}")
        if part.name == "reconstructor" and part.layout != "ours":
            norm = part.config.quaternion_norm
            notes.append(f"the reconstructor's quaternion_norm is {norm!r}")
        if part.name == "text_encoder" and part.layout != "ours":
            sizes = part.config
            kept = sizes.layers - sizes.skip_last
            notes.append(f"texts are read after block {kept} of {sizes.layers}")
    takes = config.unet is not None and config.unet.image is not None
    if takes and config.image_encoder is None:
        notes.append("no image encoder: photos need one; add CLIP as a source")
    if config.unet is not None and config.reconstructor is None:
        notes.append("no reconstructor: sampling has no 3D-aware steps")
        sampling = dataclasses.replace(sampling, steps_3d=())
    config = dataclasses.replace(config, sampling=sampling)
    data = json.loads(config.to_json())
    for section, values in given.items():
        if not isinstance(data.get(section), dict):
            known = [key for key, value in data.items() if isinstance(value, dict)]
            raise InputError.unknown("section in --set", section, known)
        data[section] |= values
    return ModelConfig.from_json(json.dumps(data), "--set")


def _settings(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """ "a.b=c" as {"a": {"b": c}}."""
    given: dict[str, dict[str, Any]] = {}
    for text in settings:
        match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", text)
        if not match:
            raise InputError(f"set: {text!r} is not of the form section.field=value")
        section, field, value = match.groups()
        try:
            given.setdefault(section, {})[field] = json.loads(value)
        except ValueError:
            given.setdefault(section, {})[field] = value
    return given


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"drop: {text!r} is not a pattern: {error}") from error
