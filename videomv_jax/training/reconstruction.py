"""Stage 3: the feed-forward reconstructor, on clean and on the UNet's own views."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from transformers import PreTrainedTokenizerBase

from videomv_jax.convert import lpips
from videomv_jax.data import synthetic
from videomv_jax.diffusion import process, schedule
from videomv_jax.model_folder import LoadedModel, ModelConfig
from videomv_jax.models.lpips import LPIPS
from videomv_jax.models.reconstructor import Reconstructor
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.conventions import (
    canonical_frame,
    plucker_rays,
    unet_condition,
)
from videomv_jax.splat.renderer import Renders, render
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.state import Networks, Params
from videomv_jax.training.step import Metrics
from videomv_jax.types import InputError, PRNGKey

INPUTS = 4
ELEVATIONS = 32
# Side of the images that the perceptual term compares, as LGM resizes them.
PERCEPTUAL_SIZE = 256


class ReconstructionTask:
    """Four views in, Gaussians out, compared where they are rendered.

    As in VideoMV section 3.2: the inputs of a share of the objects are the UNet's x0
    of noised latents at a random time, decoded. Supervised are the inputs' cameras
    and others drawn at random, on a random background: squared error of colour and
    alpha, and where the config names weights of LPIPS that distance too, as in LGM.
    Inputs are four different random views or, for a share of the steps, evenly spaced
    ones, as 3D-aware sampling hands over. Clean inputs come from `ELEVATIONS` orbits
    between the config's lowest and highest, the UNet's from the orbit it knows.
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
        assert model.reconstructor is not None and start.config.text_encoder
        assert start.vae is not None
        self._config, self._model, self._start = config, model, start
        self._schedule = schedule.by_name(model.schedule)
        self._cameras = model.cameras.orbit()
        low, high = config.elevation_low, config.elevation_high
        elevations = np.linspace(low, high, ELEVATIONS if low < high else 0)
        # [e, f], the model's own orbit first.
        self._orbits = model.cameras.orbit(
            elevation=np.concatenate([[model.cameras.elevation], elevations])
        )
        sizes = dataclasses.replace(model.reconstructor, dtype=config.compute_dtype)
        self.networks = Networks(
            lambda rngs: {"reconstructor": Reconstructor(sizes, rngs=rngs)}
        )
        self.initial = pool.given(start, self.networks, ["reconstructor"])
        self._frozen, frozen = Networks.split(
            {n: getattr(start, n) for n in ("vae", "unet", "text_encoder")}
        )
        length = start.config.text_encoder.length
        objects = pool.descriptions(config)
        self.constants = {
            "frozen": frozen,
            "pool": pool.encoded(objects, start.vae, tokenizer, length, model.cameras),
        }
        if config.lpips:
            metric = {"lpips": lpips.read(config.lpips, config.compute_dtype)}
            self._metric, self.constants["lpips"] = Networks.split(metric)
        self._show = jax.jit(self._shown)

    def loss(
        self, networks: dict[str, Any], constants: Any, index: Array, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        key_views, key_orbit, key_network, key_background = jax.random.split(key, 4)
        inputs, others = self._choose_views(key_views)
        views = jnp.concatenate([inputs, others])
        corrupted = round(self._config.corrupted_inputs * len(index))
        cameras = self._choose_orbits(key_orbit, len(index), corrupted)
        canonical, _ = canonical_frame(cameras)
        objects = constants["pool"]
        scenes = jax.tree.map(lambda x: x[index], objects.scenes)
        grey = self._model.cameras.background
        rgb, alpha = synthetic.render_orbit(scenes, cameras[views], grey)

        seen = rgb[:, :INPUTS]
        if corrupted:
            guess = self._guess(constants, index[:corrupted], inputs, key_network)
            seen = jnp.concatenate([guess, seen[corrupted:]])
        gaussians = networks["reconstructor"](seen, plucker_rays(canonical[inputs]))
        background = jax.random.uniform(key_background, (3,))
        renders = render(gaussians, canonical[views], background=background)
        shift = (background - grey).reshape(1, 1, 1, 1, 3)
        wanted = rgb + (1 - alpha[..., None]) * shift
        color = jnp.square(renders.rgb - wanted).mean()
        loss = color + jnp.square(renders.alpha - alpha).mean()
        metrics = {
            "psnr": -10 * jnp.log10(color),
            "overflow": renders.overflow.sum().astype(jnp.float32),
        }
        if self._config.lpips:
            metric: Any = self._metric.merge(constants["lpips"])
            metrics["lpips"] = perceptual(metric["lpips"], renders.rgb, wanted)
            loss += self._config.lpips_weight * metrics["lpips"]
        return loss, metrics

    def _choose_views(self, key: PRNGKey) -> tuple[Array, Array]:
        """Numbers of the input views and of the other supervised ones."""
        count = len(self._cameras.intrinsics)
        key_even, key_first, key_inputs, key_others = jax.random.split(key, 4)
        first = jax.random.randint(key_first, (), 0, count)
        even = (first + jnp.arange(INPUTS) * (count // INPUTS)) % count
        mixed = jax.random.permutation(key_inputs, count)[:INPUTS]
        chosen = jax.random.bernoulli(key_even, self._config.even_inputs)
        others = jax.random.permutation(key_others, count)
        return jnp.where(chosen, even, mixed), others[: self._config.supervised_views]

    def _choose_orbits(self, key: PRNGKey, count: int, corrupted: int) -> Cameras:
        """Cameras `[count, f]`, the first `corrupted` of the model's own orbit."""
        orbits = len(self._orbits.intrinsics)
        chosen = jax.random.randint(key, (count,), min(1, orbits - 1), orbits)
        chosen = jnp.where(jnp.arange(count) < corrupted, 0, chosen)
        return jax.tree.map(lambda x: x[chosen], self._orbits)

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
        camera = unet_condition(self._cameras)
        context = frozen["text_encoder"](constants["pool"].tokens[index])
        output = frozen["unet"](
            noised, t, context, jnp.broadcast_to(camera[None], (b, *camera.shape))
        )
        clean = process.to_x0(self._schedule, self._model.prediction, noised, output, t)
        return frozen["vae"].decode(clean[:, views]).clip(0, 1)

    def _shown(self, params: Params, constants: Any) -> tuple[Array, Renders]:
        count = len(self._cameras.intrinsics)
        inputs = jnp.arange(INPUTS) * (count // INPUTS)
        between = inputs + count // INPUTS // 2
        scenes = jax.tree.map(lambda x: x[:4], constants["pool"].scenes)
        grey = self._model.cameras.background
        rgb, _ = synthetic.render_orbit(scenes, self._cameras, grey)
        canonical, _ = canonical_frame(self._cameras)
        rays = plucker_rays(canonical[inputs])
        rays = jnp.broadcast_to(rays, (len(rgb), *rays.shape))
        gaussians = self.networks.merge(params)["reconstructor"](rgb[:, inputs], rays)
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


def perceptual(
    metric: LPIPS, images: Float[Array, "b f h w 3"], truth: Float[Array, "b f h w 3"]
) -> Float[Array, ""]:
    """Mean LPIPS of images in [0, 1], at the size at which LGM compares them."""

    def resized(x):
        shape = (*x.shape[:2], PERCEPTUAL_SIZE, PERCEPTUAL_SIZE, 3)
        return jax.image.resize(x, shape, "bilinear", antialias=False)

    return metric(resized(images), resized(truth)).mean()
