"""A gated linear layer, `(x V + b) * gelu(x G + c)`, as one product on Hopper GPUs."""

from videomv_kernels.gated_linear.api import gated_linear, reference, supports

__all__ = ["gated_linear", "reference", "supports"]
