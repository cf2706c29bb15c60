"""What the kernels need from JAX that is not the same, or not public, everywhere."""

import jax
from jax import lax


def shape_like(shape, dtype, example: jax.Array) -> jax.ShapeDtypeStruct:
    """An output of `pallas_call` that varies over the mesh axes that `example` does."""
    manual = jax.typeof(example).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=manual)


def varying_like(x: jax.Array, example: jax.Array) -> jax.Array:
    """x, varying over the mesh axes that `example` varies over under shard_map."""
    axes = tuple(sorted(jax.typeof(example).manual_axis_type.varying))
    return lax.pcast(x, axes, to="varying") if axes else x
