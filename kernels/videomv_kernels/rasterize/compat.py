"""What the kernels need from JAX that is not the same, or not public, everywhere."""

import functools

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir


def shape_like(shape, dtype, example: jax.Array) -> jax.ShapeDtypeStruct:
    """An output of `pallas_call` that varies over the mesh axes that `example` does."""
    manual = jax.typeof(example).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=manual)


def varying_like(x: jax.Array, example: jax.Array) -> jax.Array:
    """x, varying over the mesh axes that `example` varies over under shard_map."""
    wanted, own = (jax.typeof(a).manual_axis_type.varying for a in (example, x))
    axes = tuple(sorted(wanted - own))
    return lax.pcast(x, axes, to="varying") if axes else x


def require_platform(x: jax.Array, name: str, platforms: tuple[str, ...]) -> jax.Array:
    """x, on these platforms.

    Raises:
        ValueError: it is lowered for another platform; says that implementation
            `name` does not run there.
    """
    return _required_p.bind(x, name=name, platforms=platforms)


_required_p = Primitive("require_platform")
_required_p.def_abstract_eval(lambda aval, **_: aval)


@_required_p.def_impl
def _(x, **params):
    return jax.jit(functools.partial(_required_p.bind, **params))(x)


def _lower_required(ctx, x, *, name, platforms):
    for platform in ctx.module_context.platforms:
        if platform not in platforms:
            raise ValueError(
                f"implementation {name!r} runs on {' or '.join(platforms)}, not on "
                f"{platform}: choose another, or None for the best of the platform"
            )
    return [x]


mlir.register_lowering(_required_p, _lower_required)
