"""The differentiable core that every backend shares: splats to images.

A backend only offers a forward and a backward function of arrays whose first axis is
the views, or the scenes, of everything at once (`Backend`). Their custom derivative,
the rule that folds `vmap` into the views instead of mapping a kernel, and the choice by
platform live here once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize.config import Plan, RasterConfig, Unsupported
from videomv_kernels.rasterize.splats import Bounds, Splats


@dataclasses.dataclass(frozen=True)
class Backend:
    """How a device sorts and blends.

    Attributes:
        plan: `(config, views, n, height, width) -> Plan`, or anything hashable that
            the other two understand. Raises `Unsupported`.
        forward: `(splats, bounds, plan) -> (images [g, h, w, c + 2], overflow [g],
            saved)` with colours, depth and alpha as channels. Whatever is saved leads
            with views or scenes too.
        backward: `(saved, grad of the images, plan) -> Splats`, their gradient.
    """

    plan: Callable[[RasterConfig, int, int, int, int], Any]
    forward: Callable[..., tuple[jax.Array, jax.Array, Any]]
    backward: Callable[..., Splats]


def splat(
    splats: Splats, bounds: Bounds, plan: Plan, backend: Backend
) -> tuple[Float[Array, "g h w c"], Int[Array, "g"]]:
    """Sort and blend g views.

    Returns:
        Images with colours, depth and alpha as channels, and the number of pairs that
        found no room in each view.
    """
    return _splat(splats, bounds, plan, backend)


def _splat_forward(splats, bounds, plan, backend: Backend):
    @_fold_vmap
    def run(splats, bounds):
        return backend.forward(splats, bounds, plan)

    images, overflow, saved = run(splats, bounds)
    return (images, overflow), (saved, bounds)


def _splat_backward(plan, backend: Backend, residuals, grads):
    @_fold_vmap
    def run(saved, grad):
        return backend.backward(saved, grad, plan)

    saved, bounds = residuals
    none = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), bounds)
    return run(saved, grads[0]), none


def _splat_primal(splats, bounds, plan, backend: Backend):
    return _splat_forward(splats, bounds, plan, backend)[0]


_splat = jax.custom_vjp(_splat_primal, nondiff_argnums=(2, 3))
_splat.defvjp(_splat_forward, _splat_backward)


def _fold_vmap(function):
    """Under `vmap`, join the mapped axis with the leading axis of every array.

    For functions of pytrees whose arrays, in and out, all lead with views or scenes.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(size, in_batched, *args):
        def fold(x, batched):
            x = x if batched else jnp.broadcast_to(x[None], (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        def unfold(x):
            return x.reshape(size, -1, *x.shape[1:])

        out = mapped(*jax.tree.map(fold, args, tuple(in_batched)))
        return jax.tree.map(unfold, out), jax.tree.map(lambda _: True, out)

    return mapped


def by_platform(backends: dict[str, Backend], default: Backend) -> Backend:
    """The backend of the platform it is lowered for.

    Args:
        backends: by JAX's names of platforms. One that does not support a config is
            left out for it.
        default: for all other platforms; supports everything.
    """

    def plan(*args):
        plans = {}
        for platform, backend in backends.items():
            try:
                plans[platform] = backend.plan(*args)
            except Unsupported:
                continue
        return (*plans.items(), (None, default.plan(*args)))

    def choose(plans, function):
        """Keyword arguments of `platform_dependent`."""
        chosen = {
            platform: function(platform, backends[platform], plan)
            for platform, plan in plans[:-1]
        }
        return chosen, function(None, default, plans[-1][1])

    def forward(splats, bounds, plans):
        # What one platform saves is zero elsewhere, where nothing reads it.
        saved = {
            platform: jax.eval_shape(
                lambda *args, platform=platform, plan=plan: backends.get(
                    platform, default
                ).forward(*args, plan)[2],
                splats,
                bounds,
            )
            for platform, plan in plans
        }

        def branch(platform, backend, plan):
            def run(splats, bounds):
                images, overflow, own = backend.forward(splats, bounds, plan)
                everything = {
                    other: own if other == platform else _zeros(shapes, overflow)
                    for other, shapes in saved.items()
                }
                return images, overflow, list(everything.values())

            return run

        chosen, other = choose(plans, branch)
        return lax.platform_dependent(splats, bounds, **chosen, default=other)

    def backward(saved, grad, plans):
        place = {platform: i for i, (platform, _) in enumerate(plans)}

        def branch(platform, backend, plan):
            return lambda saved, grad: backend.backward(
                saved[place[platform]], grad, plan
            )

        chosen, other = choose(plans, branch)
        return lax.platform_dependent(saved, grad, **chosen, default=other)

    return Backend(plan, forward, backward)


def _zeros(shapes, like):
    """Zeros which vary over the mesh axes that `like` varies over."""
    zero = like.reshape(-1)[0] * 0
    return jax.tree.map(
        lambda x: jnp.broadcast_to(zero.astype(x.dtype), x.shape), shapes
    )
