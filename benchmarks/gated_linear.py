"""The UNet's gated layers on a Hopper GPU: as one kernel, and as XLA does them.

    python benchmarks/gated_linear.py [--json FILE] [--calls N]

Expected: for each level of the released UNet, of the guidance batch of 24 views, the
milliseconds of one layer both ways, and how far both are from float32 (L2, relative).
Ends with an error if the kernel is farther than XLA's form. Half a minute on an H100.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
from report import Table
from videomv_kernels.benchmark.queue import queue_ms
from videomv_kernels.gated_linear import gated_linear, reference

from videomv_jax import compat

# Rows, inputs, outputs: at 32 x 32, in the first transformer, at 16 x 16, 8 x 8, 4 x 4.
LAYERS = (
    (49152, 320, 1280),
    (49152, 512, 2048),
    (12288, 640, 2560),
    (3072, 1280, 5120),
    (768, 1280, 5120),
)


def inputs(m: int, k: int, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values and gates have a variance of about 2."""
    keys = jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[1], (k, 2, n)) * (2 / k) ** 0.5
    return (
        jax.random.normal(keys[0], (m, k), jnp.bfloat16),
        kernel.astype(jnp.bfloat16),
        jax.random.normal(keys[2], (2, n), jnp.bfloat16) / 4,
    )


@jax.jit
def exact(x, kernel, bias):
    with jax.default_matmul_precision("highest"):
        return reference(*(a.astype(jnp.float32) for a in (x, kernel, bias)))


@jax.jit
def apart(y, wanted):
    return jnp.linalg.norm(y.astype(jnp.float32) - wanted) / jnp.linalg.norm(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    table = Table(about, args.json)
    ways = {
        "XLA": jax.jit(reference, compiler_options=compat.compiler_options()),
        "kernel": jax.jit(gated_linear),
    }
    for m, k, n in LAYERS:
        given = inputs(m, k, n)
        wanted = exact(*given)
        errors = {}
        for name, run in ways.items():
            errors[name] = float(apart(run(*given), wanted))
            ms = queue_ms(lambda: run(*given), jax.block_until_ready, args.calls)  # noqa: B023
            tflops = 4 * m * k * n / ms / 1e9
            work = f"{m} x {k} to {n}, {name}"
            table.add(work, ms, tflops=tflops, error=errors[name])
        if not errors["kernel"] <= errors["XLA"]:
            raise SystemExit(f"the kernel is farther from float32: {errors}")


if __name__ == "__main__":
    main()
