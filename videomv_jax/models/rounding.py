"""Weights in the type that networks compute with."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array

from videomv_jax import compat, sharding
from videomv_jax.models.layers import Conv, Linear

SMALL = 2**16  # elements, which a GPU reads faster than it starts a kernel


def cast_weights(module: nnx.Module) -> None:
    """Hold linear layers' and convolutions' weights in their compute type, in place.

    Nothing is lost to what they compute, and they are read faster. Float32 ones are to
    be kept elsewhere, if they are to be saved or trained. The module may be abstract.
    """
    ones: dict[tuple[int, ...], Array] = {}
    join = compat.has_cuda() and not sharding.splits_parameters()

    def rounded(x, dtype):
        traced = isinstance(x, Tracer) and x.dtype != dtype
        if traced and join and x.size <= SMALL:
            if x.shape not in ones:
                ones[x.shape] = in_common(jnp.ones((), x.dtype), x.shape)
            x = x * ones[x.shape]
        return x.astype(dtype)

    for layer in _weighted(module):
        for name in ("kernel", "bias"):
            if (param := getattr(layer, name)) is not None:
                value = param.get_value()
                if isinstance(value, jax.ShapeDtypeStruct):
                    param.set_value(jax.ShapeDtypeStruct(value.shape, layer.dtype))
                else:
                    param.set_value(rounded(value, layer.dtype))


def in_common(value: Array, shape: tuple[int, ...]) -> Array:
    """A scalar, spread to an operand of several small arrays of one shape.

    XLA treats some dozens of these by one kernel only if they have an operand in common
    that is no scalar.
    """
    return jax.lax.optimization_barrier(jnp.broadcast_to(value, shape))


def rounded_to(module: nnx.Module) -> jnp.dtype | None:
    """The type that `cast_weights` gave to weights; None if they are float32."""
    types = {layer.kernel.get_value().dtype for layer in _weighted(module)}
    types.discard(jnp.dtype("float32"))
    return types.pop() if types else None


def _weighted(module: nnx.Module) -> list[Linear | Conv]:
    modules = (node for _, node in nnx.iter_modules(module))
    return [node for node in modules if isinstance(node, Linear | Conv)]
