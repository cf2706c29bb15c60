"""The objects a run draws from, as arrays on the device.

On the synthetic set a step gets object numbers alone and renders, or looks up, the
rest: the data pipeline moves a few hundred bytes a step.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from rich.console import Console
from rich.progress import track

from videomv_jax.convert import mapping
from videomv_jax.data import synthetic
from videomv_jax.data.tokenizer import encode
from videomv_jax.model_folder import (
    PARTS,
    CameraConfig,
    LoadedModel,
    ModelConfig,
    save_model,
)
from videomv_jax.models.vae import VAE
from videomv_jax.splat.cameras import Cameras
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.state import Networks
from videomv_jax.types import InputError

_CHUNK = 32  # orbits rendered and encoded at once
_IMAGES = 192  # of them in the encoder at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """Objects of the training split and what the later stages need of them.

    Attributes:
        scenes: their geometry, leaves `[n, ...]`, or views of theirs from a source;
            None in a plan.
        tokens: `[n, l]` captions.
        latents: `[n, f, h, w, 4]` scaled VAE means of their orbits, bfloat16.
        cameras: `[n, f]`, as the UNet is told them: of a turned object those of one
            that is not. None: each object has the model's orbit, or pictures, which
            have no camera.
        states: `[n, l, d]` of the captions, where they are known.
        photos: `[n, h, w, 3]` the first views, 8 bits, where the model takes photos.
        pictures: what a source has beside the clips of a batch.
    """

    scenes: "synthetic.Scene | Views | None"
    tokens: Int[Array, "n l"] | jax.ShapeDtypeStruct
    latents: Float[Array, "n f h w c"] | jax.ShapeDtypeStruct
    cameras: Cameras | None = None
    states: Float[Array, "n l d"] | None = None
    photos: UInt8[Array, "n h w 3"] | jax.ShapeDtypeStruct | None = None
    pictures: "Pool | None" = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Views:
    """Views of objects as a source has them: what stands in for their geometry.

    Attributes:
        pixels: 8 bits, with coverage, colours not multiplied; or without, over the
            model's background.
    """

    pixels: UInt8[Array, "n f h w c"]

    def over(
        self, background: float, views: Int[Array, "v"] | slice = slice(None)
    ) -> tuple[Float[Array, "n v h w 3"], Float[Array, "n v h w"]]:
        """Some views over a grey, and their coverage."""
        pixels = self.pixels[:, views].astype(jnp.float32) / 255
        if pixels.shape[-1] == 3:
            return pixels, jnp.ones(pixels.shape[:-1])
        alpha = pixels[..., 3:]
        return pixels[..., :3] * alpha + (1 - alpha) * background, alpha[..., 0]


def descriptions(config: TrainConfig) -> list[synthetic.Description]:
    """The run's objects, decided by its seed."""
    return synthetic.sample_descriptions(config.objects, config.seed, "train")


def stand(
    config: TrainConfig, cameras: CameraConfig
) -> tuple[Float[np.ndarray, " n"] | None, Float[np.ndarray, " n"] | None]:
    """How each object of the run stands, decided by the seed and its number.

    Returns:
        Elevations of their orbits, and the azimuths at which these start; None where
        all have the model's orbit.
    """
    if not config.elevation_jitter and not config.turned:
        return None, None
    rng = np.random.default_rng([config.seed, 1])
    up, turned, angle = rng.random((config.objects, 3)).T
    elevation = cameras.elevation + config.elevation_jitter * (2 * up - 1)
    return elevation, np.where(turned < config.turned, 360 * angle, 0.0)


def scenes(objects: Sequence[synthetic.Description]) -> synthetic.Scene:
    """Their scenes as one."""
    built = [
        synthetic.build_scene(one) for one in track(objects, "building the objects")
    ]
    return synthetic.stack_scenes(built)


def encoded(
    objects: Sequence[synthetic.Description],
    vae: VAE,
    tokenizer,
    length: int,
    cameras: CameraConfig,
    *,
    elevation: Float[np.ndarray, " n"] | None = None,
    azimuth: Float[np.ndarray, " n"] | None = None,
    photos: bool = False,
) -> Pool:
    """Objects with captions and latents: renders and encodes every orbit once.

    Args:
        objects: what to render.
        vae: the trained autoencoder.
        tokenizer, length: of the text encoder.
        cameras: the orbit.
        elevation, azimuth: of each object's orbit, see `stand`.
        photos: keep the first views.
    """
    stacked = scenes(objects)
    tokens, _ = encode(tokenizer, [one.text for one in objects], length)
    n = len(objects)

    @jax.jit
    def rendered(part: synthetic.Scene, orbits: Cameras) -> tuple[Array, Array]:
        images, _ = synthetic.render_orbit(part, orbits, cameras.background)
        first = jnp.round(images[:, 0] * 255).astype(jnp.uint8)
        return vae.encode(images, chunk=_IMAGES).astype(jnp.bfloat16), first

    latents, first = [], []
    for start in track(range(0, n, _CHUNK), "rendering and encoding"):
        # The last chunk is filled up with repeats, so that one program serves all.
        rows = np.minimum(np.arange(start, start + _CHUNK), n - 1)
        orbits = cameras.orbit()
        if elevation is not None and azimuth is not None:
            orbits = cameras.orbit(elevation=elevation[rows], azimuth=azimuth[rows])
        part = rendered(jax.tree.map(lambda x: x[rows], stacked), orbits)  # noqa: B023
        latents.append(part[0].block_until_ready())  # for the bar to tell the truth
        if photos:
            first.append(part[1])
    return Pool(
        stacked,
        jnp.asarray(tokens),
        jnp.concatenate(latents)[:n],
        None if elevation is None else cameras.orbit(elevation=elevation),
        photos=jnp.concatenate(first)[:n] if photos else None,
    )


def given(
    start: LoadedModel, networks: Networks, names: Iterable[str]
) -> dict[str, Any]:
    """Weights the starting folder has for some networks, by parameter name.

    A convolution with more inputs than the folder's starts with zeros for the new
    ones, so it computes what it did. What the folder lacks starts afresh and is told.

    Args:
        start: the folder.
        networks: those that train.
        names: which of them may start from the folder.

    Raises:
        InputError: a weight of another shape.
    """
    wanted = jax.eval_shape(networks.init, jax.random.key(0))
    has = {
        f"{name}.{path}": np.asarray(value, np.float32)
        for name in names
        if getattr(start, name) is not None
        for path, value in mapping.flatten(getattr(start, name)).items()
    }
    begun = {name.split(".")[0] for name in has}
    fresh = dict.fromkeys(
        ".".join(name.split(".")[: 1 + (name.split(".")[0] in begun)])
        for name in wanted
        if name not in has
    )
    for name, value in has.items():
        shape = wanted[name].shape
        if value.shape == shape:
            continue
        if value.ndim != 4 or value.shape[:3] != shape[:3] or value.shape > shape:
            raise InputError(f"init_from: {name} is {value.shape}; want {shape}")
        more = shape[3] - value.shape[3]
        has[name] = np.pad(value, ((0, 0), (0, 0), (0, 0), (0, more)))
        fresh[f"{more} inputs of {name}"] = None
    if has and fresh and jax.process_index() == 0:
        Console(highlight=False).print(f"start afresh: {', '.join(fresh)}")
    return has


def export(
    folder: str,
    model: ModelConfig,
    start: LoadedModel,
    trained: Mapping[str, nnx.Module],
    tokenizer: str | os.PathLike[str] | None,
) -> None:
    """Write the parts a run started from and those it trained, as float32."""
    networks = {n: getattr(start, n) for n in PARTS if getattr(start, n)}
    networks |= trained
    sizes = {n: getattr(start.config, n) for n in PARTS if n not in trained}
    config = dataclasses.replace(model, **sizes)
    save_model(folder, config, networks, tokenizer, dtype="float32")


def grid(
    rows: Sequence[Float[Array | np.ndarray, "k h w 3"]],
) -> Float[np.ndarray, "h w 3"]:
    """Rows of pictures as one, clipped to [0, 1]."""
    pictures = [np.concatenate(list(np.asarray(row, np.float32)), 1) for row in rows]
    return np.concatenate(pictures).clip(0, 1)
