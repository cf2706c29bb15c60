"""The learning rate over a run."""

import jax.numpy as jnp
import optax

from videomv_jax.types import InputError


def cosine(peak: float, warmup: int, total: int) -> optax.Schedule:
    """Linear from 0 over `warmup` updates, then half a cosine to 0 at `total`.

    As the original trains (3e-5, 10, 1,000,000): its first update has rate 0. After
    `total` the rate stays 0.

    Args:
        peak: the rate at the end of the warm-up.
        warmup: updates before it, less than `total`.
        total: updates in all.

    Raises:
        InputError: a warm-up that is negative or not shorter than the run.
    """
    if not 0 <= warmup < total:
        raise InputError(f"warmup_steps: got {warmup}, want 0 to {total - 1}")

    def rate(step):
        step = jnp.asarray(step).astype(jnp.float32)
        rising = step / max(warmup, 1)
        done = jnp.clip((step - warmup) / (total - warmup), 0, 1)
        falling = (1 + jnp.cos(jnp.pi * done)) / 2
        return peak * jnp.where(step < warmup, rising, falling)

    return rate
