"""The differentiable core that every backend shares: rows of Gaussians to tiles.

A backend only has to offer three functions of arrays whose first axis is the views of
all scenes (`Backend`). Their custom derivative, and the rule that folds `vmap` into the
views instead of mapping a kernel, live here once.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from videomv_kernels.rasterize.binning import Bins
from videomv_kernels.rasterize.config import Plan


@dataclasses.dataclass(frozen=True)
class Backend:
    """How a device sorts and blends.

    Attributes:
        tile, chunk: sizes used where the config leaves them open.
        bin: `(table, boxes, plan) -> Bins`.
        forward: `(table, bins, plan) -> [g, tiles, c + 2, P]`.
        backward: `(table, bins, out, grad, plan) -> [g, n, f]`, gradient of the table.
    """

    tile: tuple[int, int]
    chunk: int
    bin: Callable[..., Bins]
    forward: Callable[..., jax.Array]
    backward: Callable[..., jax.Array]


def splat(
    table: Float[Array, "g n f"],
    boxes: Int[Array, "g n 4"],
    plan: Plan,
    backend: Backend,
) -> tuple[Float[Array, "g tiles c p"], Int[Array, "g"]]:
    """Sort and blend g views.

    Args:
        table: per Gaussian x, y of the mean, a, b, c of the conic, logarithm of the
            opacity, depth, then the colours. All finite.
        boxes: tiles each Gaussian may touch, see `binning.tile_boxes`.

    Returns:
        Colours, depth and alpha (the channels) at the pixels of each tile, and the
        number of pairs that found no room.
    """
    return _splat(table, boxes, plan, backend)


def _splat_forward(table, boxes, plan: Plan, backend: Backend):
    @_fold_vmap
    def run(table, boxes):
        bins = backend.bin(table, boxes, plan)
        return bins, backend.forward(table, bins, plan)

    bins, out = run(table, boxes)
    return (out, bins.overflow), (table, bins, out)


def _splat_backward(plan: Plan, backend: Backend, saved, grads):
    @_fold_vmap
    def run(table, bins, out, grad):
        return backend.backward(table, bins, out, grad, plan)

    table, bins, out = saved
    boxes_grad = np.zeros((*table.shape[:2], 4), jax.dtypes.float0)
    return run(table, bins, out, grads[0]), boxes_grad


def _splat_primal(table, boxes, plan: Plan, backend: Backend):
    return _splat_forward(table, boxes, plan, backend)[0]


_splat = jax.custom_vjp(_splat_primal, nondiff_argnums=(2, 3))
_splat.defvjp(_splat_forward, _splat_backward)


def _fold_vmap(function):
    """Under `vmap`, join the mapped axis with the leading axis of every array.

    For functions of pytrees whose arrays, in and out, all lead with the views.
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
