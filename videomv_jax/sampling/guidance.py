"""Classifier-free guidance."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Below this the spread of a guided output counts as none; keeps 0 / 0 finite.
_MIN_SPREAD = 1e-8


def guide(
    conditional: Float[Array, "b ..."],
    unconditional: Float[Array, "b ..."],
    scale: float | Float[Array, ""],
    rescale: float | Float[Array, ""] = 0.0,
) -> Float[Array, "b ..."]:
    """u + scale (c - u): Ho and Salimans, arXiv 2207.12598.

    Args:
        conditional, unconditional: c and u, float32 outputs of the network.
        scale: 1 is the conditional output; larger follows the prompt more.
        rescale: phi of Lin et al., arXiv 2305.08891, equations 15 and 16: share in
            [0, 1] by which each sample's standard deviation goes back to that of c,
            against over-exposure. 0 is off.
    """
    scale = jnp.asarray(scale, conditional.dtype)
    rescale = jnp.asarray(rescale, conditional.dtype)
    guided = unconditional + scale * (conditional - unconditional)
    axes = tuple(range(1, guided.ndim))
    wanted = conditional.std(axes, keepdims=True)
    spread = guided.std(axes, keepdims=True)
    factor = wanted / jnp.maximum(spread, _MIN_SPREAD)
    return guided * (1 - rescale + rescale * factor)
