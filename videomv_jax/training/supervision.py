"""What Gaussians are compared with while training: views of their object."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomv_jax.convert import lpips
from videomv_jax.data import synthetic
from videomv_jax.model_folder import ModelConfig
from videomv_jax.models.lpips import LPIPS
from videomv_jax.models.reconstructor import ReconstructorConfig
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.conventions import canonical_frame, plucker_rays
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import render
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.pool import Views
from videomv_jax.training.state import Networks
from videomv_jax.training.step import Metrics
from videomv_jax.types import InputError, PRNGKey

INPUTS = 4
# Side of the images that the perceptual term compares, as LGM resizes them.
PERCEPTUAL_SIZE = 256


class Supervision:
    """Draws views of an orbit, renders them and compares.

    Compared are the views that were reconstructed from and others drawn at random, on
    a random background: squared error of colour and alpha, and where the config names
    weights of LPIPS that distance too, as in LGM. Inputs are four different random
    views or, for a share of the steps, evenly spaced ones, as 3D-aware sampling hands
    over.

    Attributes:
        cameras: the orbit.
        constants: arrays that `compare` wants: weights of the metric.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig):
        self._config, self._background = config, model.cameras.background
        self.cameras = model.cameras.orbit()
        self._size = config.supervised_size or model.cameras.size
        if config.source and self._size > model.cameras.size:
            raise InputError(
                f"supervised_size: {self._size}; views of a source are read at "
                f"{model.cameras.size}, want that at most"
            )
        self.constants: dict[str, Any] = {}
        if config.lpips:
            metric = {"lpips": lpips.read(config.lpips, config.compute_dtype)}
            self._metric, self.constants["lpips"] = Networks.split(metric)

    def canonical(self, cameras: Cameras | None) -> Cameras:
        """Cameras in the frame in which Gaussians are reconstructed.

        Args:
            cameras: of each object, `[b, f]`; None: all have the orbit, `[f]`.
        """
        return canonical_frame(self.cameras if cameras is None else cameras)[0]

    def choose(self, key: PRNGKey) -> tuple[Int[Array, "4"], Int[Array, "v"]]:
        """Numbers of the input views, and of all supervised ones, inputs first."""
        count = len(self.cameras.intrinsics)
        key_even, key_first, key_inputs, key_others = jax.random.split(key, 4)
        first = jax.random.randint(key_first, (), 0, count)
        even = (first + jnp.arange(INPUTS) * (count // INPUTS)) % count
        mixed = jax.random.permutation(key_inputs, count)[:INPUTS]
        chosen = jax.random.bernoulli(key_even, self._config.even_inputs)
        others = jax.random.permutation(key_others, count)
        inputs = jnp.where(chosen, even, mixed)
        return inputs, jnp.concatenate(
            [inputs, others[: self._config.supervised_views]]
        )

    def truth(
        self, scenes: Any, cameras: Cameras | None, views: Int[Array, "v"]
    ) -> tuple[Float[Array, "b v h w 3"], Float[Array, "b v h w"]]:
        """Colours and alpha of the objects, at the size at which they are compared.

        Args:
            scenes: of the synthetic set, or `Views` of a source.
            cameras: as for `canonical`.
            views: numbers of the views.
        """
        if isinstance(scenes, Views):
            rgb, alpha = scenes.over(self._background, views)
            if rgb.shape[-2] == self._size:
                return rgb, alpha
            shape = (*alpha.shape[:2], self._size, self._size)
            return (
                jax.image.resize(rgb, (*shape, 3), "linear"),
                jax.image.resize(alpha, shape, "linear"),
            )
        seen = (cameras or self.cameras)[views].resize(self._size, self._size)
        return synthetic.render_orbit(scenes, seen, self._background)

    def inputs(
        self,
        scenes: Any,
        cameras: Cameras | None,
        views: Int[Array, "4"],
        truth: Float[Array, "b v h w 3"],
    ) -> Float[Array, "b 4 h w 3"]:
        """The input views as they are, which `truth` has if it is of their size."""
        if self._size == self.cameras.height:
            return truth[:, :INPUTS]
        if isinstance(scenes, Views):
            return scenes.over(self._background, views)[0]
        seen = (cameras or self.cameras)[views]
        return synthetic.render_orbit(scenes, seen, self._background)[0]

    def reconstruct(
        self,
        networks: dict[str, Any],
        images: Float[Array, "b 4 h w 3"],
        cameras: Cameras,
    ) -> Gaussians:
        """What the reconstructor makes of input views from canonical cameras."""
        rays = plucker_rays(cameras)
        rays = jnp.broadcast_to(rays, (len(images), *rays.shape[-4:]))
        return networks["reconstructor"](images, rays)

    def compare(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        truth: tuple[Float[Array, "b v h w 3"], Float[Array, "b v h w"]],
        constants: Any,
        key: PRNGKey,
    ) -> tuple[Float[Array, "b"], Metrics]:
        """The loss of each object, and scalars to log.

        Args:
            gaussians: in the canonical frame.
            cameras: of the views to compare, canonical.
            truth: see `truth`.
            constants: what `constants` holds.
            key: of the background.
        """
        rgb, alpha = truth
        background = jax.random.uniform(key, (3,))
        cameras = cameras.resize(self._size, self._size)
        renders = render(gaussians, cameras, background=background)
        shift = (background - self._background).reshape(1, 1, 1, 1, 3)
        wanted = rgb + (1 - alpha[..., None]) * shift
        color = jnp.square(renders.rgb - wanted).mean((1, 2, 3, 4))
        loss = color + jnp.square(renders.alpha - alpha).mean((1, 2, 3))
        metrics = {
            "psnr": -10 * jnp.log10(color.mean()),
            "overflow": renders.overflow.sum(dtype=jnp.float32),
        }
        if self._config.lpips:
            metric: Any = self._metric.merge(constants["lpips"])
            distance = perceptual(metric["lpips"], renders.rgb, wanted)
            metrics["lpips"] = distance.mean()
            loss += self._config.lpips_weight * distance
        return loss, metrics


def reconstructor_sizes(config: TrainConfig, model: ModelConfig) -> ReconstructorConfig:
    """Of the model's reconstructor, as the run computes it."""
    assert model.reconstructor is not None
    remat = "none" if config.remat == "none" else "block"
    return dataclasses.replace(
        model.reconstructor, dtype=config.compute_dtype, remat=remat
    )


def perceptual(
    metric: LPIPS, images: Float[Array, "b f h w 3"], truth: Float[Array, "b f h w 3"]
) -> Float[Array, "b"]:
    """Mean LPIPS of the views of objects, in [0, 1], at LGM's size."""

    def resized(x):
        shape = (*x.shape[:2], PERCEPTUAL_SIZE, PERCEPTUAL_SIZE, 3)
        return jax.image.resize(x, shape, "bilinear", antialias=False)

    return metric(resized(images), resized(truth)).mean(1)
