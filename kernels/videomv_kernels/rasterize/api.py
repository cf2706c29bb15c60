"""The public entry point: checks, projection, dispatch, background."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize import gpu, reference, tpu
from videomv_kernels.rasterize.config import INT32_MAX, RasterConfig
from videomv_kernels.rasterize.project import project
from videomv_kernels.rasterize.splats import Splats, pixel_bounds
from videomv_kernels.rasterize.vjp import Backend, by_platform, only_on, splat

_XLA, _GPU, _TPU = (room.make_backend() for room in (reference, gpu, tpu))
BACKENDS: dict[str, Backend] = {
    "xla": _XLA,
    "gpu": only_on(_GPU, "gpu", "cuda"),
    "tpu": only_on(_TPU, "tpu", "tpu"),
}
_AUTOMATIC = by_platform({"cuda": _GPU, "tpu": _TPU}, _XLA)
MAX_CHANNELS = 32


class RasterOutput(NamedTuple):
    """What `rasterize` returns.

    Attributes:
        rgb: colours over the background.
        alpha: what the Gaussians cover of a pixel.
        depth: view depths blended like a colour over zero: divide by alpha for a mean.
        overflow: (Gaussian, tile) pairs dropped for lack of room, summed over the
            views; 0 when all is well.
    """

    rgb: Float[Array, "*b v h w c"]
    alpha: Float[Array, "*b v h w"]
    depth: Float[Array, "*b v h w"]
    overflow: Int[Array, "*b"]


def rasterize(
    means: Float[Array, "*b n 3"],
    quats: Float[Array, "*b n 4"],
    scales: Float[Array, "*b n 3"],
    opacities: Float[Array, "*b n"],
    colors: Float[Array, "*b n c"],
    world_to_camera: Float[Array, "*b v 4 4"],
    intrinsics: Float[Array, "*b v 4"],
    *,
    height: int,
    width: int,
    background: ArrayLike | None = None,
    config: RasterConfig | None = None,
    implementation: str | None = None,
) -> RasterOutput:
    """Render 3D Gaussians into every view of every scene.

    Differentiable in all arrays, the cameras included; works under `jit`, `vmap`
    (which joins the views), `grad`, `jax.checkpoint` and `shard_map`. Gaussians and
    cameras with a number that is not finite are left out without counting as overflow,
    and take no gradient. Everything is computed in float32.

    Args:
        means: centres in the world.
        quats: rotations (w, x, y, z), used as given: like the original, this does not
            normalise them, and a quaternion of another length shears the Gaussian.
        scales: standard deviations along the rotated axes, world units.
        opacities: opacity at the centre.
        colors: up to 32 channels of anything.
        world_to_camera: rigid transforms to OpenCV axes (x right, y down, z forward).
        intrinsics: fx, fy, cx, cy in pixels, pixel centres at +0.5.
        height, width: image size.
        background: what is behind: None (zeros), a scalar, `[c]`, or one colour per
            view, `[v, c]` or `[*b, v, c]`.
        config: settings; None for the defaults.
        implementation: "xla" (any device; the specification), "gpu" (CUDA) or "tpu".
            None: the platform's own where it supports the config, else "xla". A named
            one never falls back.

    Raises:
        ValueError: unknown implementation, one that does not support the config or,
            when it is lowered, the platform; sizes that do not fit together.
    """
    if implementation is not None and implementation not in BACKENDS:
        raise ValueError(
            f"implementation is {implementation!r}; choose from {sorted(BACKENDS)} "
            "or None"
        )
    backend = BACKENDS[implementation] if implementation else _AUTOMATIC
    arrays = dict(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        colors=colors,
        world_to_camera=world_to_camera,
        intrinsics=intrinsics,
    )
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    if background is not None:
        background = jnp.asarray(background, jnp.float32)
    _check(arrays, height, width, background)
    return render_with(
        backend,
        *arrays.values(),
        height=height,
        width=width,
        background=background,
        config=config or RasterConfig(),
    )


def render_with(
    backend: Backend,
    means,
    quats,
    scales,
    opacities,
    colors,
    world_to_camera,
    intrinsics,
    *,
    height: int,
    width: int,
    background,
    config: RasterConfig,
) -> RasterOutput:
    """`rasterize` with a backend in hand and checked float32 arrays."""
    batch, (n, channels) = means.shape[:-2], colors.shape[-2:]
    views, scenes = intrinsics.shape[-2], math.prod(batch)
    plan = backend.plan(config, views * scenes, n, height, width)
    # Computed again for the gradient: cheaper than to keep its intermediates.
    projected = jax.checkpoint(
        functools.partial(project, height=height, width=width, config=config)
    )(means, quats, scales, opacities, colors, world_to_camera, intrinsics)

    def plane(x):
        return x.reshape(-1, n)

    colors = jnp.where(jnp.isfinite(colors), colors, jnp.zeros_like(colors))
    # A zero that carries the mesh axes of the cameras, where shard_map splits them: the
    # colours' gradient varies over them until it is summed.
    colors = colors + 0.0 * lax.stop_gradient(projected.depth).reshape(-1)[0]
    splats = Splats(
        mean=tuple(map(plane, projected.mean)),
        conic=tuple(map(plane, projected.conic)),
        log_opacity=plane(jnp.log(projected.opacity)),
        depth=plane(projected.depth),
        colors=colors.reshape(scenes, n, channels),
    )
    bounds = jax.tree.map(plane, pixel_bounds(projected, config))
    images, overflow = splat(splats, bounds, plan, backend)
    images = images.reshape(*batch, views, height, width, channels + 2)
    rgb, depth, alpha = images[..., :-2], images[..., -2], images[..., -1]
    if background is not None:
        missing = len(batch) + 2 - background.ndim
        behind = background.reshape((1,) * missing + background.shape)
        behind = jnp.broadcast_to(behind, (*batch, views, channels))
        rgb = rgb + (1 - alpha[..., None]) * behind[..., None, None, :]
    # Each view's share saturates, so that the sum cannot wrap around.
    overflow = overflow.reshape(*batch, views).clip(max=INT32_MAX // views).sum(-1)
    return RasterOutput(rgb, alpha, depth, overflow)


def _check(arrays: dict[str, jax.Array], height: int, width: int, background):
    """Raise ValueError where sizes do not fit together."""
    if height < 1 or width < 1:
        raise ValueError(f"image is {height} x {width} pixels; must be positive")
    means, cameras = arrays["means"], arrays["intrinsics"]
    if means.ndim < 2 or cameras.ndim < 2 or arrays["colors"].ndim < 2:
        raise ValueError(
            f"means {means.shape}, intrinsics {cameras.shape} and colors "
            f"{arrays['colors'].shape} must be [*b, n, 3], [*b, v, 4] and [*b, n, c]"
        )
    *batch, n, _ = means.shape
    views, channels = cameras.shape[-2], arrays["colors"].shape[-1]
    wanted = {
        "means": (*batch, n, 3),
        "quats": (*batch, n, 4),
        "scales": (*batch, n, 3),
        "opacities": (*batch, n),
        "colors": (*batch, n, channels),
        "world_to_camera": (*batch, views, 4, 4),
        "intrinsics": (*batch, views, 4),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, wanted {shape}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"colors has {channels} channels, wanted 1 to {MAX_CHANNELS}")
    if n < 1 or views < 1:
        raise ValueError(f"got {n} Gaussians and {views} views, wanted at least one")
    if background is not None:
        wanted_shape = (*batch, views, channels)
        fits = background.ndim <= len(wanted_shape) and all(
            a == b
            for a, b in zip(
                reversed(background.shape), reversed(wanted_shape), strict=False
            )
        )
        if not fits:
            raise ValueError(
                f"background has shape {background.shape}, wanted a scalar or the last "
                f"axes of {wanted_shape}"
            )
