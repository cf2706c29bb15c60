"""A model is a folder: config.json, weights as safetensors, tokenizer/, SHA256SUMS.

Weight names are dotted parameter paths; float16 on disk is float32 in memory. Parts
may be missing (a folder with only a VAE is what the first training stage exports):
they load as None, and who needs them says so. Large parts are several files with an
index. The sums are those of all other files: `videomv info --verify` and
`sha256sum -c` compare them. Two models that have parts in common may keep them once: a
folder names those it shares and the folder beside it that has them.
"""

import dataclasses
import json
import math
import os
import shutil
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from videomv_jax import atomic, weights
from videomv_jax.convert import mapping
from videomv_jax.models.clip import (
    TextConfig,
    TextEncoder,
    VisionConfig,
    VisionEncoder,
)
from videomv_jax.models.reconstructor import Reconstructor, ReconstructorConfig
from videomv_jax.models.rounding import cast_weights
from videomv_jax.models.unet import UNet, UNetConfig
from videomv_jax.models.vae import VAE, VAEConfig
from videomv_jax.splat.cameras import Cameras, orbit
from videomv_jax.types import InputError, PredictionKind

CONFIG = "config.json"
TOKENIZER = "tokenizer"
PARTS: dict[str, Callable[..., nnx.Module]] = {
    "unet": UNet,
    "vae": VAE,
    "text_encoder": TextEncoder,
    "image_encoder": VisionEncoder,
    "reconstructor": Reconstructor,
}


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """The orbit a model was trained on.

    Attributes:
        views: how many, evenly spaced over 360 degrees.
        elevation: degrees above the equator.
        radius: distance to the origin; objects fill the unit ball.
        fov: full field of view in degrees.
        size: height and width of a view in pixels.
        background: grey behind the objects of the training images, in [0, 1].
        fill: longest side of an object in a first view over the view's, to which
            photos are scaled; the released image-to-views model's is 200 / 256.
    """

    views: int = 24
    elevation: float = 15.0
    radius: float = 2.0
    fov: float = 39.6
    size: int = 256
    background: float = 0.5
    fill: float = 200 / 256

    def orbit(
        self,
        views: int | None = None,
        size: int | None = None,
        *,
        elevation: float | Float[np.ndarray, " b"] | None = None,
        azimuth: float | Float[np.ndarray, " b"] = 0.0,
    ) -> Cameras:
        """The cameras, or such a circle with other views, size, elevation or start."""
        return orbit(
            views or self.views,
            elevation=self.elevation if elevation is None else elevation,
            radius=self.radius,
            fov=self.fov,
            size=size or self.size,
            azimuth=azimuth,
        )


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to sample from a model unless told otherwise.

    Attributes:
        sampler, steps: name of the sampler and its number of steps.
        guidance: classifier-free guidance scale; 1 is none.
        guidance_rescale: share in [0, 1] of the rescaling against over-exposure.
        negative_prompt: text of the unconditional branch; the one it was trained on.
        prompt_suffix: what all its captions ended in, added to prompts without it.
        steps_3d: where the 3D-aware steps lie, as fractions of the schedule.
        views_3d: the views the reconstructor sees.
        background_3d: grey behind the renders of 3D-aware steps; None: that of the
            cameras. The original takes 0.7 in its image-to-views model, whose
            training images are white.
        fps: what a UNet that is conditioned on the frame rate is told.
    """

    sampler: str = "dpmpp"
    steps: int = 20
    guidance: float = 5.0
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    prompt_suffix: str = ""
    steps_3d: tuple[float, ...] = (0.4, 0.6, 0.8)
    views_3d: tuple[int, ...] = (0, 6, 12, 18)
    background_3d: float | None = None
    fps: float = 8.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything about a model that is not a weight; config.json as Python.

    Attributes:
        name: what `from_pretrained` and the output's meta.json call it.
        licence: SPDX name of the weights' licence.
        provenance: where the weights come from and what they were trained on.
        schedule: name of the noise schedule, see `videomv_jax.diffusion.schedule`.
        prediction: what the UNet predicts.
        caption_grammar: name of the grammar prompts should follow ("synthetic"), or
            None when any text will do.
        cameras, sampling: the orbit it was trained on and how to sample.
        unet, vae, text_encoder, image_encoder, reconstructor: sizes of the parts it
            has. A model that takes photos has an image encoder.
        shared: parts, and "tokenizer", that are not in this folder but in
        shared_with: the name of the folder beside this one.
    """

    name: str
    licence: str
    provenance: str
    schedule: str = "linear_sd"
    prediction: PredictionKind = "epsilon"
    caption_grammar: str | None = None
    cameras: CameraConfig = CameraConfig()
    sampling: SamplingConfig = SamplingConfig()
    unet: UNetConfig | None = None
    vae: VAEConfig | None = None
    text_encoder: TextConfig | None = None
    image_encoder: VisionConfig | None = None
    reconstructor: ReconstructorConfig | None = None
    shared: tuple[str, ...] = ()
    shared_with: str | None = None

    def __post_init__(self):
        for part in self.shared:
            if part not in (*PARTS, TOKENIZER):
                raise InputError.unknown("shared part", part, (*PARTS, TOKENIZER))
        name = self.shared_with
        if (name is None) == bool(self.shared) or name in ("", ".", ".."):
            raise InputError(f"shared_with: {name!r}; want a folder where parts are")
        if name is not None and Path(name).name != name:
            raise InputError(f"shared_with: {name!r}; want a folder beside this one")

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(_encode(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = CONFIG) -> "ModelConfig":
        """Read the text of a config.json.

        Args:
            text: the JSON.
            where: name of the file, for messages.

        Raises:
            InputError: no JSON, unknown or missing keys, values of a wrong type.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not JSON: {error}") from error
        return _decode(cls, data, where)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory; parts the folder lacks are None.

    Attributes:
        config: its config.json.
        unet, vae, text_encoder, image_encoder, reconstructor: the networks.
        tokenizer_dir: the tokenizer's folder.
    """

    config: ModelConfig
    unet: UNet | None
    vae: VAE | None
    text_encoder: TextEncoder | None
    image_encoder: VisionEncoder | None
    reconstructor: Reconstructor | None
    tokenizer_dir: Path | None


def save_model(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    modules: Mapping[str, nnx.Module],
    tokenizer_dir: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "float16",
    shared_with: str | None = None,
) -> None:
    """Write a model folder; it appears whole or not at all.

    Args:
        directory: the folder; an older model folder is replaced.
        config: must hold the sizes of exactly the given parts.
        modules: networks by part name (see `PARTS`).
        tokenizer_dir: a tokenizer's folder to copy.
        dtype: storage type of the weights, "float16", "bfloat16" or "float32".
        shared_with: name of a model folder beside this one; parts that are the same
            there are not written again.

    Raises:
        InputError: parts and config disagree, a weight is not finite in dtype, or
            the folder cannot be written.
    """
    for part in modules:
        if part not in PARTS:
            raise InputError.unknown("part", part, PARTS)
    sized = {part for part in PARTS if getattr(config, part) is not None}
    if sized != set(modules):
        raise InputError(
            f"config has sizes of {sorted(sized)}, modules are {sorted(modules)}"
        )
    beside = Path(directory).parent / shared_with if shared_with else None
    there = _own_parts(beside) if beside else ()
    shared = []
    with atomic.replacing(directory, CONFIG) as folder:
        for part, module in modules.items():
            stored = {
                name: stored_as(f"{part}: {name}", value, dtype)
                for name, value in mapping.flatten(module).items()
            }
            if beside and part in there and _same_weights(beside, part, stored):
                shared.append(part)
            else:
                weights.write(folder, part, weights.of_arrays(stored))
        if tokenizer_dir is not None:
            if beside and _same_files(Path(tokenizer_dir), beside / TOKENIZER):
                shared.append(TOKENIZER)
            else:
                shutil.copytree(tokenizer_dir, folder / TOKENIZER)
        config = dataclasses.replace(
            config, shared=tuple(shared), shared_with=shared_with if shared else None
        )
        (folder / CONFIG).write_text(config.to_json())
        weights.write_sums(folder)


def stored_as(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """A weight in the type of a file.

    Args:
        name: for the message.
        value: the weight.
        dtype: "float16", "bfloat16" or "float32".

    Raises:
        InputError: it is not finite there, perhaps because it is too large.
    """
    with np.errstate(over="ignore"):  # found below, as an infinity
        value = np.asarray(value).astype(jnp.dtype(dtype))
    if not np.isfinite(value).all():
        raise InputError(f"{name} is not finite in {dtype}")
    return value


def read_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """Read the config.json of a model folder.

    Raises:
        InputError: the folder has none, or it cannot be understood.
    """
    path = Path(directory) / CONFIG
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(
            f"{directory} is not a model folder: cannot read {path.name} "
            f"({error.strerror})"
        ) from error
    return ModelConfig.from_json(text, str(path))


def folder_of(
    directory: str | os.PathLike[str], config: ModelConfig, part: str
) -> Path:
    """Where the files of a part, or of the tokenizer, are.

    Args:
        directory: a model folder.
        config: its config.json.
        part: a name in `PARTS`, or "tokenizer".
    """
    if part in config.shared and config.shared_with is not None:
        return Path(directory).parent / config.shared_with
    return Path(directory)


def _own_parts(directory: Path) -> set[str]:
    config = read_config(directory)
    sized = {part for part in PARTS if getattr(config, part) is not None}
    return sized - set(config.shared)


def _same_weights(directory: Path, part: str, stored: Mapping[str, np.ndarray]) -> bool:
    tensors = weights.open_stem(directory, part)
    return tensors.keys() == stored.keys() and all(
        tensors[name].dtype == x.dtype and np.array_equal(tensors[name].read(), x)
        for name, x in stored.items()
    )


def _same_files(a: Path, b: Path) -> bool:
    one, other = (
        {path.name: path.read_bytes() for path in folder.glob("*")} for folder in (a, b)
    )
    return one == other


def count_weights(directory: str | os.PathLike[str], part: str) -> tuple[int, set[str]]:
    """Number and storage types of a part's weights, from its file's header alone.

    Raises:
        InputError: the file is missing or broken.
    """
    tensors = weights.open_stem(directory, part).values()
    return sum(math.prod(x.shape) for x in tensors), {x.dtype.name for x in tensors}


def load_model(
    directory: str | os.PathLike[str], *, dtype: str | None = None, cast: bool = False
) -> LoadedModel:
    """Read a model folder.

    Args:
        directory: the folder.
        dtype: compute type of the networks; None keeps what config.json says.
        cast: hold weights in the compute type too, see `rounding.cast_weights`.

    Raises:
        InputError: a file is missing or broken, or weights do not fit the config.
    """
    directory = Path(directory)
    config = read_config(directory)
    loaded = {}
    for part, kind in PARTS.items():
        sizes = getattr(config, part)
        if sizes is not None and dtype is not None:
            sizes = dataclasses.replace(sizes, dtype=dtype)
        loaded[part] = (
            None
            if sizes is None
            else _load_part(kind, sizes, folder_of(directory, config, part), part, cast)
        )
    tokenizer = folder_of(directory, config, TOKENIZER) / TOKENIZER
    return LoadedModel(
        config, **loaded, tokenizer_dir=tokenizer if tokenizer.is_dir() else None
    )


def abstract(build: Callable[[nnx.Rngs], Any]) -> Any:
    """The modules that `build` makes, with shapes instead of weights."""

    return nnx.eval_shape(lambda: build(_SameKeys()))


class _SameKeys(nnx.Rngs):
    """Random streams that stand still."""

    def __init__(self):
        super().__init__(0)
        self.default = _SameKey(0, tag="default")


class _SameKey(nnx.RngStream):
    """Gives out one key. Counting draws makes tracing quadratic in their number."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def _load_part(
    kind: Callable[..., nnx.Module],
    config: Any,
    directory: Path,
    part: str,
    cast: bool,
) -> nnx.Module:
    tensors = weights.open_stem(directory, part)
    module = abstract(lambda rngs: kind(config, rngs=rngs))
    if cast:
        cast_weights(module)
    try:
        mapping.assign(module, {name: x.read() for name, x in tensors.items()})
    except InputError as error:
        raise InputError(f"{directory / part}.safetensors: {error}") from error
    return module


def _encode(value: Any) -> Any:
    """A dataclass as JSON values; types become their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) is not None
        }
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, type | np.dtype):
        return jnp.dtype(value).name
    return value


def _decode(cls: type, data: Any, where: str) -> Any:
    """The dataclass `cls` from JSON values, checked against its annotations."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: {data!r} is not a JSON object")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise InputError.unknown(f"config key in {where}", key, fields)
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if required and name not in data:
            raise InputError(f"{where}: the key {name!r} is missing")
    hints = typing.get_type_hints(cls)
    return cls(
        **{key: _value(hints[key], data[key], f"{where}: {key}") for key in data}
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    """One JSON value as the annotation `hint` wants it."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        nested = [o for o in options if dataclasses.is_dataclass(o)]
        if value is None and type(None) in options:
            return None
        if nested and isinstance(value, dict):
            return _decode(typing.cast(type, nested[0]), value, where)
        plain = [o for o in options if o in (int, float, str, bool)]
        hint = plain[0] if len(plain) == 1 and len(options) == 2 else Any
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type, hint), value, where)
    if origin is typing.Literal:
        if value not in options:
            raise InputError.unknown(where, str(value), map(str, options))
        return value
    if isinstance(value, list):
        item = options[0] if options else Any
        return tuple(_value(item, entry, where) for entry in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise InputError(f"{where} is {value!r}, wanted {hint.__name__}")
    return value
