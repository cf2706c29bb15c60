"""One update of any stage: a pure function, jitted once, its state donated."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from videomv_jax.training.config import TrainConfig
from videomv_jax.training.learning_rate import cosine
from videomv_jax.training.state import Networks, Params, TrainState, apply_gradients
from videomv_jax.types import PRNGKey

Batch = Any
Metrics = dict[str, Array]


class Task(Protocol):
    """What one stage trains, on what, and how it shows itself.

    Attributes:
        networks: the trained networks.
        initial: given initial values of some of their parameters.
        constants: arrays every step reads and none changes: frozen networks' state,
            the pool of objects. Passed to the step, so never baked into it.
    """

    networks: Networks
    initial: Params
    constants: Any

    def loss(
        self,
        networks: dict[str, nnx.Module],
        constants: Any,
        index: Array,
        key: PRNGKey,
    ) -> tuple[Array, Metrics]:
        """Mean loss over the objects `index [b]` of the pool, and scalars to log."""
        ...

    def sheet(self, params: Params, constants: Any) -> np.ndarray:
        """A picture `[h, w, 3]` in [0, 1] that shows how far training is."""
        ...

    def export(self, params: Params, constants: Any, folder: str) -> None:
        """Write a model folder with the trained networks in it."""
        ...


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping; linear warm-up, cosine to 0 at the end."""
    rate = cosine(config.learning_rate, config.warmup_steps, config.steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay),
    )


def make_step(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[TrainState, Any, Array, PRNGKey], tuple[TrainState, Metrics]]:
    """The jitted update `(state, constants, index, key) -> (state, metrics)`.

    The key is the run's; the step number is folded in, so a resumed run draws the
    numbers the uninterrupted one would have drawn.
    """

    def step(state, constants, index, key):
        key = jax.random.fold_in(key, state.step)

        def loss(params):
            return task.loss(task.networks.merge(params), constants, index, key)

        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients), **metrics}
        return apply_gradients(state, gradients, optimizer, config.ema_decay), metrics

    return jax.jit(step, donate_argnums=0)
