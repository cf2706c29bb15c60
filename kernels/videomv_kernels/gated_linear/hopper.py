"""The gated layer as one persistent kernel of a Hopper GPU: TMA and wgmma.

A block multiplies tile after tile: one warpgroup loads slices of inputs and weights
into a ring in shared memory, two others multiply them, each for its own rows of the
tile, and then apply biases and gate. Both halves of a weight meet in one warpgroup's
registers, so nothing but the result is written. Loads go on, and the last tile is
written, while the gate is applied; products wait.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

# The kernel is written for the interfaces of JAX 0.11; 0.10's have other arguments.
LOWERS = hasattr(plgpu, "InterpretGPUParams")

# log2 of the normal distribution's lower tail, log2(ndtr(-x)) for x >= 0, as a
# polynomial: 2 to its power is within 5e-6 of the tail to x = 5, relative, and below
# 1e-9 with it from 6 on. Fitted in double precision for the least largest error.
TAIL = (
    -0.999995351,
    -1.15125012,
    -0.45846802,
    -0.0539551452,
    0.00850481912,
    -0.000929570408,
    6.14551245e-05,
    -1.82657516e-06,
)
SMS = 132  # of an H100 or H200
DEPTH = 64  # of a slice: 128 bytes, what TMA and wgmma swizzle
MULTIPLYING = 2  # warpgroups; one more loads


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the work is cut.

    Attributes:
        rows, columns: of the result, what a warpgroup computes at a time, from as many
            columns of either half of the weight. A block's tile has twice the rows.
        stages: slices in the ring.
        group: how many tiles side by side are computed before the rows below.
    """

    rows: int = 64
    columns: int = 128
    stages: int = 4
    group: int = 8

    def fit(self, m: int, k: int, n: int) -> bool:
        """Whether a product of [m, k] and [k, 2, n] is made of whole tiles.

        A tile is no fewer slices deep than the ring holds.
        """
        whole = not (m % (MULTIPLYING * self.rows) or k % DEPTH or n % self.columns)
        return whole and k // DEPTH >= self.stages


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution up to x: the erf form to 6e-7, absolute."""
    size = jnp.abs(x)
    tail = jnp.full_like(size, TAIL[-1])
    for c in TAIL[-2::-1]:
        tail = tail * size + c
    return jnp.maximum(x, 0.0) - size * jnp.exp2(tail)


@functools.partial(jax.jit, static_argnames=("tiles", "most", "interpret"))
def gated(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    tiles: Tiles,
    *,
    most: int = SMS,
    interpret: Any = None,
) -> jax.Array:
    """The layer, for x [m, k], a kernel [k, 2, n] and biases [2, n] that fit `tiles`.

    By as many blocks as there are tiles, but `most`.
    """
    (m, k), n = x.shape, kernel.shape[2]
    swizzled = plgpu.TilingTransform((8, DEPTH)), plgpu.SwizzleTransform(128)
    smem = functools.partial(plgpu.SMEM, dtype=x.dtype, transforms=swizzled)
    rows, columns, stages = tiles.rows, tiles.columns, tiles.stages
    count = m // (MULTIPLYING * rows) * (n // columns)
    call = plgpu.kernel(
        functools.partial(_kernel, tiles=tiles),
        out_type=jax.ShapeDtypeStruct((m, n), x.dtype),
        grid=(min(count, most),),
        grid_names=("block",),
        num_threads=MULTIPLYING + 1,
        thread_name="warpgroup",
        scratch_types=dict(
            loaded=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            read=plgpu.Barrier(num_arrivals=MULTIPLYING, num_barriers=stages),
            x_ring=smem((stages, MULTIPLYING * rows, DEPTH)),
            kernel_ring=smem((stages, 2, DEPTH, columns)),
            results=smem((MULTIPLYING, rows, columns)),
        ),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return call(x, kernel.reshape(k, 2 * n), bias.reshape(2 * n))


def _kernel(x, kernel, bias, out, *, loaded, read, x_ring, kernel_ring, results, tiles):
    (m, n), steps = out.shape, x.shape[1] // DEPTH
    rows, columns = MULTIPLYING * tiles.rows, tiles.columns
    grid = m // rows, n // columns
    block, blocks = lax.axis_index("block"), lax.axis_size("block")
    warpgroup = lax.axis_index("warpgroup")
    count = lax.div(grid[0] * grid[1] - block + blocks - 1, blocks)

    def place(tile):
        row, column = plgpu.planar_snake(block + tile * blocks, grid, 1, tiles.group)
        return row * rows, column * columns

    def columns_of(part, column):
        return pl.ds(part * n + column, columns)

    @pl.when(warpgroup == MULTIPLYING)
    def _load():
        plgpu.set_max_registers(40, action="decrease")

        def load(tile, _):
            row, column = place(tile)

            def step(k, _):
                at = tile * steps + k
                slot = lax.rem(at, tiles.stages)

                @pl.when(at >= tiles.stages)
                def _():
                    plgpu.barrier_wait(read.at[slot])

                ks, done = pl.ds(k * DEPTH, DEPTH), loaded.at[slot]
                source = x.at[pl.ds(row, rows), ks]
                plgpu.copy_gmem_to_smem(source, x_ring.at[slot], done)
                for part in range(2):
                    source = kernel.at[ks, columns_of(part, column)]
                    plgpu.copy_gmem_to_smem(source, kernel_ring.at[slot, part], done)

            lax.fori_loop(0, steps, step, None)

        lax.fori_loop(0, count, load, None)
        for slot in range(tiles.stages):  # no load waited for the last readers
            plgpu.barrier_wait(read.at[slot])

    @pl.when(warpgroup < MULTIPLYING)
    def _multiply():
        plgpu.set_max_registers(232, action="increase")
        own = pl.ds(warpgroup * tiles.rows, tiles.rows)

        def compute(tile, _):
            row, column = place(tile)

            def bias_of(part):
                found = plgpu.load(  # pyright: ignore[reportCallIssue] - JAX 0.10's
                    bias.at[columns_of(part, column)],
                    layout=plgpu.Layout.WGMMA.reduce(0),
                    optimized=False,
                )
                return found.astype(jnp.float32)

            biases = bias_of(0), bias_of(1)

            def products(value, gate):
                def slot(k):
                    return lax.rem(tile * steps + k, tiles.stages)

                def start(k):
                    here = slot(k)
                    plgpu.barrier_wait(loaded.at[here])
                    left = x_ring.at[here, own]
                    plgpu.wgmma(value, left, kernel_ring.at[here, 0])
                    plgpu.wgmma(gate, left, kernel_ring.at[here, 1])

                def step(k, _):
                    start(k)
                    plgpu.wgmma_wait(2)  # all but what just started
                    plgpu.barrier_arrive(read.at[slot(k - 1)])

                start(0)
                lax.fori_loop(1, steps, step, None)
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(read.at[slot(steps - 1)])
                return value[...], gate[...]

            sums = plgpu.WGMMAAccumulatorRef((tiles.rows, columns), jnp.float32)
            value, gate = pl.run_scoped(products, sums, sums)
            # The tile before has been read, to be written.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for r in range(0, tiles.rows, 64):
                for c in range(0, columns, 64):
                    part = slice(r, r + 64), slice(c, c + 64)

                    def biased(y, b, part=part):
                        return y[part] + lax.broadcast_in_dim(b[part[1]], (64, 64), [1])

                    y = biased(value, biases[0]) * gelu(biased(gate, biases[1]))
                    results[warpgroup, part[0], part[1]] = y.astype(out.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
                results.at[warpgroup],
                out.at[pl.ds(row, rows), pl.ds(column, columns)].at[own],
            )

        lax.fori_loop(0, count, compute, None)
        plgpu.wait_smem_to_gmem(0)
