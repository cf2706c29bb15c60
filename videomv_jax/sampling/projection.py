"""The 3D projection of sampling: views that disagree become views of one object.

The denoising loop calls it as a plain function of x0 and hears nothing of Gaussians.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_jax.models.reconstructor import Reconstructor
from videomv_jax.models.vae import VAE
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.conventions import canonical_frame, plucker_rays
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import ORIGINAL, render
from videomv_jax.types import InputError, Latents, PRNGKey


@dataclasses.dataclass(frozen=True)
class SplatProjection:
    """Decode some views, reconstruct Gaussians, render all views, encode them.

    A `Project` of the denoising loop (VideoMV, arXiv 2403.12010, section 3.3): x0 is
    replaced wholly. With a key the latents are drawn from the posterior of the
    renders, as in the original; without, they are its mean.

    Attributes:
        vae, reconstructor: the networks.
        cameras: of the f views, shared by the batch.
        views: which of them the reconstructor sees.
        background: grey behind the renders; the original takes 0.5 (0.7 for
            image-to-views).
        oversampling: renders have this many times the height and width of the
            views, and every such row and column is kept. The original takes 2.
        variant: of the reconstructor's frame, see `canonical_frame`; "released"
            repeats the cameras of the original's inference scripts.
        original: rasterize as the original does, which cuts Gaussians off where the
            tiles within three standard deviations end.
        chunk: images the decoder and encoder hold in memory at a time, None for all.
    """

    vae: VAE
    reconstructor: Reconstructor
    cameras: Cameras
    views: tuple[int, ...] = (0, 6, 12, 18)
    background: float = 0.5
    oversampling: int = 1
    variant: Literal["consistent", "released"] = "consistent"
    original: bool = False
    chunk: int | None = None

    def __post_init__(self):
        shape = self.cameras.intrinsics.shape
        if len(shape) != 2:
            raise InputError(f"cameras: got a batch {shape[:-2]}, want one orbit")
        if not all(0 <= view < shape[0] for view in self.views):
            raise InputError(f"views: got {self.views}, want 0 to {shape[0] - 1}")
        if self.oversampling < 1:
            raise InputError(f"oversampling: got {self.oversampling}, want at least 1")

    def __call__(
        self, x0: Latents, key: PRNGKey | None = None
    ) -> tuple[Latents, Float[Array, ""]]:
        """Project.

        Args:
            x0: clean latents of all f views.
            key: draws from the encoder's posterior.

        Returns:
            Latents of one object's views, and how much the renderer had to drop
            (rounded from 16 million on).

        Raises:
            InputError: x0 has another number of views than the cameras.
        """
        gaussians, cameras, _ = self._reconstruct(x0)
        k = self.oversampling
        large = cameras.resize(k * cameras.height, k * cameras.width)
        renders = render(
            gaussians,
            large,
            background=self.background,
            config=ORIGINAL if self.original else None,
        )
        images = renders.rgb[:, :, ::k, ::k].clip(0, 1)
        latents = self.vae.encode(images, key, chunk=self.chunk)
        return latents, renders.overflow.sum(dtype=jnp.float32)

    def gaussians(self, x0: Latents) -> Gaussians:
        """The Gaussians of x0 `[b, n, ...]`, in the world frame of the cameras.

        Raises:
            InputError: x0 has another number of views than the cameras.
        """
        gaussians, _, world_from_canonical = self._reconstruct(x0)
        return gaussians.transform(world_from_canonical)

    def _reconstruct(
        self, x0: Latents
    ) -> tuple[Gaussians, Cameras, Float[Array, "4 4"]]:
        """Gaussians in the canonical frame, all cameras there, the way back."""
        count = len(self.cameras.intrinsics)
        if x0.shape[1] != count:
            raise InputError(
                f"x0: got {x0.shape}, want {count} views, one for each camera"
            )
        views = jnp.asarray(self.views)
        images = self.vae.decode(x0[:, views], chunk=self.chunk).clip(0, 1)
        cameras, world_from_canonical = canonical_frame(
            self.cameras.resize(*images.shape[2:4]), self.variant
        )
        rays = plucker_rays(cameras[views])
        rays = jnp.broadcast_to(rays[None], (len(x0), *rays.shape))
        return self.reconstructor(images, rays), cameras, world_from_canonical
