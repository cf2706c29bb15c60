"""Self attention among the few views of a clip, pixel by pixel, on CUDA GPUs."""

from videomv_kernels.view_attention.api import (
    float32_logits,
    reference,
    supports,
    view_attention,
)

__all__ = ["float32_logits", "reference", "supports", "view_attention"]
