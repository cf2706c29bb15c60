"""Stage 3: the feed-forward reconstructor, on clean and on the UNet's own views."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from transformers import PreTrainedTokenizerBase

from videomv_jax import sharding
from videomv_jax.data import synthetic
from videomv_jax.diffusion import process, schedule
from videomv_jax.model_folder import LoadedModel, ModelConfig
from videomv_jax.models.reconstructor import Reconstructor
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.conventions import unet_condition
from videomv_jax.splat.renderer import Renders, render
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.feed import Batch, Feed, Numbers, SourceFeed, objects_of
from videomv_jax.training.state import Networks, Params
from videomv_jax.training.step import Metrics
from videomv_jax.training.supervision import (
    INPUTS,
    Supervision,
    reconstructor_sizes,
)
from videomv_jax.types import InputError, PRNGKey

SHOWN = 4
ELEVATIONS = 32


class ReconstructionTask:
    """Four views in, Gaussians out, compared where they are rendered.

    As in VideoMV section 3.2: the inputs of a share of the objects are the UNet's x0
    of noised latents at a random time, decoded. The UNet does not learn from it. On the
    synthetic set, clean inputs may come from `ELEVATIONS` orbits around the model's;
    the UNet's come from the orbit it knows.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        start: LoadedModel,
        tokenizer: PreTrainedTokenizerBase,
    ):
        missing = [n for n in ("vae", "unet", "text_encoder") if not getattr(start, n)]
        if missing:
            raise InputError(f"init_from: {config.init_from!r} has no {missing[0]}")
        assert start.config.text_encoder is not None
        assert start.vae is not None
        self._config, self._model, self._start = config, model, start
        self._schedule = schedule.by_name(model.schedule)
        self._supervision = Supervision(config, model)
        jitter = 0 if config.source else config.elevation_jitter
        spread = np.linspace(-jitter, jitter, ELEVATIONS if jitter else 0)
        # [e, f], the model's own orbit first.
        self._orbits = model.cameras.orbit(
            elevation=model.cameras.elevation + np.concatenate([[0.0], spread])
        )
        sizes = reconstructor_sizes(config, model)
        self.networks = Networks(
            lambda rngs: {"reconstructor": Reconstructor(sizes, rngs=rngs)}
        )
        self.initial = pool.given(start, self.networks, ["reconstructor"])
        self._frozen, frozen = Networks.split(
            {n: getattr(start, n) for n in ("vae", "unet", "text_encoder")}
        )
        frozen = self._frozen.rounded(frozen)
        length = start.config.text_encoder.length
        self.feed: Feed = Numbers(config.objects)
        if config.source:
            self.feed = SourceFeed(
                config, model, tokenizer, start.vae, start.text_encoder, coverage=True
            )
            held = self.feed.held(SHOWN, start.vae)
        else:
            held = pool.encoded(
                pool.descriptions(config), start.vae, tokenizer, length, model.cameras
            )
        self.constants = {
            "frozen": frozen,
            "pool": held,
            **self._supervision.constants,
        }
        self._show = jax.jit(self._shown)

    def loss(
        self, networks: dict[str, Any], constants: Any, batch: Batch, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        key_views, key_orbit, key_network, key_background = jax.random.split(key, 4)
        supervision = self._supervision
        inputs, views = supervision.choose(key_views)
        frozen: Any = self._frozen.merge(constants["frozen"])
        objects = objects_of(
            batch,
            constants["pool"],
            frozen["vae"],
            self._model.cameras,
            jax.random.fold_in(key_network, 1),
        )
        count = len(objects.tokens)
        corrupted = round(self._config.corrupted_inputs * count)
        if objects.cameras is None:
            orbits = self._choose_orbits(key_orbit, count, corrupted)
            objects = dataclasses.replace(objects, cameras=orbits)
        canonical = supervision.canonical(objects.cameras)
        truth = supervision.truth(objects.scenes, objects.cameras, views)
        seen = supervision.inputs(objects.scenes, objects.cameras, inputs, truth[0])
        if corrupted:
            some = jax.tree.map(lambda x: x[:corrupted], objects)
            guess = self._guess(frozen, some, inputs, key_network)
            seen = jnp.concatenate([guess, seen[corrupted:]])
        gaussians = supervision.reconstruct(networks, seen, canonical[inputs])
        loss, metrics = supervision.compare(
            gaussians, canonical[views], truth, constants, key_background
        )
        return loss.mean(), metrics

    def _choose_orbits(self, key: PRNGKey, count: int, corrupted: int) -> Cameras:
        """Cameras `[count, f]`, the first `corrupted` of the model's own orbit."""
        orbits = len(self._orbits.intrinsics)
        chosen = jax.random.randint(key, (count,), min(1, orbits - 1), orbits)
        chosen = jnp.where(jnp.arange(count) < corrupted, 0, chosen)
        return jax.tree.map(lambda x: x[chosen], self._orbits)

    def placements(self, mesh: Mesh) -> Any:
        """See `Task.placements`: frozen networks lie as trained ones do."""
        places = dict.fromkeys(self.constants, sharding.replicated(mesh))
        return places | {"frozen": self._frozen.shardings(mesh)}

    def _guess(
        self, frozen: Any, objects: Any, views: Array, key: PRNGKey
    ) -> Float[Array, "b 4 h w 3"]:
        """The UNet's idea of some views from noised latents, at a random time each."""
        key_t, key_noise = jax.random.split(key)
        x0 = objects.latents.astype(jnp.float32)
        b = len(x0)
        t = jax.random.randint(key_t, (b,), 0, len(self._schedule.alpha))
        noise = process.sample_noise(key_noise, x0.shape)
        noised = process.add_noise(self._schedule, x0, noise, t)
        camera = unet_condition(objects.cameras)
        context = frozen["text_encoder"](objects.tokens)
        output = frozen["unet"](noised, t, context, camera)
        clean = process.to_x0(self._schedule, self._model.prediction, noised, output, t)
        return frozen["vae"].decode(clean[:, views]).clip(0, 1)

    def _shown(self, params: Params, constants: Any) -> tuple[Array, Renders]:
        supervision = self._supervision
        count = len(supervision.cameras.intrinsics)
        inputs = jnp.arange(INPUTS) * (count // INPUTS)
        between = inputs + count // INPUTS // 2
        shown = jax.tree.map(lambda x: x[:SHOWN], constants["pool"])
        grey = self._model.cameras.background
        if isinstance(shown.scenes, pool.Views):
            rgb, _ = shown.scenes.over(grey)
        else:
            rgb, _ = synthetic.render_orbit(shown.scenes, supervision.cameras, grey)
        networks: Any = self.networks.merge(params)
        canonical = supervision.canonical(shown.cameras)
        gaussians = supervision.reconstruct(networks, rgb[:, inputs], canonical[inputs])
        renders = render(gaussians, canonical[between], background=grey)
        return rgb[:, between], renders

    def sheet(self, params: Params, constants: Any) -> np.ndarray:
        """Per object: views between the inputs, above the Gaussians' renders."""
        truth, renders = self._show(params, constants)
        pairs = zip(truth, renders.rgb, strict=True)
        return pool.grid([np.concatenate(pair) for pair in pairs])

    def export(self, params: Params, constants: Any, folder: str) -> None:
        """Write a folder with the parts it started from and the reconstructor."""
        networks = self.networks.merge(params)
        tokenizer = self._start.tokenizer_dir
        pool.export(folder, self._model, self._start, networks, tokenizer)
