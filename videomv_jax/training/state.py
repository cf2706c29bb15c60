"""Training state: parameters by name, their moving average and the optimizer.

Parameters live in flat dicts keyed "<network>.<path>", the names the exported
folder uses. Networks are put together from them inside the step, so the state
itself is plain arrays: sharded, donated, saved and averaged without special cases.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from videomv_jax import sharding
from videomv_jax.types import PRNGKey

Params = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds of the run.

    Attributes:
        step: number of updates made, int32 scalar.
        params: trained parameters, float32.
        ema: their exponential moving average.
        opt_state: state of the optimizer.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState


class Networks:
    """The structure of named networks, apart from their parameters."""

    def __init__(self, build: Callable[[nnx.Rngs], Mapping[str, nnx.Module]]):
        """Trace `build` without computing anything.

        Args:
            build: returns the networks by name when given random streams.
        """
        self._build = lambda rngs: nnx.Dict(dict(build(rngs)))
        self._graph, state = nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))
        self._variables = dict(_named(state))

    @classmethod
    def split(cls, networks: Mapping[str, nnx.Module]) -> tuple["Networks", Params]:
        """The structure and the parameters of networks that exist."""
        structure = cls(lambda rngs: networks)
        values = nnx.state(nnx.Dict(dict(networks)))
        return structure, {name: v.get_value() for name, (_, v) in _named(values)}

    def shardings(self, mesh: Mesh) -> dict[str, jax.sharding.NamedSharding]:
        """Placement of every parameter by the table in `videomv_jax.sharding`."""
        return {
            name: sharding.param_sharding(mesh, name, v.shape, v.get_metadata()["axes"])
            for name, (_, v) in self._variables.items()
        }

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters; run it under jit with `shardings` as out_shardings."""
        state = nnx.state(self._build(nnx.Rngs(key)))
        return {
            name: v.get_value().astype(jnp.float32) for name, (_, v) in _named(state)
        }

    def merge(self, params: Mapping[str, Array]) -> dict[str, nnx.Module]:
        """Networks that compute with `params`."""
        flat = [
            (path, variable.replace(params[name]))
            for name, (path, variable) in self._variables.items()
        ]
        return dict(nnx.merge(self._graph, nnx.from_flat_state(flat)))


def _named(state: nnx.State) -> list[tuple[str, tuple[tuple, nnx.Variable]]]:
    return [
        (".".join(map(str, path)), (path, variable))
        for path, variable in nnx.to_flat_state(state)
    ]


def create_state(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    mesh: Mesh,
    initial: Mapping[str, Array] | None = None,
) -> TrainState:
    """A state at step 0, born sharded over the mesh.

    Args:
        networks: the trained networks.
        optimizer: its moments are sharded like the parameters.
        key: of the initial weights.
        initial: given values for some or all parameters.
    """
    shardings = networks.shardings(mesh)
    with jax.set_mesh(mesh):
        params = jax.jit(networks.init, out_shardings=shardings)(key)
        for name, value in (initial or {}).items():
            params[name] = jax.device_put(jnp.asarray(value), shardings[name])
        placement = optax.tree.map_params(
            optimizer,
            lambda _, sharded: sharded,
            jax.eval_shape(optimizer.init, params),
            shardings,
            transform_non_params=lambda _: sharding.replicated(mesh),
        )
        opt_state = jax.jit(optimizer.init, out_shardings=placement)(params)
        ema = jax.tree.map(jnp.copy, params)
    step = jax.device_put(jnp.zeros((), jnp.int32), sharding.replicated(mesh))
    return TrainState(step, params, ema, opt_state)


def apply_gradients(
    state: TrainState,
    gradients: Params,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """One update. The average warms up: min(decay, (1 + step) / (10 + step))."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int counts
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
    ema = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.ema, params)
    return TrainState(state.step + 1, params, ema, opt_state)
