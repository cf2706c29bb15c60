"""The GPU's kernels, in Pallas for Triton: all that names Triton is here.

One lane per Gaussian in `pack`, `emit` and `add_rows`; one warp per tile in `blend` and
`blend_gradient`, where each lane holds a few pixels side by side. Nothing is added with
atomics: a pair's gradient is a row in a place of its own, and a Gaussian's rows, which
lie one after the other, are added in their order.

Exponents are base 2, `log2(alpha) = l + A dx^2 + B dx dy + C dy^2`, and a Gaussian is a
row of the table: x, y, A, B, C, l, depth, colours, and whatever fills it up to a power
of two, without which each scalar load takes two more instructions for its address.
"""

from videomv_kernels.rasterize.triton_kernels.blend import blend, blend_gradient
from videomv_kernels.rasterize.triton_kernels.call import MOMENTS, WARP
from videomv_kernels.rasterize.triton_kernels.lists import add_rows, emit, pack

__all__ = ["MOMENTS", "WARP", "add_rows", "blend", "blend_gradient", "emit", "pack"]
