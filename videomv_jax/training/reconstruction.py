"""Stage 3: the feed-forward reconstructor, on clean and on the UNet's own views."""

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
from videomv_jax.splat.conventions import unet_condition
from videomv_jax.splat.renderer import Renders, render
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.state import Networks, Params
from videomv_jax.training.step import Metrics
from videomv_jax.training.supervision import (
    INPUTS,
    Supervision,
    reconstructor_sizes,
)
from videomv_jax.types import InputError, PRNGKey


class ReconstructionTask:
    """Four views in, Gaussians out, compared where they are rendered.

    As in VideoMV section 3.2: the inputs of a share of the objects are the UNet's x0
    of noised latents at a random time, decoded. The UNet does not learn from it.
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
        sizes = reconstructor_sizes(config, model)
        self.networks = Networks(
            lambda rngs: {"reconstructor": Reconstructor(sizes, rngs=rngs)}
        )
        self.initial = pool.given(start, ["reconstructor"])
        self._frozen, frozen = Networks.split(
            {n: getattr(start, n) for n in ("vae", "unet", "text_encoder")}
        )
        length = start.config.text_encoder.length
        objects = pool.descriptions(config)
        self.constants = {
            "frozen": frozen,
            "pool": pool.encoded(objects, start.vae, tokenizer, length, model.cameras),
            **self._supervision.constants,
        }
        self._show = jax.jit(self._shown)

    def loss(
        self, networks: dict[str, Any], constants: Any, index: Array, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        key_views, key_network, key_background = jax.random.split(key, 3)
        supervision = self._supervision
        inputs, views = supervision.choose(key_views)
        scenes = jax.tree.map(lambda x: x[index], constants["pool"].scenes)
        truth = supervision.truth(scenes, views)
        seen = supervision.inputs(scenes, inputs, truth[0])
        corrupted = round(self._config.corrupted_inputs * len(index))
        if corrupted:
            guess = self._guess(constants, index[:corrupted], inputs, key_network)
            seen = jnp.concatenate([guess, seen[corrupted:]])
        gaussians = supervision.reconstruct(networks, seen, inputs)
        loss, metrics = supervision.compare(
            gaussians, views, truth, constants, key_background
        )
        return loss.mean(), metrics

    def placements(self, mesh: Mesh) -> Any:
        """See `Task.placements`: frozen networks lie as trained ones do."""
        places = dict.fromkeys(self.constants, sharding.replicated(mesh))
        return places | {"frozen": self._frozen.shardings(mesh)}

    def _guess(
        self, constants: Any, index: Array, views: Array, key: PRNGKey
    ) -> Float[Array, "b 4 h w 3"]:
        """The UNet's idea of some views from noised latents, at a random time each."""
        frozen: Any = self._frozen.merge(constants["frozen"])
        key_t, key_noise = jax.random.split(key)
        x0 = constants["pool"].latents[index].astype(jnp.float32)
        b = len(index)
        t = jax.random.randint(key_t, (b,), 0, len(self._schedule.alpha))
        noise = process.sample_noise(key_noise, x0.shape)
        noised = process.add_noise(self._schedule, x0, noise, t)
        camera = unet_condition(self._supervision.cameras)
        context = frozen["text_encoder"](constants["pool"].tokens[index])
        output = frozen["unet"](
            noised, t, context, jnp.broadcast_to(camera[None], (b, *camera.shape))
        )
        clean = process.to_x0(self._schedule, self._model.prediction, noised, output, t)
        return frozen["vae"].decode(clean[:, views]).clip(0, 1)

    def _shown(self, params: Params, constants: Any) -> tuple[Array, Renders]:
        supervision = self._supervision
        count = len(supervision.cameras.intrinsics)
        inputs = jnp.arange(INPUTS) * (count // INPUTS)
        between = inputs + count // INPUTS // 2
        scenes = jax.tree.map(lambda x: x[:4], constants["pool"].scenes)
        grey = self._model.cameras.background
        rgb, _ = synthetic.render_orbit(scenes, supervision.cameras, grey)
        networks: Any = self.networks.merge(params)
        gaussians = supervision.reconstruct(networks, rgb[:, inputs], inputs)
        cameras = supervision.canonical[between]
        return rgb[:, between], render(gaussians, cameras, background=grey)

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
