"""Differentiable rasterizer of 3D Gaussians in JAX."""

from videomv_kernels.rasterize.api import BACKENDS, RasterOutput, rasterize
from videomv_kernels.rasterize.config import ORIGINAL, RasterConfig

__all__ = ["BACKENDS", "ORIGINAL", "RasterConfig", "RasterOutput", "rasterize"]
