"""Stage 2: the UNet on noised latents of orbits, with the encoders beside it."""

import dataclasses
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from transformers import PreTrainedTokenizerBase

from videomv_jax import sharding
from videomv_jax.data.tokenizer import encode
from videomv_jax.diffusion import losses, process, schedule
from videomv_jax.model_folder import LoadedModel, ModelConfig
from videomv_jax.models.clip import TextEncoder, VisionEncoder
from videomv_jax.models.image_condition import ImagePrompt
from videomv_jax.models.unet import UNet
from videomv_jax.models.vae import VAE
from videomv_jax.sampling import samplers
from videomv_jax.sampling.loop import sample
from videomv_jax.splat.conventions import unet_condition
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.feed import Batch, Feed, Numbers, SourceFeed, objects_of
from videomv_jax.training.state import Networks, Params
from videomv_jax.training.step import Metrics
from videomv_jax.types import InputError, Latents, PRNGKey

SHOWN = 4


class Denoised(NamedTuple):
    """Noised clips and what the UNet made of them.

    Attributes:
        x0: clean latents.
        t: time of each clip.
        noised: latents at that time.
        output: the UNet's prediction.
        error: its squared error, of each clip.
        told: what the UNet was told beside it, by name of its arguments.
    """

    x0: Latents
    t: Int[Array, "b"]
    noised: Latents
    output: Latents
    error: Float[Array, "b"]
    told: dict[str, Any]


class DiffusionTask:
    """Denoising loss of the original: squared error, uniform t, dropped captions.

    A dropped caption becomes the negative prompt of the model's sampling config, so
    the unconditional branch of guidance meets what it was trained on. Where the model
    takes photos, the first view is the photo, and its vector is zero in that branch.
    """

    _shows_views = False  # whether the loss compares views, beside latents

    def __init__(self, config: TrainConfig, model: ModelConfig):
        """The structure alone, its arrays as shapes: what a plan of the run needs."""
        assert model.unet is not None and model.text_encoder is not None
        assert model.vae is not None
        self._config, self._model = config, model
        self._schedule = schedule.by_name(model.schedule)
        self._cameras = model.cameras.orbit()
        self._photos = model.image_encoder is not None
        if self._photos and config.image_batch:
            raise InputError(f"image_batch: model {config.model!r} takes photos")
        trained, frozen = self._builders()
        self.networks, self._frozen = (
            Networks(lambda rngs, all=all: {n: make(rngs) for n, make in all.items()})
            for all in (trained, frozen)
        )
        self._names = tuple(trained), tuple(frozen)
        self._start: LoadedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.initial: Params = {}
        self.feed: Feed = Numbers(config.objects)
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
            "frozen": jax.eval_shape(self._random_frozen, jax.random.key(0)),
            "uncond": shape((1, length), jnp.int32),
            "empty": shape((1, length), jnp.int32),
            "pool": pool.Pool(
                None,
                shape((n, length), jnp.int32),
                shape(latents, jnp.bfloat16),
                photos=shape(photos, jnp.uint8) if self._photos else None,
            ),
        }
        self._sample = jax.jit(self._sampled_views)

    def _builders(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What makes the networks that train, and those that stay."""
        config, model = self._config, self._model
        assert model.unet and model.text_encoder and model.vae
        unet: Any = dataclasses.replace(
            model.unet, dtype=config.compute_dtype, remat=config.remat
        )
        text = dataclasses.replace(model.text_encoder, dtype=config.compute_dtype)
        vae = dataclasses.replace(model.vae, dtype=config.compute_dtype)
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
        return trained, frozen

    def random_constants(self, key: PRNGKey) -> Any:
        """Values of the constants' shapes, for measurements: random ones."""
        shapes = self.constants
        key_frozen, key_latents, key_tokens, key_photos = jax.random.split(key, 4)
        objects = shapes["pool"]
        vocabulary = self._model.text_encoder.vocab if self._model.text_encoder else 1
        return {
            "frozen": self._random_frozen(key_frozen),
            "uncond": jnp.zeros(shapes["uncond"].shape, jnp.int32),
            "empty": jnp.zeros(shapes["empty"].shape, jnp.int32),
            "pool": pool.Pool(
                None,
                jax.random.randint(key_tokens, objects.tokens.shape, 0, vocabulary),
                jax.random.normal(key_latents, objects.latents.shape, jnp.bfloat16),
                photos=jax.random.bits(key_photos, objects.photos.shape, jnp.uint8)
                if self._photos
                else None,
            ),
        }

    def _random_frozen(self, key: PRNGKey) -> Params:
        return self._frozen.rounded(self._frozen.init(key))

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
        prompts = [model.sampling.negative_prompt, ""]
        negative, empty = encode(tokenizer, prompts, length)[0]
        if config.source:
            source = SourceFeed(
                config,
                model,
                tokenizer,
                frozen["vae"],
                None if config.train_text else frozen["text_encoder"],
                coverage=task._shows_views or task._photos,
            )
            task.feed = source
            objects = source.held(SHOWN, frozen["vae"])
        else:
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
            "frozen": task._frozen.rounded(frozen_params),
            "uncond": negative[None],
            "empty": empty[None],
            "pool": objects,
        }
        return task

    def loss(
        self, networks: dict[str, Any], constants: Any, batch: Batch, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        networks = self._frozen.merge(constants["frozen"]) | networks
        objects = self._objects(networks, constants, batch, key)
        if not self._config.image_batch:
            done = self._denoise(networks, constants, objects, key)
            return done.error.mean(), self._metrics(done)
        key, key_images = jax.random.split(key)
        done = self._denoise(networks, constants, objects, key)
        among = objects if self._config.source else constants["pool"]
        images = self._denoise_images(networks, constants, among, key_images)
        weight = self._config.image_weight
        loss = (1 - weight) * done.error.mean() + weight * images
        return loss, self._metrics(done) | {"loss_images": images}

    def _objects(
        self, networks: dict[str, Any], constants: Any, batch: Batch, key: PRNGKey
    ) -> pool.Pool:
        """The objects of a batch."""
        cameras = self._model.cameras
        return objects_of(
            batch,
            constants["pool"],
            networks["vae"],
            cameras,
            jax.random.fold_in(key, 1),
        )

    def _denoise(
        self,
        networks: dict[str, Any],
        constants: Any,
        objects: pool.Pool,
        key: PRNGKey,
    ) -> "Denoised":
        """The networks' view of objects' clips, noised at a random time each."""
        config = self._config
        key_t, key_noise, key_drop, key_network = jax.random.split(key, 4)
        latents: Any = objects.latents
        x0 = latents.astype(jnp.float32)
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
        told = self._told(networks, constants, objects, dropped, captionless)
        noised = process.add_noise(self._schedule, x0, noise, t)
        output = networks["unet"](noised, t, **told, key=key_network)
        kind = self._model.prediction
        wanted = process.target(self._schedule, kind, x0, noise, t)
        error = losses.squared_error(output, wanted)
        return Denoised(x0, t, noised, output, error, told)

    def _told(
        self,
        networks: dict[str, Any],
        constants: Any,
        objects: pool.Pool,
        dropped: Bool[Array, "b"],
        captionless: Bool[Array, "b"],
    ) -> dict[str, Any]:
        """What the UNet is told of some objects, or instead where that is dropped."""
        encoder = networks["text_encoder"]
        texts = (captionless, constants["empty"]), (dropped, constants["uncond"])
        if objects.states is None:
            context: Any = objects.tokens
            for instead, tokens in texts:
                context = jnp.where(instead[:, None], tokens, context)
            context = encoder(context)
        else:
            context = objects.states
            for instead, tokens in texts:
                states = encoder(tokens)
                context = context.astype(states.dtype)
                context = jnp.where(instead[:, None, None], states, context)
        told = {"context": context, "camera": self._condition(objects)}
        latents: Any = objects.latents
        if self._photos:
            if objects.photos is None:
                views: Any = objects.scenes
                background = self._model.cameras.background
                photos = views.over(background, slice(1))[0][:, 0]
            else:
                stored: Any = objects.photos
                photos = stored.astype(jnp.float32) / 255
            vectors = networks["image_encoder"](photos)
            told["image"] = ImagePrompt(
                latents[:, 0].astype(jnp.float32),
                jnp.where(dropped[:, None], 0.0, vectors),
            )
        if self._model.unet is not None and self._model.unet.fps_condition:
            told["fps"] = jnp.full(len(latents), self._model.sampling.fps)
        return told

    def _condition(self, objects: pool.Pool) -> Float[Array, "b f 16"] | None:
        """What the UNet is told of the objects' cameras; pictures have none."""
        b, f = objects.latents.shape[:2]
        if objects.cameras is not None:
            return unet_condition(objects.cameras)
        if f != len(self._cameras.intrinsics):
            return None
        camera = unet_condition(self._cameras)
        return jnp.broadcast_to(camera[None], (b, *camera.shape))

    def _denoise_images(
        self,
        networks: dict[str, Any],
        constants: Any,
        objects: pool.Pool,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        """The mean loss of clips of one view without its camera: single images.

        They are a source's pictures, or views of random objects.
        """
        if (images := objects.pictures) is not None:
            return self._denoise(networks, constants, images, key).error.mean()
        key_object, key_view, key = jax.random.split(key, 3)
        shape = (self._config.image_batch,)
        latents: Any = objects.latents
        n, views = latents.shape[:2]
        index = jax.random.randint(key_object, shape, 0, n)
        x0 = latents[index, jax.random.randint(key_view, shape, 0, views)]
        x0 = sharding.constrain(x0[:, None].astype(jnp.float32), "batch")
        tokens: Any = objects.tokens
        images = pool.Pool(None, tokens[index], x0)
        return self._denoise(networks, constants, images, key).error.mean()

    def _metrics(self, done: "Denoised") -> Metrics:
        # Where the picture is decided: the noisiest fifth.
        early = (done.t >= len(self._schedule.alpha) * 4 // 5).astype(jnp.float32)
        noisy = (done.error * early).sum() / jnp.maximum(early.sum(), 1)
        return {"loss_noisiest": noisy}

    def placements(self, mesh: Mesh) -> Any:
        """See `Task.placements`: frozen networks lie as trained ones do."""
        places = dict.fromkeys(self.constants, sharding.replicated(mesh))
        return places | {"frozen": self._frozen.shardings(mesh)}

    def _sampled_views(self, params: Params, constants: Any) -> tuple[Array, Array]:
        """Training objects' views, and views sampled of their captions or photos."""
        parts: Any = self._frozen.merge(constants["frozen"])
        parts |= self.networks.merge(params)
        sampling = self._model.sampling
        shown = jax.tree.map(lambda x: x[:SHOWN], constants["pool"])
        truth = shown.latents.astype(jnp.float32)
        branches = jax.tree.map(lambda x: jnp.repeat(x, 2, 0), shown)
        dropped = jnp.arange(2 * len(truth)) % 2 == 1
        captionless = jnp.full(dropped.shape, self._photos)
        told = self._told(parts, constants, branches, dropped, captionless)
        done = sample(
            lambda x, t: parts["unet"](jnp.repeat(x, 2, 0), jnp.repeat(t, 2), **told),
            self._model.prediction,
            samplers.by_name(sampling.sampler)(self._schedule, sampling.steps),
            process.sample_noise(jax.random.key(0), truth.shape),
            guidance=sampling.guidance,
        )
        some = np.arange(0, truth.shape[1], 6)
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
