"""Self attention among the few views of a clip, pixel by pixel, on CUDA GPUs."""

from videomv_kernels.view_attention.api import reference, supports, view_attention

__all__ = ["reference", "supports", "view_attention"]
