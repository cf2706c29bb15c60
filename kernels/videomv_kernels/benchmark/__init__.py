"""How fast the kernels are here, beside their peers where those are installed."""

from videomv_kernels.benchmark.profile import kernel_ms
from videomv_kernels.benchmark.rasterizer import describe, run
from videomv_kernels.benchmark.scenes import LARGE, SMALL, Work

__all__ = ["LARGE", "SMALL", "Work", "describe", "kernel_ms", "run"]
