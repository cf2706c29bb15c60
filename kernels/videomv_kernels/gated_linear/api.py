"""The gated layer: its specification and the kernel behind it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_kernels.gated_linear import hopper

_TILES = hopper.Tiles()
_MAX_SIZE = 2**31  # places are counted in int32

Inputs = Float[Array, "... k"]
Weight = Float[Array, "k 2 n"]
Bias = Float[Array, "2 n"]


def reference(x: Inputs, kernel: Weight, bias: Bias) -> Float[Array, "... n"]:
    """What `gated_linear` computes, in plain JAX for any device and type.

    Products and all that follows are in the type of x. GELU in its erf form.
    """
    return gated(linear(x, kernel.astype(x.dtype)), bias.astype(x.dtype))


def linear(x: Inputs, kernel: jax.Array) -> jax.Array:
    """The product of x's last axis and the kernel's first."""
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def gated(y: Float[Array, "... 2 n"], bias: Bias) -> Float[Array, "... n"]:
    """`value gelu(gate)` of values and gates without their bias."""
    y = y + bias.reshape((1,) * (y.ndim - 2) + bias.shape)
    value, gate = y[..., 0, :], y[..., 1, :]
    return value * (0.5 * gate * (1 + jax.lax.erf(gate * 0.5**0.5)))


def supports(x: Inputs, kernel: Weight, bias: Bias) -> bool:
    """Whether the kernel takes these: x and the weight bfloat16, and whole tiles.

    And whether this JAX can lower it: from 0.11 on. It runs on GPUs of compute
    capability 9.0 alone, which is for the caller to see to.
    """
    (k, _, n), rows = kernel.shape, x.size // x.shape[-1]
    return (
        hopper.LOWERS
        and x.dtype == kernel.dtype == jnp.bfloat16
        and bias.dtype in (jnp.bfloat16, jnp.float32)
        and _TILES.fit(rows, k, n)
        and rows * max(k, n) < _MAX_SIZE
    )


def gated_linear(
    x: Inputs, kernel: Weight, bias: Bias, *, interpret: Any = None
) -> Float[Array, "... n"]:
    """`(x V + b) * gelu(x G + c)`, of which only the result is written.

    Sums, biases, GELU and the product are float32, rounded once. GELU is the erf form,
    by a polynomial whose error is below 1e-6. Not differentiable: see `gated_product`.

    Args:
        x: bfloat16, whose leading axes are rows of one matrix.
        kernel: V and G, bfloat16.
        bias: b and c, bfloat16 or float32.
        interpret: parameters of Pallas' interpreter for such kernels, for tests.

    Raises:
        ValueError: inputs that `supports` refuses.
    """
    if not supports(x, kernel, bias):
        raise ValueError(
            f"x: {x.dtype} {x.shape}, kernel: {kernel.dtype} {kernel.shape}, bias: "
            f"{bias.dtype}; want bfloat16, whole tiles of {_TILES}, and JAX 0.11"
        )
    (k, _, n), rows = kernel.shape, x.size // x.shape[-1]
    y = hopper.gated(x.reshape(rows, k), kernel, bias, _TILES, interpret=interpret)
    return y.reshape(*x.shape[:-1], n)
