"""How fast the kernels are here, beside their peers where those are installed."""

from videomv_kernels.benchmark.rasterizer import describe, run
from videomv_kernels.benchmark.scenes import LARGE, SMALL, Work, cameras

__all__ = ["LARGE", "SMALL", "Work", "cameras", "describe", "run"]
