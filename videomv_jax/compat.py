"""Everything that differs between JAX versions or installed backends."""

import functools

import jax


@functools.cache
def has_cuda() -> bool:
    """Whether the default backend of this process is an NVIDIA GPU."""
    return jax.default_backend() == "gpu"


@functools.cache
def on_cpu() -> bool:
    """Whether the default backend of this process is the CPU."""
    return jax.default_backend() == "cpu"
