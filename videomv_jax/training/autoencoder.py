"""Stage 1: the VAE, on random views of the objects."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from videomv_jax import sharding
from videomv_jax.data import synthetic
from videomv_jax.model_folder import ModelConfig, save_model
from videomv_jax.models.vae import VAE
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.feed import Batch, Feed, Numbers
from videomv_jax.training.state import Networks, Params
from videomv_jax.training.step import Metrics
from videomv_jax.types import PRNGKey


class AutoencoderTask:
    """Mean absolute plus mean squared error, and a small KL term.

    The exported config carries the scale factor that gives latents a standard
    deviation of 1, measured on the pool.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig):
        assert model.vae is not None
        self._config, self._model = config, model
        sizes = dataclasses.replace(model.vae, dtype=config.compute_dtype)
        self.networks = Networks(lambda rngs: {"vae": VAE(sizes, rngs=rngs)})
        self.initial: Params = {}
        self.feed: Feed = Numbers(config.objects)
        self.constants = pool.scenes(pool.descriptions(config))
        self._cameras = model.cameras.orbit()
        self._reconstruct = jax.jit(self._reconstruct_views)

    def loss(
        self, networks: dict[str, Any], constants: Any, batch: Batch, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        vae = networks["vae"]
        scenes = jax.tree.map(lambda x: x[batch], constants)
        key_views, key_noise = jax.random.split(key)
        count = len(self._cameras.intrinsics)
        views = jax.random.choice(
            key_views, count, (self._config.views,), replace=False
        )
        images, _ = synthetic.render_orbit(
            scenes, self._cameras[views], self._model.cameras.background
        )
        mean, logvar = vae.moments(images)
        noise = jax.random.normal(key_noise, mean.shape)
        latents = mean + jnp.exp(0.5 * logvar) * noise
        error = vae.decode(latents * vae.config.scale_factor) - images
        squared = jnp.square(error).mean()
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
        loss = jnp.abs(error).mean() + squared + self._config.kl_weight * divergence
        metrics = {"psnr": -10 * jnp.log10(squared), "kl": divergence}
        return loss, metrics | {"latent_std": latents.std()}

    def placements(self, mesh: Mesh) -> Any:
        """See `Task.placements`."""
        return sharding.replicated(mesh)

    def _reconstruct_views(self, params: Params, constants: Any):
        vae: Any = self.networks.merge(params)["vae"]
        scenes = jax.tree.map(lambda x: x[:8], constants)
        images, _ = synthetic.render_orbit(
            scenes, self._cameras[np.array([1])], self._model.cameras.background
        )
        latents = vae.encode(images)
        return images[:, 0], vae.decode(latents)[:, 0], latents.std()

    def sheet(self, params: Params, constants: Any) -> np.ndarray:
        """Eight views above what the autoencoder makes of them."""
        *rows, _ = self._reconstruct(params, constants)
        return pool.grid(rows)

    def export(self, params: Params, constants: Any, folder: str) -> None:
        """Write a folder with the VAE alone, its latents scaled to deviation 1."""
        assert self._model.vae is not None
        *_, std = self._reconstruct(params, constants)
        sizes = dataclasses.replace(
            self._model.vae, scale_factor=self._model.vae.scale_factor / float(std)
        )
        config = dataclasses.replace(
            self._model, vae=sizes, unet=None, text_encoder=None, reconstructor=None
        )
        save_model(folder, config, self.networks.merge(params), dtype="float32")
