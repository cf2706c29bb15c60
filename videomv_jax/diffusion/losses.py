"""The training loss of the denoiser."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def squared_error(
    output: Float[Array, "b ..."], target: Float[Array, "b ..."]
) -> Float[Array, "b"]:
    """Mean squared error of each sample, float32, as the original trains with.

    The mean over the batch is the caller's, who knows how it is sharded. There is no
    weighting by signal-to-noise ratio.
    """
    error = output.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.square(error).mean(tuple(range(1, error.ndim)))
