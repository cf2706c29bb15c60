"""Gaussians and cameras to images: the only caller of the kernels."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from videomv_kernels.rasterize import ORIGINAL, RasterConfig, rasterize

from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.gaussians import Gaussians

__all__ = ["ORIGINAL", "RasterConfig", "Renders", "render"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Renders:
    """What the cameras see.

    Attributes:
        rgb: colours over the background, not clipped.
        alpha: coverage in [0, 1].
        depth: expected depth: distance along the optical axis, weighted like the
            colours, over nothing. Divide by alpha for the mean of what is covered.
        overflow: (Gaussian, tile) pairs the rasterizer had no room for, all views
            together; 0 when all is well. Farther Gaussians are missing otherwise.
    """

    rgb: Float[Array, "*b f h w 3"]
    alpha: Float[Array, "*b f h w"]
    depth: Float[Array, "*b f h w"]
    overflow: Int[Array, "*b"]


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: ArrayLike | None = None,
    config: RasterConfig | None = None,
    implementation: str | None = None,
) -> Renders:
    """Render every scene from its cameras. Differentiable in all arrays.

    Args:
        gaussians: `[*b, n]`, in the frame of the cameras.
        cameras: `[*b, f]`, or `[f]` for the same ones in every scene.
        background: what is behind: None (black), a grey, `[3]`, or a colour for each
            view, `[*b, f, 3]`.
        config: settings of the rasterizer, None for its defaults.
        implementation: the rasterizer's backend, None for the best of the device.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    batch = gaussians.means.shape[:-2]
    matrices = (cameras.world_to_camera, cameras.intrinsics)
    if cameras.intrinsics.ndim == 2:
        matrices = (jnp.broadcast_to(x, (*batch, *x.shape)) for x in matrices)
    world_to_camera, intrinsics = matrices
    rgb, alpha, depth, overflow = rasterize(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors,
        world_to_camera,
        intrinsics,
        height=cameras.height,
        width=cameras.width,
        background=background,
        config=config,
        implementation=implementation,
    )
    return Renders(rgb, alpha, depth, overflow)
