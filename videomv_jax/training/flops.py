"""Arithmetic of a traced program, the same whatever device it is for.

The compilers' own counts leave out what they hand to libraries, which on a GPU is
nearly everything.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Dense bf16 peak of one chip, FLOP/s, by the vendors' data sheets.
PEAK_FLOPS: Mapping[str, float] = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def count(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    """Floating-point operations of its matrix products and convolutions.

    A scan counts its length, a branch its costliest arm, a `shard_map` all devices. A
    loop whose bound is known only at run time counts once: the rasterizer and the
    synthetic set's renderer.

    Args:
        jaxpr: for example `jax.jit(f).trace(*args).jaxpr`.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation(equation) for equation in inner.eqns)


def _equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        out = math.prod(_shape(equation.outvars[0]))
        return 2 * out * math.prod(left[axis] for axis in contract)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        layout = params["dimension_numbers"].rhs_spec
        window = math.prod(kernel[axis] for axis in layout[1:])
        out = math.prod(_shape(equation.outvars[0]))
        # Holes that dilation puts into the input or the window cost nothing.
        holes = math.prod(params["lhs_dilation"])
        return 2 * out * window / holes
    inner = [count(jaxpr) for jaxpr in _nested(params)]
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # its shapes are those of one device
        sizes = params["mesh"].shape
        return sum(inner) * math.prod(sizes[a] for a in params["newly_manual_axes"])
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _nested(params: dict) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in params.values():
        values = value if isinstance(value, list | tuple) else [value]
        yield from (v for v in values if isinstance(v, Jaxpr | ClosedJaxpr))


def mfu(flops_per_step: float, steps_per_second: float) -> float | None:
    """Share of the chips' dense bf16 peak; None for a chip whose peak is unknown.

    `flops_per_step` is for all chips together, see `count`.
    """
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak is None:
        return None
    return flops_per_step * steps_per_second / (peak * jax.device_count())
