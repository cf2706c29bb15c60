"""Arithmetic of a traced program, the same whatever device it is for.

The compilers' own counts leave out what they hand to libraries, which on a GPU is
nearly everything.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    """Floating-point operations of its matrix products and convolutions.

    A scan counts its length, a branch its costliest arm. A loop whose bound is known
    only at run time counts once: the rasterizer and the synthetic set's renderer.

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
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _nested(params: dict) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in params.values():
        values = value if isinstance(value, list | tuple) else [value]
        yield from (v for v in values if isinstance(v, Jaxpr | ClosedJaxpr))
