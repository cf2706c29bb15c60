"""What XLA makes of the released UNet for an H100, seen without a GPU.

    pip install jax-cuda13-plugin jax-cuda13-pjrt  # of jax's version, no GPU needed
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_autotune_level=0 \\
        python benchmarks/gpu_programs.py [--step REMAT] [--hlo FILE]

Expected: GB of arguments and scratch memory, and for each kind of kernel how many there
are, the bytes of its operands and results, and how long these take at 3.0 TB/s, what an
H100 copied at: a floor for what is bound by memory. Of a forward pass of the guidance
batch, or with --step of a training step of four clips that recomputes what REMAT says.
Nothing is tuned, so products with a bias stand as Triton fusions, and others as cuBLAS
calls. Compiles for half a minute or a minute, a step for some six.
"""

import argparse
import collections
import pathlib
import re
import time
import types
from importlib import import_module
from unittest import mock

import jax
from flax import nnx
from inference import sizes, unet_inputs
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from jax.sharding import Mesh
from train_step import run_config

from videomv_jax import compat
from videomv_jax.model_folder import PARTS, abstract
from videomv_jax.models import rounding
from videomv_jax.presets import PRESETS
from videomv_jax.scale import hlo
from videomv_jax.scale.plan import trace
from videomv_jax.sharding import make_mesh, replicated
from videomv_jax.training.config import REMAT

triton = import_module("jax._src.pallas.triton.gpu_info")  # JAX 0.11
KIND, TB_PER_S = "NVIDIA H100 80GB HBM3", 3.0
GPU = types.SimpleNamespace(compute_capability="9.0")
# What XLA asks of a GPU while it compiles, by the data sheet and CUDA's tables.
TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{KIND}"
"""


def forward(mesh: Mesh) -> jax.stages.Lowered:
    config = sizes("t2v", "bfloat16")
    unet = abstract(lambda rngs: PARTS["unet"](config.unet, rngs=rngs))
    rounding.cast_weights(unet)
    graph, weights = nnx.split(unet)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        (weights, *jax.eval_shape(lambda: unet_inputs(config))),
    )
    run = jax.jit(
        lambda weights, *x: nnx.merge(graph, weights)(*x),
        compiler_options=compat.compiler_options(),
    )
    return run.trace(*arguments).lower(lowering_platforms=("cuda",))


def step(mesh: Mesh, remat: str) -> jax.stages.Lowered:
    config = run_config("t2v", 4, remat, "bfloat16")
    traced, _ = trace(config, PRESETS["t2v"], mesh)
    return traced.lower(lowering_platforms=("cuda",))


def compiled(remat: str | None) -> jax.stages.Compiled:
    topology = topologies.get_topology_desc(
        "1x1x1", platform="cuda", target_config=TARGET, topology="1x1x1"
    )
    mesh = make_mesh(devices=topology.devices)
    with (
        compat.compiling_for("gpu"),
        mock.patch.object(cudnn, "check_cudnn_version", lambda: 91_000),
        mock.patch.object(cudnn, "check_compute_capability", lambda _: True),
        mock.patch.object(triton, "get_gpu_info", lambda: GPU),
    ):
        return (step(mesh, remat) if remat else forward(mesh)).compile()


def kind_of(kernel: hlo.Kernel) -> str:
    """What it is called, but for numbers: a library's function, or XLA's fusion."""
    if kernel.kind == "custom-call":
        return kernel.line.partition('custom_call_target="')[2].partition('"')[0]
    return re.sub(r"[\d.]+$", "", kernel.name)


def bytes_of(kernel: hlo.Kernel) -> int:
    """Without the scratch memory that cuBLAS is given as a second result."""
    scratch = re.search(r", s8\[(\d+)\]\{0\}\) custom-call\(", kernel.line)
    return kernel.bytes - (int(scratch[1]) if scratch else 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", choices=sorted(REMAT), metavar="REMAT")
    parser.add_argument("--hlo", type=pathlib.Path, help="where to write the program")
    args = parser.parse_args()
    begun = time.perf_counter()
    program = compiled(args.step)
    seconds = time.perf_counter() - begun
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None
    if args.hlo:
        args.hlo.write_text(text)
    inputs, scratch = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    print(f"jax {jax.__version__}, {KIND}, traced and compiled in {seconds:.0f} s")
    print(f"{inputs / 1e9:.3f} GB of arguments, {scratch / 1e9:.3f} GB of scratch")
    counts: collections.Counter[str] = collections.Counter()
    moved: collections.Counter[str] = collections.Counter()
    for kernel in hlo.kernels(text):
        counts[kind_of(kernel)] += kernel.count
        moved[kind_of(kernel)] += kernel.count * bytes_of(kernel)
    print("| kind | kernels | MB | ms at 3.0 TB/s |\n|---|---|---|---|")
    for kind, size in moved.most_common():
        ms = size / TB_PER_S / 1e9
        print(f"| {kind} | {counts[kind]} | {size / 1e6:.0f} | {ms:.2f} |")


if __name__ == "__main__":
    main()
