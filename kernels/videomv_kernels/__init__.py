"""Differentiable kernels in JAX, usable without videomv_jax."""
