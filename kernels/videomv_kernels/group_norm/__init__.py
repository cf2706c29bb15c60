"""Group normalisation of 16-bit activations, on CUDA GPUs."""

from videomv_kernels.group_norm.api import (
    STATISTICS,
    group_norm,
    reference,
    supports,
)

__all__ = ["STATISTICS", "group_norm", "reference", "supports"]
