"""How the kernels are called, and the columns of what they share."""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

WARP = 32
GEOMETRY = 7  # columns of the table in front of the colours
MOMENTS = 6  # columns of a gradient row in front of depth and colours


def table_width(channels: int) -> int:
    """Columns of the table: geometry, colours, the box of tiles in two, its hits."""
    return pl.next_power_of_2(GEOMETRY + channels + 3)


def call(
    kernel,
    name: str,
    grid: int,
    inputs,
    outputs,
    *,
    warps: int,
    interpret: bool,
    in_specs=None,
    out_specs=None,
    aliases=None,
):
    """`pallas_call`; without specs, the kernel indexes whole arrays."""
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        kernel,
        grid=(grid,),
        in_specs=in_specs or [anywhere] * len(inputs),
        out_specs=out_specs or jax.tree.map(lambda _: anywhere, outputs),
        out_shape=outputs,
        input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=f"rasterize_{name}",
    )(*inputs)
