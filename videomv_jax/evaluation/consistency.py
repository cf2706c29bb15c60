"""Do 24 views show one object? Fit Gaussians to half of them, look from the rest.

The fit is plain gradient descent on Gaussians, not the reconstructor: 3D-aware
sampling uses the latter, so it must not be its own judge.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from videomv_jax.evaluation.metrics import psnr
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import render
from videomv_jax.types import PRNGKey

_RATES = {"means": 4e-3, "quats": 1e-2, "scales": 1e-2, "opacities": 5e-2}
_RATES |= {"colors": 3e-2}


@functools.partial(jax.jit, static_argnames=("count", "iterations", "views_a_step"))
def fit(
    images: Float[Array, "b f h w 3"],
    cameras: Cameras,
    background: float | Float[Array, ""],
    key: PRNGKey,
    *,
    count: int = 4096,
    iterations: int = 400,
    views_a_step: int = 4,
    alpha: Float[Array, "b f h w"] | None = None,
    thinning: float = 0.0,
    start: Gaussians | None = None,
) -> Gaussians:
    """Gaussians whose renders match images, by Adam on the squared error.

    Args:
        images: views of b objects that fill the ball of radius 0.65.
        cameras: of the views, `[f, ...]`, shared by the objects.
        background: grey behind the objects.
        key: of the starting positions and of the views drawn at each iteration.
        count: Gaussians per object.
        iterations: Adam steps; the rates fall to a tenth along a cosine.
        views_a_step: views compared at each.
        alpha: coverage of the images, compared like a fourth colour; None: it is not.
            Without it, what has the background's grey may stand anywhere before it.
        thinning: cost of a Gaussian's opacity, in squared error. Above 0, what no view
            asks for goes, also where none of them looks.
        start: `[b, count]` to go on from; None: many faint ones all over the ball.

    Returns:
        Gaussians `[b, count]` in the cameras' frame.
    """
    b, f = images.shape[:2]
    key_start, key_views = jax.random.split(key)
    raw = _start(key_start, b, count) if start is None else _raw(start)
    schedule = optax.cosine_decay_schedule(1.0, iterations, 0.1)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))

    def loss(raw, views):
        renders = render(_activate(raw), cameras[views], background=background)
        error = jnp.square(renders.rgb - images[:, views]).sum()
        if alpha is not None:
            error += jnp.square(renders.alpha - alpha[:, views]).sum()
        return error + thinning * jax.nn.sigmoid(raw["opacities"]).sum()

    def body(i, carry):
        raw, state = carry
        order = jax.random.permutation(jax.random.fold_in(key_views, i), f)
        gradients = jax.grad(loss)(raw, order[:views_a_step])
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to ints
            updates, state = optimizer.update(gradients, state)
        raw = jax.tree.map(lambda x, rate, u: x - rate * u, raw, _RATES, updates)
        return raw, state

    raw, _ = jax.lax.fori_loop(0, iterations, body, (raw, optimizer.init(raw)))
    return _activate(raw)


def self_consistency(
    images: Float[Array, "b f h w 3"],
    cameras: Cameras,
    background: float,
    key: PRNGKey,
    **options,
) -> Float[Array, "b"]:
    """PSNR in dB on the odd views of Gaussians fitted to the even ones.

    Args:
        images, cameras, background: all views of the orbit.
        key: of the fit.
        options: of `fit`.
    """
    gaussians = fit(images[:, ::2], cameras[::2], background, key, **options)
    renders = render(gaussians, cameras[1::2], background=background)
    return psnr(renders.rgb, images[:, 1::2]).mean(1)


def _start(key: PRNGKey, b: int, count: int) -> dict[str, Array]:
    directions, radii = jax.random.split(key)
    means = jax.random.normal(directions, (b, count, 3))
    means /= jnp.linalg.norm(means, axis=-1, keepdims=True)
    means *= 0.65 * jax.random.uniform(radii, (b, count, 1)) ** (1 / 3)
    return {
        "means": means,
        "quats": jnp.broadcast_to(jnp.asarray([1.0, 0, 0, 0]), (b, count, 4)),
        "scales": jnp.full((b, count, 3), jnp.log(0.03)),
        "opacities": jnp.full((b, count), -2.0),
        "colors": jnp.zeros((b, count, 3)),
    }


def _raw(gaussians: Gaussians) -> dict[str, Array]:
    """What `_activate` makes these of; shares stay off 0 and 1."""
    return {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": jnp.log(gaussians.scales),
        "opacities": jax.scipy.special.logit(
            jnp.clip(gaussians.opacities, 1e-4, 0.9999)
        ),
        "colors": jax.scipy.special.logit(jnp.clip(gaussians.colors, 1e-3, 0.999)),
    }


def _activate(raw: dict[str, Array]) -> Gaussians:
    norms = jnp.linalg.norm(raw["quats"], axis=-1, keepdims=True)
    return Gaussians(
        raw["means"],
        raw["quats"] / norms,
        jnp.exp(raw["scales"]),
        jax.nn.sigmoid(raw["opacities"]),
        jax.nn.sigmoid(raw["colors"]),
    )
