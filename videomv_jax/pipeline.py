"""The public object: a model that makes views and Gaussians of prompts or photos.

model = VideoMV.from_pretrained("tiny")
generation = model.generate(["a red chair with blue legs"], seed=0)
films = model.turntable(generation.gaussians)

model = VideoMV.from_pretrained("tiny_image")
generation = model.generate(images=["photo.png"])
"""

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from videomv_jax.data import photo as photo_files
from videomv_jax.data.tokenizer import encode, load_tokenizer
from videomv_jax.embedded import find_model
from videomv_jax.model_folder import (
    PARTS,
    LoadedModel,
    ModelConfig,
    load_model,
    save_model,
)
from videomv_jax.models import rounding
from videomv_jax.sampling.loop import Mode
from videomv_jax.sampling.programs import Programs, Progress
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.types import Images, InputError

MAX_SEED = 2**32 - 1
# A call takes milliseconds for the thousands of weights it is handed, in which a GPU
# waits: each has the steps of about so many seconds, and progress is told after it.
_CALL_S = 1.0

Photo: TypeAlias = str | os.PathLike[str] | Float[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """What prompts or photos became.

    Attributes:
        views: `[b, f, h, w, 3]` in [0, 1], on the host.
        cameras: of the f views.
        gaussians: of each prompt, in the world frame; None where nothing was
            reconstructed.
        dropped: Gaussian-tile pairs that the rasterizer had no room for while
            sampling; 0 when all is well.
        settings: how they were sampled, with the model's defaults filled in.
    """

    views: Float[np.ndarray, "b f h w 3"]
    cameras: Cameras
    gaussians: Gaussians | None
    dropped: int
    settings: dict[str, Any]


class VideoMV:
    """A model in memory, ready to generate and reconstruct.

    Every public method takes and gives images in [0, 1], `[b, f, h, w, 3]`, and
    Gaussians and cameras in the world frame. Compiled programs are kept per batch
    size; another seed, sampler, guidance or number of steps compiles nothing.
    """

    def __init__(self, model: LoadedModel, *, low_memory: bool = False):
        """Take the parts of a loaded folder; `from_pretrained` is the usual way."""
        self.config: ModelConfig = model.config
        self.tokenizer_dir = model.tokenizer_dir
        self._parts = {
            name: getattr(model, name)
            for name in PARTS
            if getattr(model, name) is not None
        }
        self._programs = Programs(self.config, self._parts, low_memory=low_memory)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "tiny",
        *,
        dtype: str | None = None,
        low_memory: bool = False,
    ) -> "VideoMV":
        """Load a model.

        Args:
            name: an embedded model, see `embedded`, or a model folder.
            dtype: compute type of the networks, in which the weights of linear layers
                and convolutions are held as well; by default float32 on a CPU, which
                has nothing faster, and bfloat16 elsewhere.
            low_memory: decode and encode few images at a time, and keep the text
                encoder in the host's memory while it is not used.

        Raises:
            InputError: no such model, or its files do not fit together.
        """
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        model = load_model(find_model(name), dtype=dtype, cast=True)
        return cls(model, low_memory=low_memory)

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        *,
        dtype: str = "float16",
        shared_with: str | None = None,
    ) -> None:
        """Write a model folder, whole or not at all; see `model_folder.save_model`.

        Raises:
            InputError: also if the weights were rounded when the model was loaded.
        """
        for name, part in self._parts.items():
            if (held := rounding.rounded_to(part)) not in (None, jnp.dtype(dtype)):
                raise InputError(
                    f"dtype: {dtype}, but the {name} was loaded in {held}; load the "
                    "model with dtype='float32' to save it"
                )
        save_model(
            directory,
            self.config,
            self._parts,
            self.tokenizer_dir,
            dtype=dtype,
            shared_with=shared_with,
        )

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        images: Sequence[Photo] | None = None,
        elevation: float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        guidance_rescale: float | None = None,
        steps_3d: Sequence[float] | None = None,
        mode: Mode = "guided",
        progress: Progress | None = None,
    ) -> Generation:
        """Make views and Gaussians of prompts, or of photos by a model that takes some.

        What is not given comes from the model's `config.sampling`.

        Args:
            prompts: one or several; they are denoised as one batch. To photos none,
                one for all, or one for each, which may be empty.
            images: photos, each of which is the first view of its orbit: files, which
                are prepared as `prepare` says, or images as it returns them.
            elevation: of the photos' cameras in degrees above the equator; None: the
                one of `config.cameras`.
            negative_prompt: text of the unconditional branch.
            seed: of the first prompt's noise; the next ones take the numbers after
                it, so a prompt's result does not depend on its batch.
            steps: of the sampler, 1 to 1,000.
            sampler: a name in `videomv_jax.sampling.samplers.SAMPLERS`.
            guidance: classifier-free guidance scale.
            guidance_rescale: in [0, 1], against over-exposure.
            steps_3d: where 3D-aware steps lie, as fractions of the schedule; an empty
                sequence samples without them.
            mode: "guided" projects the guided x0 once per 3D-aware step. "reference"
                does as the original: DDIM, 50 steps of which 20, 30 and 40 are
                3D-aware, each guidance branch projected on its own, at twice the
                resolution, latents drawn from the encoder's posterior.
            progress: is told of the stages "compiling", "denoising", "decoding",
                "reconstructing".

        Raises:
            InputError: an empty prompt, a bad photo, a number out of its range, an
                unknown name, or a model without the parts this takes.
        """
        self._require("unet", "vae", "text_encoder")
        prompts, photos = self._inputs(prompts, images, elevation)
        orbit = self.config.cameras.orbit(elevation=elevation)
        told = progress or (lambda stage, done, total: None)
        sampling = self.config.sampling
        if negative_prompt is None:
            negative_prompt = sampling.negative_prompt
        tokens, _ = self.tokenize(prompts)
        negative, _ = self._encode([negative_prompt] * len(prompts))
        table, settings = self._programs.table(mode, sampler, steps, steps_3d)
        scale = _number("guidance", guidance, sampling.guidance, 0, 100)
        rescale = _number(
            "guidance_rescale", guidance_rescale, sampling.guidance_rescale, 0, 1
        )
        if not 0 <= seed <= MAX_SEED - len(prompts) + 1:
            raise InputError(f"seed: got {seed}, want 0 to {MAX_SEED}")
        seeds = np.arange(seed, seed + len(prompts), dtype=np.uint32)
        if self.takes_photos:
            settings["elevation"] = (
                self.config.cameras.elevation if elevation is None else elevation
            )
        settings |= {
            "guidance": scale,
            "guidance_rescale": rescale,
            "negative_prompt": negative_prompt,
        }

        aware = bool(table.project.any())
        if aware:
            self._require("reconstructor")
        programs, weights = self._programs, self._programs.weights
        programs.compile(len(prompts), aware, mode, told)
        condition, state = programs.start(
            weights,
            np.stack([tokens, negative], 1).reshape(-1, tokens.shape[-1]),
            seeds,
            orbit,
            photos,
            mode=mode,
        )
        count = int(table.count)
        told("denoising", 0, count)
        done, stride = 0, 1
        while done < count:
            begun, stride = time.perf_counter(), min(stride, count - done)
            done += stride
            state = programs.advance(
                weights,
                condition,
                table,
                state,
                np.int32(done),
                np.float32(scale),
                np.float32(rescale),
                seeds[0],
                aware=aware,
                mode=mode,
            )
            jax.block_until_ready(state)
            told("denoising", done, count)
            seconds = time.perf_counter() - begun
            stride = max(1, int(stride * _CALL_S / seconds))
        told("decoding", 0, 1)
        views = np.asarray(programs.decode(weights, state.x))
        told("decoding", 1, 1)
        gaussians = None
        if "reconstructor" in weights:
            told("reconstructing", 0, 1)
            some = np.asarray(sampling.views_3d)
            gaussians = jax.block_until_ready(
                programs.reconstruct(weights, views[:, some], orbit[some])
            )
            told("reconstructing", 1, 1)
        return Generation(views, orbit, gaussians, int(state.dropped), settings)

    def prepare(
        self, photo: str | os.PathLike[str]
    ) -> tuple[Float[np.ndarray, "h w 3"], photo_files.Cutter]:
        """A photo as the model sees it: its object, centred, over the background.

        Args:
            photo: an image file, see `videomv_jax.data.photo`.

        Returns:
            The image in [0, 1], and what told the object from its background.

        Raises:
            InputError: the file cannot be used.
        """
        found = photo_files.cut_out(photo_files.read(photo))
        cameras = self.config.cameras
        image = photo_files.frame(
            found.image,
            cameras.size,
            background=cameras.background,
            fill=cameras.fill,
        )
        return image, found.how

    def compile(
        self,
        batch: int = 1,
        *,
        steps_3d: Sequence[float] | None = None,
        mode: Mode = "guided",
        progress: Progress | None = None,
    ) -> None:
        """Compile what `generate` needs for a number of prompts, before any comes.

        Samplers, numbers of steps and guidance are arguments of the same programs.

        Args:
            batch: number of prompts.
            steps_3d, mode: as of `generate`; it matters whether there are any 3D-aware
                steps, not where.
            progress: is told of the stage "compiling".

        Raises:
            InputError: a batch below 1, or a model without the parts this takes.
        """
        self._require("unet", "vae", "text_encoder")
        if batch < 1:
            raise InputError(f"batch: got {batch}, want at least 1")
        table, _ = self._programs.table(mode, None, None, steps_3d)
        aware = bool(table.project.any())
        if aware:
            self._require("reconstructor")
        told = progress or (lambda stage, done, total: None)
        self._programs.compile(batch, aware, mode, told)

    def save_compiled(self, directory: str | os.PathLike[str]) -> None:
        """Write every program compiled so far; see `load_compiled`.

        Raises:
            InputError: nothing is compiled, the folder cannot be written, or the device
                is a CPU, whose programs XLA cannot save.
        """
        self._programs.save(directory)

    def load_compiled(self, directory: str | os.PathLike[str]) -> None:
        """Take the programs that `save_compiled` wrote, so that nothing compiles.

        They are machine code for one model, kind of device and version of JAX, without
        weights. Loading runs what the files say: take only those that you wrote.

        Raises:
            InputError: no such folder, or it was made for something else.
        """
        self._programs.load(directory)

    def tokenize(
        self, prompts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "b l"], list[str]]:
        """Prompts as the text encoder sees them.

        Returns:
            Tokens, and per prompt the words beyond the text encoder's length, which
            are cut off; "" when it sees all.

        Raises:
            InputError: no prompt, an empty one where there is no photo, or a model
                without a tokenizer.
        """
        if not prompts:
            raise InputError("prompts: got none, want at least one")
        for prompt in prompts:
            if not prompt.strip() and not self.takes_photos:
                raise InputError("prompt: it is empty; say what to make")
        suffix = self.config.sampling.prompt_suffix
        return self._encode(
            [p if suffix.strip(" ,") in p else p + suffix for p in prompts]
        )

    def reconstruct(self, images: Images, cameras: Cameras) -> Gaussians:
        """Gaussians of a few views, in one pass of the reconstructor.

        Args:
            images: `[b, v, h, w, 3]` in [0, 1], as many views and pixels as the model
                was trained on, over its background.
            cameras: `[v]` shared by the batch, or `[b, v]`.

        Returns:
            Gaussians `[b, n, ...]` in the frame of the cameras.

        Raises:
            InputError: shapes do not fit each other or the model.
        """
        self._require("reconstructor")
        images = jnp.asarray(images, jnp.float32)
        size = (cameras.height, cameras.width)
        batch = cameras.intrinsics.shape[:-1]
        if images.ndim != 5 or images.shape[2:4] != size:
            raise InputError(
                f"images: {images.shape}; want [b, v, h, w, 3] with the cameras' h, w "
                f"{size}"
            )
        if batch not in (images.shape[1:2], images.shape[:2]):
            raise InputError(
                f"cameras: {batch}; want {images.shape[1:2]} or {images.shape[:2]}"
            )
        return self._programs.reconstruct(self._programs.weights, images, cameras)

    def turntable(
        self,
        gaussians: Gaussians,
        *,
        frames: int = 72,
        progress: Progress | None = None,
    ) -> tuple[Float[np.ndarray, "b f h w 3"], int]:
        """Films of Gaussians on the model's orbit.

        Args:
            gaussians: `[b, n, ...]` in the world frame.
            frames: cameras on the circle.
            progress: is told of the stage "rendering".

        Returns:
            The frames, and how many Gaussian-tile pairs the rasterizer had no room
            for (0 when all is well).
        """
        told = progress or (lambda stage, done, total: None)
        programs = self._programs
        cameras = self.config.cameras.orbit(views=frames)
        parts, dropped, chunk = [], 0, self.config.cameras.views
        told("rendering", 0, frames)
        for begin in range(0, frames, chunk):
            # As many as the model has views, going around again at the end: that
            # program is compiled.
            some = np.arange(begin, begin + chunk) % frames
            renders = programs.render(programs.weights, gaussians, cameras[some])
            parts.append(np.asarray(renders.rgb))
            dropped += int(np.asarray(renders.overflow).sum(dtype=np.int64))
            told("rendering", min(begin + chunk, frames), frames)
        return np.concatenate(parts, 1)[:, :frames].clip(0, 1), dropped

    @property
    def takes_photos(self) -> bool:
        """Whether the model makes views of photos."""
        return self.config.image_encoder is not None

    def _inputs(
        self,
        prompts: str | Sequence[str] | None,
        images: Sequence[Photo] | None,
        elevation: float | None,
    ) -> tuple[list[str], Float[np.ndarray, "b h w 3"] | None]:
        """As many prompts as photos, and the photos."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts or ())
        if not self.takes_photos:
            if images is not None or elevation is not None:
                given = "images" if images is not None else "elevation"
                raise InputError(f"{given}: {self.config.name!r} takes no photos")
            return prompts, None
        self._require("image_encoder")
        if not images:
            raise InputError(f"images: {self.config.name!r} makes views of photos only")
        prompts = prompts or [""]
        prompts = prompts * len(images) if len(prompts) == 1 else prompts
        if len(prompts) != len(images):
            raise InputError(
                f"prompts: got {len(prompts)} for {len(images)} images; want none, one "
                "for all, or one for each"
            )
        side = self.config.cameras.size
        ready = []
        for number, image in enumerate(images):
            if isinstance(image, str | os.PathLike):
                image = self.prepare(image)[0]
            image = np.asarray(image, np.float32)
            if image.shape != (side, side, 3):
                raise InputError(
                    f"images: number {number} is {image.shape}; want a file, or "
                    f"({side}, {side}, 3) as `prepare` returns it"
                )
            ready.append(image)
        return prompts, np.stack(ready)

    def _require(self, *names: str) -> None:
        for name in names:
            if name not in self._parts:
                raise InputError(f"the model {self.config.name!r} has no {name}")

    def _encode(self, texts: list[str]) -> tuple[Int[np.ndarray, "b l"], list[str]]:
        self._require("text_encoder")
        assert self.config.text_encoder is not None
        return encode(self._tokenizer, texts, self.config.text_encoder.length)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        if self.tokenizer_dir is None:
            raise InputError(f"the model {self.config.name!r} has no tokenizer")
        return load_tokenizer(self.tokenizer_dir)


def _number(
    name: str, value: float | None, default: float, low: float, high: float
) -> float:
    """The value, or the default, if it lies in its range."""
    value = default if value is None else value
    if not low <= value <= high:
        raise InputError(f"{name}: got {value}, want {low} to {high}")
    return value
