"""One update of any stage: a pure function, jitted once, its state donated."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from videomv_jax import compat, sharding
from videomv_jax.models import rounding
from videomv_jax.training import parts
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.feed import Batch, Feed
from videomv_jax.training.learning_rate import cosine
from videomv_jax.training.state import (
    Networks,
    Params,
    TrainState,
    apply_gradients,
    in_place,
)
from videomv_jax.types import PRNGKey

Metrics = dict[str, Array]
BROKEN = "broken"
"""The metric that says at which step, if any, the loss stopped being finite."""


class Task(Protocol):
    """What one stage trains, on what, and how it shows itself.

    Attributes:
        networks: the trained networks.
        initial: given initial values of some of their parameters.
        constants: arrays every step reads and none changes: frozen networks' state,
            the pool of objects. Passed to the step, so never baked into it.
        feed: what a step is given of its objects.
    """

    networks: Networks
    initial: Params
    constants: Any
    feed: Feed

    def loss(
        self,
        networks: dict[str, nnx.Module],
        constants: Any,
        batch: Batch,
        key: PRNGKey,
    ) -> tuple[Array, Metrics]:
        """Mean loss over the objects of a batch of `feed`, and scalars to log."""
        ...

    def placements(self, mesh: Mesh) -> Any:
        """Where the constants lie: a tree like theirs, or of its first levels."""
        ...

    def sheet(self, params: Params, constants: Any) -> np.ndarray:
        """A picture `[h, w, 3]` in [0, 1] that shows how far training is."""
        ...

    def export(self, params: Params, constants: Any, folder: str) -> None:
        """Write a model folder with the trained networks in it."""
        ...


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW behind global-norm clipping; linear warm-up, cosine to 0 at the end.

    Its updates take the gradients' `norm`, which `make_step` logs too.
    """
    return optax.chain(
        _clip(config.clip_norm),
        optax.adamw(_rate(config), b2=config.beta2, weight_decay=config.weight_decay),
        parts.scale_by_part(config.rate_spatial, config.rate_text),
    )


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, given the norm."""

    def update(updates, state, params=None, **extra):
        norm = extra["norm"]
        factor = jnp.where(norm < limit, 1, limit / norm)
        wide = {x.shape: factor for x in updates.values()}
        if compat.has_cuda() and not sharding.splits_parameters():
            for shape in wide:
                if math.prod(shape) <= rounding.SMALL:
                    wide[shape] = rounding.in_common(factor, shape)
        return {name: u * wide[u.shape] for name, u in updates.items()}, state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def global_norm(gradients: Params) -> Array:
    """`optax.tree.norm`, with one sum for all gradients of one shape.

    Squares of some dozens of them are added up by one kernel, where a sum each would be
    two kernels each, and most are small. A mesh that splits parameters may split those
    of one shape differently, so there each has its own.
    """
    if sharding.splits_parameters():
        return optax.tree.norm(gradients)
    squares: dict[tuple[int, ...], Array] = {}
    for x in gradients.values():
        square = jnp.square(x)
        squares[x.shape] = squares[x.shape] + square if x.shape in squares else square
    return jnp.sqrt(sum(x.sum() for x in squares.values()))


def _rate(config: TrainConfig) -> optax.Schedule:
    return cosine(config.learning_rate, config.warmup_steps, config.steps)


def make_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
) -> Callable[[TrainState, Any, Batch, PRNGKey], tuple[TrainState, Metrics]]:
    """The jitted update `(state, constants, batch, key) -> (state, metrics)`.

    The key is the run's; the step number is folded in, so a resumed run draws the
    numbers the uninterrupted one would have drawn. Make it, and trace it, under
    `jax.set_mesh`.
    """

    def step(state, constants, batch, key):
        key = jax.random.fold_in(key, state.step)

        def loss(params, batch, key):
            networks = task.networks.merge(parts.merge(params, state.frozen))
            for network in networks.values():
                # Once a step: not again where the backward pass recomputes a layer.
                rounding.cast_weights(network)
            return task.loss(networks, constants, batch, key)

        gradient = jax.value_and_grad(loss, has_aux=True)
        if config.accumulate > 1:
            gradient = _accumulated(gradient, config.accumulate)
        (value, metrics), gradients = gradient(state.params, batch, key)
        norm = global_norm(gradients)
        updates = state.step - state.health.skipped
        own = {"grad_norm": norm, "learning_rate": _rate(config)(updates)}
        state = apply_gradients(state, value, norm, gradients, optimizer, config)
        state = in_place(state, task.networks, optimizer, config)
        metrics = {"loss": value, **own, **metrics}
        if config.spike_factor:
            metrics["skipped"] = state.health.skipped.astype(jnp.float32)
        return state, metrics | {BROKEN: state.health.broken}

    options = compat.compiler_options(several=bool(sharding.ambient_axes()))
    return jax.jit(step, donate_argnums=0, compiler_options=options)


def _accumulated(gradient: Callable, count: int) -> Callable:
    """Means of `gradient`'s results over parts of the batch, one after another.

    A part takes every `count`-th object, so that it lies on all devices as the batch
    does. Each part draws its own random numbers.
    """

    def run(params, batch, key):
        def add(total, part):
            piece = jax.tree.map(lambda x: sharding.constrain(x, "batch"), part[0])
            new = gradient(params, piece, part[1])
            return jax.tree.map(lambda t, n: t + n / count, total, new), None

        pieces = jax.tree.map(
            lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
        )
        keys = jax.random.split(key, count)
        first = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(gradient, params, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, (pieces, keys))[0]

    return run
