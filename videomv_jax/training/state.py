"""Training state: parameters by name, their moving average and the optimizer.

Parameters live in flat dicts keyed "<network>.<path>", the names the exported
folder uses. Networks are put together from them inside the step, so the state
itself is plain arrays: sharded, donated, saved and averaged without special cases.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.typing import ArrayLike
from jaxtyping import Array

from videomv_jax import sharding
from videomv_jax.models import rounding
from videomv_jax.training import parts
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.parts import Params
from videomv_jax.types import InputError, PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Health:
    """How the losses have been.

    Attributes:
        mean: their exponential mean, not yet divided by the weights' sum.
        count: losses in it.
        skipped: updates that were not made because their loss was a spike.
        broken: first update whose loss or gradient was not finite; 0: none. From
            there on no update is made.
    """

    mean: Array
    count: Array
    skipped: Array
    broken: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds of the run.

    Attributes:
        step: number of updates made, int32 scalar; skipped ones count.
        params: trained parameters, float32.
        frozen: the networks' other parameters.
        ema: exponential moving average of `params`; empty where `ema_decay` is 0.
        opt_state: state of the optimizer.
        health: of the losses so far.
    """

    step: Array
    params: Params
    frozen: Params
    ema: Params
    opt_state: optax.OptState
    health: Health

    @property
    def exported(self) -> Params:
        """The trained weights that samples and exports have: the average, if any."""
        return self.ema or self.params


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

    def shardings(
        self, mesh: Mesh | AbstractMesh
    ) -> dict[str, jax.sharding.NamedSharding]:
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

    def rounded(self, params: Mapping[str, Array]) -> Params:
        """What the networks compute with, for those that stay frozen.

        See `rounding.cast_weights`.
        """
        networks = self.merge(params)
        for network in networks.values():
            rounding.cast_weights(network)
        return Networks.split(networks)[1]


def _named(state: nnx.State) -> list[tuple[str, tuple[tuple, nnx.Variable]]]:
    return [
        (".".join(map(str, path)), (path, variable))
        for path, variable in nnx.to_flat_state(state)
    ]


def make_mesh(config: TrainConfig, devices=None) -> Mesh:
    """The run's mesh, over all devices or some.

    Raises:
        InputError: sizes that do not fit, or a batch that does not divide over them.
    """
    ici = {axis: getattr(config, axis) for axis in sharding.MESH_AXES}
    dcn = {axis: getattr(config, f"dcn_{axis}") for axis in sharding.MESH_AXES}
    mesh = sharding.make_mesh(config.strategy, ici=ici, dcn=dcn, devices=devices)
    shards = sharding.batch_shards(mesh)
    part = config.batch_size // config.accumulate
    if part % shards:
        raise InputError(
            f"batch_size: {config.batch_size} in {config.accumulate} parts does not "
            f"divide over {shards} shards"
        )
    return mesh


def create_state(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh,
    initial: Mapping[str, ArrayLike] | None = None,
) -> TrainState:
    """A state at step 0, born sharded over the mesh.

    Args:
        networks: the trained networks.
        optimizer: its moments are sharded like the parameters.
        config: seed of the initial weights, which of them train.
        mesh: where.
        initial: given values for some or all parameters.
    """
    key = jax.random.key(config.seed)
    places = networks.shardings(mesh)
    initial = initial or {}
    params: Params = {}
    with jax.set_mesh(mesh):
        if initial.keys() < places.keys():
            params = jax.jit(networks.init, out_shardings=places)(key)
        for name, value in initial.items():
            value = jnp.asarray(value, jnp.float32)
            params[name] = sharding.put(value, places[name])

        def first(params):
            return _first(params, key, optimizer, config)

        state = jax.eval_shape(first, params)
        placed = _placements(state, networks, optimizer, config, mesh)
        return jax.jit(first, out_shardings=placed, donate_argnums=0)(params)


def abstract_state(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh,
) -> TrainState:
    """Shapes and placements of `create_state`'s result; nothing is computed."""

    def make(key):
        return _first(networks.init(key), key, optimizer, config)

    state = jax.eval_shape(make, jax.random.key(0))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state,
        _placements(state, networks, optimizer, config, mesh),
    )


def _first(params: Params, key: PRNGKey, optimizer, config: TrainConfig) -> TrainState:
    if config.train == "lora":
        params = parts.add_factors(params, config.lora_rank, key)
    params, frozen = parts.split(params, config.train)
    ema = jax.tree.map(jnp.copy, params) if config.ema_decay else {}
    none = jnp.zeros((), jnp.int32)
    health = Health(jnp.zeros(()), none, none, none)
    return TrainState(none, params, frozen, ema, optimizer.init(params), health)


def _placements(
    state: TrainState,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    """The sharding of every leaf: moments and averages lie where parameters lie."""
    places = networks.shardings(mesh)
    if config.train == "lora":
        places = parts.factor_shardings(places)
    trained, frozen = parts.split(places, config.train)
    whole: Any = sharding.replicated(mesh)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, place: place,
        state.opt_state,
        trained,
        transform_non_params=lambda _: whole,
    )
    health = jax.tree.map(lambda _: whole, state.health)
    average = trained if config.ema_decay else {}
    return TrainState(whole, trained, frozen, average, moments, health)


def in_place(
    state: TrainState,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
) -> TrainState:
    """The state that a step made, where `create_state` put the one before.

    Left alone, the compiler splits a norm's scale as the layer behind it is split, and
    the step does not take its own result. Under `jax.jit`; without a mesh in the
    context, the state as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape.values()) == 1:
        return state
    places = _placements(state, networks, optimizer, config, mesh)
    return jax.lax.with_sharding_constraint(state, places)


_MEAN_OF = 100  # updates: how far the mean loss looks back, and how long it forms


def apply_gradients(
    state: TrainState,
    loss: Array,
    norm: Array,
    gradients: Params,
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
) -> TrainState:
    """One update, or none where the loss is a spike or anything is not finite.

    `norm` is that of all gradients.

    The average warms up: min(decay, (1 + step) / (10 + step)).
    """
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int counts
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, norm=norm
        )
    params: Any = optax.apply_updates(state.params, updates)
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
    ema = {
        name: average + (1 - decay) * (params[name] - average)
        for name, average in state.ema.items()
    }

    health, good = _judge(state.health, state.step, loss, norm, config.spike_factor)
    new, old = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
    params, ema, opt_state = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    return TrainState(state.step + 1, params, state.frozen, ema, opt_state, health)


def _judge(
    health: Health, step: Array, loss: Array, norm: Array, factor: float
) -> tuple[Health, Array]:
    """The health after a loss, and whether its update is to be made."""
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    broken = jnp.where((health.broken == 0) & ~finite, step + 1, health.broken)
    keep = 1 - 1 / _MEAN_OF
    weights = 1 - keep ** health.count.astype(jnp.float32)
    limit = factor * health.mean / jnp.maximum(weights, 1e-6)
    spike = (factor > 0) & (health.count >= _MEAN_OF) & (loss > limit)
    # A spike enters the mean as what was allowed, so that a lasting rise is followed.
    seen = jnp.where(spike, limit, loss)
    mean = jnp.where(finite, keep * health.mean + (1 - keep) * seen, health.mean)
    skipped = health.skipped + (finite & spike).astype(jnp.int32)
    count = health.count + finite.astype(jnp.int32)
    health = Health(mean, count, skipped, broken)
    return health, finite & ~spike & (broken == 0)
