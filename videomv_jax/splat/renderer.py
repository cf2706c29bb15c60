"""Gaussians and cameras to images: the only caller of the kernels."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from videomv_kernels.rasterize import ORIGINAL, RasterConfig, RasterOutput, rasterize

from videomv_jax.sharding import BATCH_AXES, VIEW_AXIS, ambient_axes
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

    Under `jax.set_mesh`, scenes are split over the mesh axes data and fsdp, and views
    over view.

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
    batch, views = gaussians.means.shape[:-2], cameras.intrinsics.shape[-2]
    matrices = (cameras.world_to_camera, cameras.intrinsics)
    if cameras.intrinsics.ndim == 2:
        matrices = tuple(jnp.broadcast_to(x, (*batch, *x.shape)) for x in matrices)
    if background is not None:
        background = jnp.asarray(background, jnp.float32)
        shape = (*batch, views, gaussians.colors.shape[-1])
        missing = (1,) * (len(shape) - background.ndim)
        background = background.reshape(missing + background.shape)
        background = jnp.broadcast_to(background, shape)
    draw = functools.partial(
        rasterize,
        height=cameras.height,
        width=cameras.width,
        config=config,
        implementation=implementation,
    )
    scene = (
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors,
    )
    rgb, alpha, depth, overflow = _over_mesh(draw, scene, (*matrices, background))
    return Renders(rgb, alpha, depth, overflow)


def _over_mesh(draw, scene, seen):
    """Call `draw`, every device of the ambient mesh with scenes and views of its own.

    The kernels cannot be split by the compiler. What a mesh axis does not divide is
    drawn by all of its devices.

    Args:
        scene: arrays that lead with scenes.
        seen: matrices, intrinsics and background, with scenes and then views.
    """

    def run(scene, seen):
        *matrices, background = seen
        return draw(*scene, *matrices, background=background)

    axes, batch = ambient_axes(), scene[0].shape[:-2]
    over = tuple(name for name in BATCH_AXES if name in axes)
    if not batch or batch[0] % math.prod(axes[name] for name in over):
        over = ()
    split_views = seen[1].shape[-2] % axes.get(VIEW_AXIS, 1) == 0
    across = VIEW_AXIS if VIEW_AXIS in axes and split_views else None
    if not axes:
        return run(scene, seen)
    lead = P(over or None, *[None] * (len(batch) - 1)) if batch else P()
    by_view = P(*lead, across)

    def local(scene, seen):
        out = run(scene, seen)
        if across is not None:
            out = out._replace(overflow=jax.lax.psum(out.overflow, across))
        return tuple(out)

    out_specs = (by_view, by_view, by_view, lead)
    mapped = jax.shard_map(local, in_specs=(lead, by_view), out_specs=out_specs)
    return RasterOutput(*mapped(scene, seen))
