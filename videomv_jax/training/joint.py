"""UNet and reconstructor together: what is wrong in 3D teaches the UNet too."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_jax.diffusion import losses, process
from videomv_jax.model_folder import LoadedModel, ModelConfig
from videomv_jax.models.reconstructor import Reconstructor
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import render
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.diffusion import Denoised, DiffusionTask
from videomv_jax.training.feed import Batch
from videomv_jax.training.step import Metrics
from videomv_jax.training.supervision import Supervision, reconstructor_sizes
from videomv_jax.types import PRNGKey


class JointTask(DiffusionTask):
    """The denoising loss, and the reconstructor's on the UNet's own x0 behind it.

    For a share of the objects, `corrupted_inputs`, the UNet's x0 of four views is
    decoded and reconstructed, and the loss of the renders flows back through
    reconstructor and decoder into the UNet. It counts alpha^2 of the object's time, the
    share of signal in what the UNet saw: x0 = (x_t - sigma epsilon) / alpha would else
    carry the errors of noisy times as 1 / alpha^2. The reconstructor sees the other
    objects' views as they are.

    For a share of the first ones, `feedback`, all views are rendered and encoded,
    noised to a random earlier time and denoised towards the true latents: after a
    3D-aware step of sampling that is what the UNet goes on from. Nothing flows back
    from there into the renders; the error is that of x0, again times alpha^2.
    """

    _shows_views = True

    def __init__(self, config: TrainConfig, model: ModelConfig):
        super().__init__(config, model)
        self._supervision = Supervision(config, model)

    @classmethod
    def load(
        cls, config: TrainConfig, model: ModelConfig, start: LoadedModel, tokenizer
    ) -> "JointTask":
        """See `DiffusionTask.load`."""
        task: Any = super().load(config, model, start, tokenizer)
        task.constants |= task._supervision.constants
        return task

    def _builders(self) -> tuple[dict[str, Any], dict[str, Any]]:
        trained, frozen = super()._builders()
        sizes = reconstructor_sizes(self._config, self._model)
        trained["reconstructor"] = lambda rngs: Reconstructor(sizes, rngs=rngs)
        return trained, frozen

    def loss(
        self, networks: dict[str, Any], constants: Any, batch: Batch, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        """See `Task.loss`."""
        config, supervision = self._config, self._supervision
        keys = jax.random.split(key, 4)
        networks = self._frozen.merge(constants["frozen"]) | networks
        objects = self._objects(networks, constants, batch, keys[0])
        done = self._denoise(networks, constants, objects, keys[0])
        inputs, views = supervision.choose(keys[1])
        scenes, count = objects.scenes, len(done.x0)
        canonical = supervision.canonical(objects.cameras)
        truth = supervision.truth(scenes, objects.cameras, views)
        seen = supervision.inputs(scenes, objects.cameras, inputs, truth[0])
        guessed = round(config.corrupted_inputs * count)
        signal = jnp.square(jnp.asarray(self._schedule.alpha, jnp.float32))
        weights = jnp.ones(count)
        if guessed:
            x0 = self._x0(done)[:guessed, inputs]
            # The decoder's activations are the largest of the step.
            decode = jax.checkpoint(networks["vae"].decode)
            seen = jnp.concatenate([decode(x0).clip(0, 1), seen[guessed:]])
            weights = weights.at[:guessed].set(signal[done.t[:guessed]])
        gaussians = supervision.reconstruct(networks, seen, canonical[inputs])
        error, metrics = supervision.compare(
            gaussians, canonical[views], truth, constants, keys[2]
        )
        metrics |= {"loss_denoising": done.error.mean(), "loss_renders": error.mean()}
        loss = done.error.mean() + config.joint_weight * (weights * error).mean()
        if fed := round(config.feedback * count):
            again = self._denoise_renders(
                networks, done, gaussians, canonical, fed, keys[3]
            )
            metrics["loss_feedback"] = again.mean()
            loss += again.sum() / count
        return loss, self._metrics(done) | metrics

    def _x0(self, done: Denoised) -> Array:
        kind = self._model.prediction
        return process.to_x0(self._schedule, kind, done.noised, done.output, done.t)

    def _denoise_renders(
        self,
        networks: dict[str, Any],
        done: Denoised,
        gaussians: Gaussians,
        canonical: Cameras,
        count: int,
        key: PRNGKey,
    ) -> Float[Array, "k"]:
        """The weighted error of x0 from the noised renders of the first objects."""
        key_t, key_noise, key_network = jax.random.split(key, 3)
        gaussians, done = jax.tree.map(lambda x: x[:count], (gaussians, done))
        if canonical.intrinsics.ndim == 3:
            canonical = jax.tree.map(lambda x: x[:count], canonical)
        gaussians = jax.lax.stop_gradient(gaussians)
        grey = self._model.cameras.background
        images = render(gaussians, canonical, background=grey).rgb
        latents = networks["vae"].encode(images.clip(0, 1))
        earlier = jax.random.uniform(key_t, (count,)) * done.t.astype(jnp.float32)
        t = earlier.astype(jnp.int32)
        noise = process.sample_noise(key_noise, latents.shape)
        noised = process.add_noise(self._schedule, latents, noise, t)
        output = networks["unet"](noised, t, **done.told, key=key_network)
        again = done._replace(t=t, noised=noised, output=output)
        signal = jnp.square(jnp.asarray(self._schedule.alpha, jnp.float32))
        return losses.squared_error(self._x0(again), done.x0) * signal[t]
