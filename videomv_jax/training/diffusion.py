"""Stage 2: the UNet on noised latents of orbits, with the encoders beside it."""

import dataclasses
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from transformers import PreTrainedTokenizerBase

from videomv_jax.data.tokenizer import encode
from videomv_jax.diffusion import losses, process, schedule
from videomv_jax.model_folder import LoadedModel, ModelConfig
from videomv_jax.models.clip import TextEncoder, VisionEncoder
from videomv_jax.models.image_condition import ImagePrompt
from videomv_jax.models.unet import UNet
from videomv_jax.models.vae import VAE
from videomv_jax.sampling import samplers
from videomv_jax.sampling.loop import sample
from videomv_jax.splat.cameras import Cameras
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
    the unconditional branch of guidance meets what it was trained on. Where the model
    takes photos, the first view is the photo, and its vector is zero in that branch.
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
        self._photos = model.image_encoder is not None
        trained: dict[str, Any] = {"unet": lambda rngs: UNet(unet, rngs=rngs)}
        frozen: dict[str, Any] = {"vae": lambda rngs: VAE(vae, rngs=rngs)}
        texts = trained if config.train_text else frozen
        texts["text_encoder"] = lambda rngs: TextEncoder(text, rngs=rngs)
        if model.image_encoder is not None:
            vision = dataclasses.replace(
                model.image_encoder, dtype=config.compute_dtype
            )
            photos = trained if config.train_image else frozen
            photos["image_encoder"] = lambda rngs: VisionEncoder(vision, rngs=rngs)
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
        photos = (n, model.cameras.size, model.cameras.size, 3)
        self.constants: Any = {
            "frozen": jax.eval_shape(self._frozen.init, jax.random.key(0)),
            "uncond": shape((1, length), jnp.int32),
            "empty": shape((1, length), jnp.int32),
            "pool": pool.Pool(
                None,
                shape((n, length), jnp.int32),
                shape(latents, jnp.bfloat16),
                jax.eval_shape(lambda: self._orbits(n)),
                shape(photos, jnp.uint8) if self._photos else None,
            ),
        }
        self._sample = jax.jit(self._sampled_views)

    def random_constants(self, key: PRNGKey) -> Any:
        """Values of the constants' shapes, for measurements: random ones."""
        shapes = self.constants
        key_frozen, key_latents, key_tokens, key_photos = jax.random.split(key, 4)
        objects = shapes["pool"]
        vocabulary = self._model.text_encoder.vocab if self._model.text_encoder else 1
        return {
            "frozen": self._frozen.init(key_frozen),
            "uncond": jnp.zeros(shapes["uncond"].shape, jnp.int32),
            "empty": jnp.zeros(shapes["empty"].shape, jnp.int32),
            "pool": pool.Pool(
                None,
                jax.random.randint(key_tokens, objects.tokens.shape, 0, vocabulary),
                jax.random.normal(key_latents, objects.latents.shape, jnp.bfloat16),
                self._orbits(len(objects.tokens)),
                jax.random.bits(key_photos, objects.photos.shape, jnp.uint8)
                if self._photos
                else None,
            ),
        }

    def _orbits(self, count: int) -> Cameras:
        """The model's orbit for each of some objects."""
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), self._cameras
        )

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
        task.initial = pool.given(start, task.networks, trained)
        task._frozen, frozen_params = Networks.split(frozen)
        length = model.text_encoder.length
        negative, empty = encode(
            tokenizer, [model.sampling.negative_prompt, ""], length
        )[0]
        elevation, azimuth = pool.stand(config, model.cameras)
        objects = pool.encoded(
            pool.descriptions(config),
            frozen["vae"],
            tokenizer,
            length,
            model.cameras,
            elevation=elevation,
            azimuth=azimuth,
            photos=task._photos,
        )
        task.constants = {
            "frozen": frozen_params,
            "uncond": negative[None],
            "empty": empty[None],
            "pool": objects,
        }
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
        b, f = x0.shape[:2]
        if config.rolled_views:
            first = jax.random.randint(jax.random.fold_in(key_drop, 2), (b, 1), 0, f)
            order = (jnp.arange(f)[None] + first) % f
            x0 = jax.vmap(lambda x, order: x[order])(x0, order)
        t = jax.random.randint(key_t, (b,), 0, len(self._schedule.alpha))
        noise = process.sample_noise(key_noise, x0.shape, config.offset_noise)
        dropped = jax.random.bernoulli(key_drop, config.condition_dropout, (b,))
        captionless = jax.random.bernoulli(
            jax.random.fold_in(key_drop, 1), config.caption_dropout, (b,)
        )
        output = networks["unet"](
            process.add_noise(self._schedule, x0, noise, t),
            t,
            **self._told(all_networks, constants, index, dropped, captionless),
            key=key_network,
        )
        kind = self._model.prediction
        wanted = process.target(self._schedule, kind, x0, noise, t)
        error = losses.squared_error(output, wanted)
        # Where the picture is decided: the noisiest fifth.
        early = (t >= len(self._schedule.alpha) * 4 // 5).astype(error.dtype)
        noisy = (error * early).sum() / jnp.maximum(early.sum(), 1)
        return error.mean(), {"loss_noisiest": noisy}

    def _told(
        self,
        networks: dict[str, Any],
        constants: Any,
        index: Array,
        dropped: Bool[Array, "b"],
        captionless: Bool[Array, "b"],
    ) -> dict[str, Any]:
        """What the UNet is told of some objects, or instead where that is dropped."""
        objects = constants["pool"]
        tokens = objects.tokens[index]
        tokens = jnp.where(captionless[:, None], constants["empty"], tokens)
        tokens = jnp.where(dropped[:, None], constants["uncond"], tokens)
        cameras = jax.tree.map(lambda x: x[index], objects.cameras)
        told = {
            "context": networks["text_encoder"](tokens),
            "camera": unet_condition(cameras),
        }
        if self._photos:
            photos = objects.photos[index].astype(jnp.float32) / 255
            vectors = networks["image_encoder"](photos)
            told["image"] = ImagePrompt(
                objects.latents[index, 0].astype(jnp.float32),
                jnp.where(dropped[:, None], 0.0, vectors),
            )
        if self._model.unet is not None and self._model.unet.fps_condition:
            told["fps"] = jnp.full(len(index), self._model.sampling.fps)
        return told

    def _sampled_views(self, params: Params, constants: Any) -> tuple[Array, Array]:
        """Training objects' views, and views sampled of their captions or photos."""
        parts: Any = self._frozen.merge(constants["frozen"])
        parts |= self.networks.merge(params)
        sampling = self._model.sampling
        truth = constants["pool"].latents[:SHOWN].astype(jnp.float32)
        branches = jnp.arange(2 * len(truth))
        told = self._told(
            parts,
            constants,
            branches % len(truth),
            branches >= len(truth),
            jnp.full(len(branches), self._photos),
        )
        done = sample(
            lambda x, t: parts["unet"](x, t, **told),
            self._model.prediction,
            samplers.by_name(sampling.sampler)(self._schedule, sampling.steps),
            process.sample_noise(jax.random.key(0), truth.shape),
            guidance=sampling.guidance,
        )
        some = np.arange(0, len(self._cameras.intrinsics), 6)
        return parts["vae"].decode(truth[:, some]), parts["vae"].decode(done.x[:, some])

    def sheet(self, params: Params, constants: Any) -> np.ndarray:
        """Per object: views of the truth beside views sampled of what is known."""
        pairs = zip(*self._sample(params, constants), strict=True)
        return pool.grid([np.concatenate(pair) for pair in pairs])

    def export(self, params: Params, constants: Any, folder: str) -> None:
        """Write a folder with the VAE, the UNet, its encoders, the tokenizer."""
        assert self._start is not None and self._tokenizer is not None, "only a plan"
        with tempfile.TemporaryDirectory() as tokenizer:
            self._tokenizer.save_pretrained(tokenizer)
            networks = self.networks.merge(params)
            pool.export(folder, self._model, self._start, networks, tokenizer)
