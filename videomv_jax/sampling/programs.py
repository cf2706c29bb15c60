"""A model's computations as compiled programs.

Each is one jitted function, compiled once per batch size and mode. `compile` does so
ahead of use. Weights are arguments of all of them, not constants.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from videomv_jax import compat
from videomv_jax.diffusion import process, schedule
from videomv_jax.model_folder import ModelConfig
from videomv_jax.models.image_condition import ImagePrompt
from videomv_jax.sampling import executables, samplers
from videomv_jax.sampling.executables import Program
from videomv_jax.sampling.loop import Mode, SamplingState, advance, start
from videomv_jax.sampling.projection import SplatProjection
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.conventions import canonical_frame, plucker_rays, unet_condition
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import Renders, render
from videomv_jax.types import Images, InputError, Latents, TextStates, Tokens

# (stage, done, total), called when a stage starts and each time it gets on.
Progress = Callable[[str, int, int], None]
Weights = Any

_CHUNK = 4  # images that the VAE holds at a time when memory is low


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """What the UNet is told of a batch at every step, in both branches of guidance.

    Attributes:
        text: states of each prompt, and behind them those of the negative prompt.
        cameras: of the f views, shared by the batch.
        image: photos, of a model that takes some, whose vectors are zero in the
            unconditional branch.
    """

    text: TextStates
    cameras: Cameras
    image: ImagePrompt | None


class Programs:
    """What a model computes, as jitted functions whose first argument is `weights`.

    Attributes:
        cameras: the orbit of the model.
        schedule: its noise schedule.
        weights: of every part, in the order of its structure.
        start, advance, decode, reconstruct, render: see the methods of these names.
    """

    def __init__(
        self,
        config: ModelConfig,
        parts: Mapping[str, nnx.Module],
        *,
        low_memory: bool = False,
    ):
        """Take a model apart.

        Args:
            config: of the model.
            parts: its networks by name.
            low_memory: decode and encode few images at a time, and leave the text
                encoder in the host's memory while it is not used.
        """
        self._config, self._chunk = config, _CHUNK if low_memory else None
        self._graphs, self.weights = {}, {}
        for name, part in parts.items():
            # Lists: flattening the state's own nodes at each call takes milliseconds.
            graph, state = nnx.split(part)
            self.weights[name], tree = jax.tree.flatten(state)
            self._graphs[name] = graph, tree
        if low_memory and "text_encoder" in self.weights:
            self.weights["text_encoder"] = jax.device_get(self.weights["text_encoder"])
        self.cameras = config.cameras.orbit()
        self.schedule = schedule.by_name(config.schedule)
        self.start = Program(self._start, static=("mode",))
        self.advance = Program(self._advance, static=("aware", "mode"))
        self.decode = Program(self._decode)
        self.reconstruct = Program(self._reconstruct)
        self.render = Program(self._render)
        self._compiled: set[tuple[int, bool, Mode]] = set()

    def compile(self, batch: int, aware: bool, mode: Mode, told: Progress) -> None:
        """Compile what a batch size needs, unless that is done.

        Args:
            batch: number of prompts.
            aware: whether some steps are 3D-aware.
            mode: see `loop.advance`.
            told: hears of the stage "compiling".
        """
        if (batch, aware, mode) in self._compiled:
            told("compiling", 1, 1)
            return
        told("compiling", 0, 1)
        executables.compile_all(
            self._lowered(batch, aware, mode),
            lambda done, total: told("compiling", done, total),
        )
        self._compiled.add((batch, aware, mode))

    def table(
        self,
        mode: Mode,
        sampler: str | None,
        steps: int | None,
        steps_3d: Sequence[float] | None,
    ) -> tuple[samplers.Steps, dict[str, Any]]:
        """The sampler's table with its 3D-aware steps, and what it was made from.

        Args:
            mode, sampler, steps, steps_3d: as `VideoMV.generate` takes them.

        Raises:
            InputError: an unknown name, or a number out of its range.
        """
        if mode not in get_args(Mode):
            raise InputError.unknown("mode", mode, get_args(Mode))
        sampling, reference = self._config.sampling, mode == "reference"
        if sampler is None:
            sampler = "ddim" if reference else sampling.sampler
        if steps is None:
            steps = 50 if reference else sampling.steps
        table = samplers.by_name(sampler)(self.schedule, steps)
        if steps_3d is None and reference:
            table = samplers.project_at_indices(table)
        else:
            fractions = sampling.steps_3d if steps_3d is None else steps_3d
            table = samplers.project_at(table, fractions)
        return table, {
            "mode": mode,
            "sampler": sampler,
            "steps": int(table.count),
            "steps_3d": np.flatnonzero(table.project).tolist(),
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what is compiled; see `executables.save`.

        Raises:
            InputError: also on a CPU, where XLA writes neither the rasterizer's sort
                nor, so that they run, programs from JAX's compilation cache.
        """
        if compat.on_cpu():
            raise InputError(
                "save_compiled: XLA cannot save a CPU's programs; keep JAX's "
                "compilation cache instead"
            )
        executables.save(directory, self._named(), self._config.to_json())

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read what `save` wrote; see `executables.load`."""
        executables.load(directory, self._named(), self._config.to_json())

    def _named(self) -> dict[str, Program]:
        names = ("start", "advance", "decode", "reconstruct", "render")
        return {name: getattr(self, name) for name in names}

    def _lowered(
        self, batch: int, aware: bool, mode: Mode
    ) -> Iterator[tuple[Program, jax.stages.Lowered, tuple, dict]]:
        """Each program that is not ready, traced; the longest to compile first."""
        for program, args, static in self.needed(batch, aware, mode):
            if not program.is_ready(args, static):
                yield program, program.trace(*args, **static).lower(), args, static

    def needed(
        self, batch: int, aware: bool, mode: Mode
    ) -> Iterator[tuple[Program, tuple, dict]]:
        """What a batch size runs, `advance` first.

        Args:
            batch, aware, mode: as of `compile`.

        Yields:
            A program, its arguments, of which those made at run time are shapes, and
            its static ones.
        """
        weights, text = self.weights, self._config.text_encoder
        assert text is not None
        side = self._config.cameras.size
        photos = None
        if self._config.image_encoder is not None:
            photos = jax.ShapeDtypeStruct((batch, side, side, 3), np.float32)
        tokens = jax.ShapeDtypeStruct((2 * batch, text.length), np.int32)
        seeds = jax.ShapeDtypeStruct((batch,), np.uint32)
        number = jax.ShapeDtypeStruct((), np.float32)
        inputs = (weights, tokens, seeds, self.cameras, photos)
        traced = functools.partial(self._start, mode=mode)
        condition, state = jax.eval_shape(traced, *inputs)
        table = samplers.ddim(self.schedule)
        numbers = np.int32(1), number, number, np.uint32(0)
        static = {"aware": aware, "mode": mode}
        yield self.advance, (weights, condition, table, state, *numbers), static
        if "reconstructor" in weights:
            views = np.asarray(self._config.sampling.views_3d)
            shape = (batch, len(views), side, side, 3)
            images = jax.ShapeDtypeStruct(shape, np.float32)
            some = self.cameras[views]
            yield self.reconstruct, (weights, images, some), {}
            gaussians = jax.eval_shape(self._reconstruct, weights, images, some)
            yield self.render, (weights, gaussians, self.cameras), {}
        yield self.decode, (weights, state.x), {}
        yield self.start, inputs, {"mode": mode}

    # What follows is traced, never run as is.

    def _merge(self, name: str, weights: Weights) -> Any:
        graph, tree = self._graphs[name]
        return nnx.merge(graph, jax.tree.unflatten(tree, weights[name]))

    def _start(
        self,
        weights: Weights,
        tokens: Tokens,
        seeds: UInt32[Array, "b"],
        orbit: Cameras,
        photos: Float[Array, "b h w 3"] | None,
        *,
        mode: Mode,
    ) -> tuple[Condition, SamplingState]:
        """What the UNet will be told, and each prompt's noise."""
        vae, cameras = self._config.vae, self._config.cameras
        assert vae is not None
        side = cameras.size // vae.downsampling
        shape = (1, cameras.views, side, side, vae.latent_channels)
        noise = jax.vmap(lambda s: process.sample_noise(jax.random.key(s), shape)[0])
        image = None
        if photos is not None:
            # The original draws the photo's latent, once for both branches.
            key = jax.random.fold_in(jax.random.key(seeds[0]), 2)
            latent = self._merge("vae", weights).encode(
                photos[:, None], key if mode == "reference" else None
            )[:, 0]
            vectors = self._merge("image_encoder", weights)(photos)
            vectors = jnp.stack([vectors, jnp.zeros_like(vectors)], 1)
            image = ImagePrompt(latent, vectors.reshape(-1, vectors.shape[-1]))
        text = self._merge("text_encoder", weights)(tokens)
        return Condition(text, orbit, image), start(noise(seeds))

    def _advance(
        self,
        weights: Weights,
        condition: Condition,
        table: samplers.Steps,
        state: SamplingState,
        until: Int[Array, ""],
        guidance: Float[Array, ""],
        rescale: Float[Array, ""],
        seed: UInt32[Array, ""],
        *,
        aware: bool,
        mode: Mode,
    ) -> SamplingState:
        """The denoising loop up to a step."""
        unet = self._merge("unet", weights)
        b = len(state.x)
        camera = unet_condition(condition.cameras)
        told: dict[str, Any] = {
            "context": condition.text,
            "camera": jnp.broadcast_to(camera[None], (b, *camera.shape)),
            "image": condition.image,
        }
        sampling = self._config.sampling
        if unet.config.fps_condition:
            told["fps"] = jnp.full((b,), sampling.fps)
        project = key = None
        if aware:
            project = SplatProjection(
                self._merge("vae", weights),
                self._merge("reconstructor", weights),
                condition.cameras,
                sampling.views_3d,
                self._config.cameras.background
                if sampling.background_3d is None
                else sampling.background_3d,
                oversampling=2 if mode == "reference" else 1,
                original=mode == "reference",
                chunk=self._chunk,
            )
            if mode == "reference":
                key = jax.random.fold_in(jax.random.key(seed), 1)
        return advance(
            lambda x, t: unet(x, t, **told),
            self._config.prediction,
            table,
            state,
            until,
            guidance=guidance,
            rescale=rescale,
            project=project,
            mode=mode,
            key=key,
        )

    def _decode(self, weights: Weights, latents: Latents) -> Images:
        vae = self._merge("vae", weights)
        return vae.decode(latents, chunk=self._chunk).clip(0, 1)

    def _reconstruct(
        self, weights: Weights, images: Images, cameras: Cameras
    ) -> Gaussians:
        """Gaussians in the frame of the cameras, `[v]` or `[b, v]`."""
        local, world_from_local = canonical_frame(cameras)
        rays = plucker_rays(local)
        rays = rays.reshape(-1, *rays.shape[-4:])
        rays = jnp.broadcast_to(rays, (len(images), *rays.shape[1:]))
        gaussians = self._merge("reconstructor", weights)(images, rays)
        return gaussians.transform(world_from_local)

    def _render(
        self, weights: Weights, gaussians: Gaussians, cameras: Cameras
    ) -> Renders:
        """Every scene from the same cameras, over the model's background."""
        background = jnp.asarray(self._config.cameras.background, jnp.float32)
        return render(gaussians, cameras, background=background)
