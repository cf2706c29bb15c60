"""Stage 2: the UNet on noised latents of orbits, with the text encoder beside it."""

import dataclasses
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from videomv_jax.data.tokenizer import encode
from videomv_jax.diffusion import losses, process, schedule
from videomv_jax.model_folder import LoadedModel, ModelConfig
from videomv_jax.models.clip import TextEncoder
from videomv_jax.models.unet import UNet
from videomv_jax.models.vae import VAE
from videomv_jax.sampling import samplers
from videomv_jax.sampling.loop import sample
from videomv_jax.splat.conventions import unet_condition
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.state import Networks, Params
from videomv_jax.training.step import Metrics
from videomv_jax.types import InputError, PRNGKey

SHOWN = 4


class DiffusionTask:
    """Denoising loss of the original: squared error, uniform t, dropped captions.

    A dropped caption becomes the negative prompt of the model's sampling config, so
    the unconditional branch of guidance meets what it was trained on.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig):
        """The structure alone, its arrays as shapes: what a plan of the run needs."""
        assert model.unet is not None and model.text_encoder is not None
        assert model.vae is not None
        self._config, self._model = config, model
        self._schedule = schedule.by_name(model.schedule)
        self._cameras = model.cameras.orbit()
        unet: Any = dataclasses.replace(
            model.unet, dtype=config.compute_dtype, remat=config.remat
        )
        text = dataclasses.replace(model.text_encoder, dtype=config.compute_dtype)
        vae = dataclasses.replace(model.vae, dtype=config.compute_dtype)
        trained: dict[str, Any] = {"unet": lambda rngs: UNet(unet, rngs=rngs)}
        frozen: dict[str, Any] = {"vae": lambda rngs: VAE(vae, rngs=rngs)}
        texts = trained if config.train_text else frozen
        texts["text_encoder"] = lambda rngs: TextEncoder(text, rngs=rngs)
        self.networks, self._frozen = (
            Networks(lambda rngs, all=all: {n: make(rngs) for n, make in all.items()})
            for all in (trained, frozen)
        )
        self._names = tuple(trained), tuple(frozen)
        self._start: LoadedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.initial: Params = {}
        shape = jax.ShapeDtypeStruct
        n, views, length = (
            config.objects,
            model.cameras.views,
            model.text_encoder.length,
        )
        latent = model.cameras.size // 2 ** (len(model.vae.multipliers) - 1)
        latents = (n, views, latent, latent, model.vae.latent_channels)
        self.constants: Any = {
            "frozen": jax.eval_shape(self._frozen.init, jax.random.key(0)),
            "uncond": shape((1, length), jnp.int32),
            "pool": pool.Pool(
                None, shape((n, length), jnp.int32), shape(latents, jnp.bfloat16)
            ),
        }
        self._sample = jax.jit(self._sampled_views)

    def random_constants(self, key: PRNGKey) -> Any:
        """Values of the constants' shapes, for measurements: random ones."""
        shapes = self.constants
        key_frozen, key_latents, key_tokens = jax.random.split(key, 3)
        objects = shapes["pool"]
        vocabulary = self._model.text_encoder.vocab if self._model.text_encoder else 1
        return {
            "frozen": self._frozen.init(key_frozen),
            "uncond": jnp.zeros(shapes["uncond"].shape, jnp.int32),
            "pool": pool.Pool(
                None,
                jax.random.randint(key_tokens, objects.tokens.shape, 0, vocabulary),
                jax.random.normal(key_latents, objects.latents.shape, jnp.bfloat16),
            ),
        }

    @classmethod
    def load(
        cls,
        config: TrainConfig,
        model: ModelConfig,
        start: LoadedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> "DiffusionTask":
        """The task with its arrays: frozen weights, initial ones, the objects.

        Raises:
            InputError: `start` lacks a network that stays frozen.
        """
        task = cls(config, model)
        trained, names = task._names
        frozen = {name: getattr(start, name) for name in names}
        for name, network in frozen.items():
            if network is None:
                raise InputError(f"init_from: {config.init_from!r} has no {name}")
        assert model.text_encoder is not None
        task._start, task._tokenizer = start, tokenizer
        task.initial = pool.given(start, trained)
        task._frozen, frozen_params = Networks.split(frozen)
        length = model.text_encoder.length
        uncond, _ = encode(tokenizer, [model.sampling.negative_prompt], length)
        objects = pool.encoded(
            pool.descriptions(config), frozen["vae"], tokenizer, length, model.cameras
        )
        task.constants = {"frozen": frozen_params, "uncond": uncond, "pool": objects}
        return task

    def loss(
        self, networks: dict[str, Any], constants: Any, index: Array, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        config = self._config
        all_networks = self._frozen.merge(constants["frozen"]) | networks
        objects = constants["pool"]
        key_t, key_noise, key_drop, key_network = jax.random.split(key, 4)
        x0 = objects.latents[index].astype(jnp.float32)
        b = len(index)
        t = jax.random.randint(key_t, (b,), 0, len(self._schedule.alpha))
        noise = process.sample_noise(key_noise, x0.shape, config.offset_noise)
        dropped = jax.random.bernoulli(key_drop, config.condition_dropout, (b, 1))
        tokens = jnp.where(dropped, constants["uncond"], objects.tokens[index])
        context = all_networks["text_encoder"](tokens)
        camera = unet_condition(self._cameras)
        output = networks["unet"](
            process.add_noise(self._schedule, x0, noise, t),
            t,
            context,
            jnp.broadcast_to(camera[None], (b, *camera.shape)),
            key=key_network,
        )
        kind = self._model.prediction
        wanted = process.target(self._schedule, kind, x0, noise, t)
        error = losses.squared_error(output, wanted)
        # Where the picture is decided: the noisiest fifth.
        early = (t >= len(self._schedule.alpha) * 4 // 5).astype(error.dtype)
        noisy = (error * early).sum() / jnp.maximum(early.sum(), 1)
        return error.mean(), {"loss_noisiest": noisy}

    def _sampled_views(self, params: Params, constants: Any) -> tuple[Array, Array]:
        """Training objects' views, and views sampled from their captions."""
        parts: Any = self._frozen.merge(constants["frozen"])
        parts |= self.networks.merge(params)
        sampling = self._model.sampling
        camera = unet_condition(self._cameras)
        truth = constants["pool"].latents[:SHOWN].astype(jnp.float32)
        tokens = constants["pool"].tokens[:SHOWN]
        uncond = jnp.broadcast_to(constants["uncond"], tokens.shape)
        context = parts["text_encoder"](jnp.concatenate([tokens, uncond]))
        cameras = jnp.broadcast_to(camera[None], (2 * len(tokens), *camera.shape))
        done = sample(
            lambda x, t: parts["unet"](x, t, context, cameras),
            self._model.prediction,
            samplers.by_name(sampling.sampler)(self._schedule, sampling.steps),
            process.sample_noise(jax.random.key(0), truth.shape),
            guidance=sampling.guidance,
        )
        some = np.arange(0, len(self._cameras.intrinsics), 6)
        return parts["vae"].decode(truth[:, some]), parts["vae"].decode(done.x[:, some])

    def sheet(self, params: Params, constants: Any) -> np.ndarray:
        """Per object: views of the truth beside views sampled from its caption."""
        pairs = zip(*self._sample(params, constants), strict=True)
        return pool.grid([np.concatenate(pair) for pair in pairs])

    def export(self, params: Params, constants: Any, folder: str) -> None:
        """Write a folder with the VAE, the UNet, the text encoder, the tokenizer."""
        assert self._start is not None and self._tokenizer is not None, "only a plan"
        with tempfile.TemporaryDirectory() as tokenizer:
            self._tokenizer.save_pretrained(tokenizer)
            networks = self.networks.merge(params)
            pool.export(folder, self._model, self._start, networks, tokenizer)
