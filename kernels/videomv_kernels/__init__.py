"""Differentiable kernels in JAX, usable without videomv_jax."""

from videomv_kernels.rasterize import RasterConfig, RasterOutput, rasterize

__all__ = ["RasterConfig", "RasterOutput", "rasterize"]
