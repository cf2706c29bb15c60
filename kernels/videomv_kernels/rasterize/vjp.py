"""The differentiable core that every backend shares: splats to images.

A backend only offers a forward and a backward function of arrays whose first axis is
the views, or the scenes, of everything at once (`Backend`). Their custom derivative,
the rule that folds `vmap` into the views instead of mapping a kernel, and the choice by
platform live here once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize.compat import require_platform
from videomv_kernels.rasterize.config import RasterConfig, Unsupported
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
    splats: Splats, bounds: Bounds, plan, backend: Backend
) -> tuple[Float[Array, "g h w c"], Int[Array, "g"]]:
    """Sort and blend g views.

    Args:
        splats, bounds: see there.
        plan: what `backend.plan` returned.
        backend: who does it.

    Returns:
        Images with colours, depth and alpha as channels, and the number of pairs that
        found no room in each view.
    """
    return _splat(splats, bounds, plan, backend)


# Traced once for each shape and plan, however many programs use them.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_forward(backend: Backend, plan, splats, bounds):
    return backend.forward(splats, bounds, plan)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_backward(backend: Backend, plan, saved, grad):
    return backend.backward(saved, grad, plan)


def _splat_forward(splats, bounds, plan, backend: Backend):
    @_fold_vmap
    def run(splats, bounds):
        return _run_forward(backend, plan, splats, bounds)

    images, overflow, saved = run(splats, bounds)
    return (images, overflow), (saved, bounds)


def _splat_backward(plan, backend: Backend, residuals, grads):
    @_fold_vmap
    def run(saved, grad):
        return _run_backward(backend, plan, saved, grad)

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


def only_on(backend: Backend, name: str, *platforms: str) -> Backend:
    """The backend, with an error where it is lowered for another platform."""

    def forward(splats, bounds, plan):
        depth = require_platform(splats.depth, name, platforms)
        return backend.forward(splats._replace(depth=depth), bounds, plan)

    return dataclasses.replace(backend, forward=forward)


def by_platform(backends: dict[str, Backend], default: Backend) -> Backend:
    """The backend of the platform it is lowered for.

    Args:
        backends: by JAX's names of platforms. One that does not support a config is
            left out for it.
        default: for all other platforms; supports everything.
    """

    def choose(config, *sizes):
        plans: list[tuple[str | None, Any]] = [(None, default.plan(config, *sizes))]
        for platform, backend in backends.items():
            try:
                plans.append((platform, backend.plan(config, *sizes)))
            except Unsupported:
                continue
        return tuple(plans)

    def dispatch(branches, *args):
        platforms = {k: f for k, f in branches.items() if k is not None}
        return lax.platform_dependent(*args, default=branches[None], **platforms)

    def forward(splats, bounds, plans):
        runs = {}
        for platform, plan in plans:
            backend = backends[platform] if platform else default
            runs[platform] = functools.partial(_run_forward, backend, plan)
        # What one platform saves is zero elsewhere, where nothing reads it.
        shapes = [jax.eval_shape(run, splats, bounds)[2] for run in runs.values()]

        def branch(place, run):
            def filled(splats, bounds):
                images, overflow, own = run(splats, bounds)
                saved = [_zeros(shape, overflow) for shape in shapes]
                saved[place] = own
                return images, overflow, saved

            return filled

        branches = {k: branch(i, run) for i, (k, run) in enumerate(runs.items())}
        return dispatch(branches, splats, bounds)

    def backward(saved, grad, plans):
        def branch(place, backend, plan):
            return lambda saved, grad: _run_backward(backend, plan, saved[place], grad)

        branches = {
            platform: branch(i, backends[platform] if platform else default, plan)
            for i, (platform, plan) in enumerate(plans)
        }
        return dispatch(branches, saved, grad)

    return Backend(choose, forward, backward)


def _zeros(shapes, like):
    """Zeros which vary over the mesh axes that `like` varies over."""
    zero = like.reshape(-1)[0] * 0
    return jax.tree.map(
        lambda x: jnp.broadcast_to(zero.astype(x.dtype), x.shape), shapes
    )
