"""The pipeline's denoising step, traced for a mesh."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from videomv_jax import sharding
from videomv_jax.model_folder import PARTS, ModelConfig, abstract
from videomv_jax.models.rounding import cast_weights
from videomv_jax.sampling.programs import Programs
from videomv_jax.training.config import TrainConfig


def trace(
    config: TrainConfig, model: ModelConfig, mesh: Mesh, *, aware: bool
) -> tuple[Any, int]:
    """`Programs.advance`, traced for a mesh; how many parameters it reads.

    Weights lie where trained ones do, in the compute type; prompts are split over the
    mesh's data and fsdp axes. The schedule and the cameras lie everywhere.

    Args:
        config: its batch size is the number of prompts, each in both branches of
            guidance; its compute type the networks'.
        model: whose sampler it is.
        mesh: what to trace for.
        aware: with the 3D projection of x0.

    Raises:
        InputError: a weight that the mesh does not divide.
    """
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    parts = {
        name: _placed_part(name, kind, getattr(model, name), config, mesh)
        for name, kind in PARTS.items()
        if getattr(model, name) is not None
    }
    programs = Programs(model, parts)
    program, arguments, static = next(
        programs.needed(config.batch_size, aware, "guided")
    )
    weights, condition, *rest = arguments  # the weights have their places
    table, state, *numbers = _placed(rest, whole)
    condition = dataclasses.replace(
        _placed(condition, batch), cameras=_placed(condition.cameras, whole)
    )
    state = dataclasses.replace(
        state, x=_placed(state.x, batch), x0=_placed(state.x0, batch)
    )
    read = ("unet", "vae", "reconstructor") if aware else ("unet",)
    count = sum(math.prod(x.shape) for name in read for x in weights[name])
    with jax.set_mesh(mesh):
        traced = program.trace(weights, condition, table, state, *numbers, **static)
    return traced, count


def _placed_part(
    name: str, kind: Any, sizes: Any, config: TrainConfig, mesh: Mesh
) -> nnx.Module:
    """A network of shapes, each with its place, as the pipeline loads its weights."""
    sizes = dataclasses.replace(sizes, dtype=config.compute_dtype)
    part = abstract(lambda rngs: kind(sizes, rngs=rngs))
    cast_weights(part)
    for path, variable in nnx.to_flat_state(nnx.state(part)):
        shape, axes = variable.get_value(), variable.get_metadata()["axes"]
        where = ".".join((name, *map(str, path)))
        place = sharding.param_sharding(mesh, where, shape.shape, axes)
        variable.set_value(_placed(shape, place))
    return part


def _placed(tree: Any, place: NamedSharding) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
    )
