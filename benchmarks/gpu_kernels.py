"""Count the instructions of the rasterizer's GPU kernels, without a GPU.

    python benchmarks/gpu_kernels.py [--tile 8,16 ...]

Expected: for each kernel and tile registers, spilled bytes, shuffles and arithmetic
instructions of the program for an H100 or H200. The kernels are lowered for CUDA on any
machine, then compiled by the package `triton` (3.9 was used), which brings ptxas and
cuobjdump. XLA compiles with a Triton of its own, so the counts are an indication.
"""

import argparse
import collections
import importlib
import pathlib
import re
import subprocess
import tempfile

import jax
import jax.numpy as jnp
from jax._src.pallas.triton import lowering
from videomv_kernels.rasterize import RasterConfig, rasterize

WORK = dict(n=65_536, views=24, size=512, pairs=400_000)
WARPS = {"rasterize_blend": 1, "rasterize_blend_gradient": 1}
SHOWN = ("SHFL", "FFMA", "FADD", "FMUL", "LDG", "LEA", "MUFU")


# No wheel of this project needs them, so a type checker may not find them.
triton = importlib.import_module("triton")
compiler = importlib.import_module("triton.backends.compiler")


def first(pattern: str, text: str) -> str:
    """The group of the first match."""
    match = re.search(pattern, text)
    assert match is not None, pattern
    return match[1]


def kernels(tile: tuple[int, int]) -> dict[str, str]:
    """Triton's intermediate text of each kernel of a gradient, by name."""
    found = {}
    original = lowering.lower_jaxpr_to_triton_module

    def record(*args, **kwargs):
        result = original(*args, **kwargs)
        text = str(result.module.operation.get_asm(enable_debug_info=False))
        found[first(r"tt.func public @(\w+)", text)] = text
        return result

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    n, views, size = WORK["n"], WORK["views"], WORK["size"]
    inputs = dict(
        means=array(n, 3),
        quats=array(n, 4),
        scales=array(n, 3),
        opacities=array(n),
        colors=array(n, 3),
        world_to_camera=array(views, 4, 4),
        intrinsics=array(views, 4),
    )
    config = RasterConfig(tile=tile, pairs_per_view=WORK["pairs"])

    def loss(inputs):
        out = rasterize(
            **inputs, height=size, width=size, config=config, implementation="gpu"
        )
        return out.rgb.sum() + out.alpha.sum() + out.depth.sum()

    lowering.lower_jaxpr_to_triton_module = record
    try:
        jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("cuda",))
    finally:
        lowering.lower_jaxpr_to_triton_module = original
    return found


def counts(name: str, text: str) -> dict[str, int]:
    """Registers, spilled bytes, and instructions by name."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / f"{name}.ttir"
        source.write_text(text)
        options = dict(num_warps=WARPS.get(name, 4), num_stages=1)
        target = compiler.GPUTarget("cuda", 90, 32)
        compiled = triton.compile(str(source), target=target, options=options)
        binary = pathlib.Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        tool = (
            pathlib.Path(str(triton.__file__)).parent / "backends/nvidia/bin/cuobjdump"
        )

        def dump(option):
            command = [tool, option, binary]
            return subprocess.run(command, capture_output=True, text=True).stdout

        usage, assembly = dump("-res-usage"), dump("-sass")
    names = re.findall(r"/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)", assembly)
    result = {key: int(first(rf"{key}:(\d+)", usage)) for key in ("REG", "LOCAL")}
    instructions = collections.Counter(names)
    result |= {key: instructions[key] for key in SHOWN}
    # Under divergence each shuffle stands twice in the assembly.
    result["SHFL"] = compiled.asm["ptx"].count("shfl.")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tile", nargs="+", default=["8,16", "8,8", "4,8"])
    args = parser.parse_args()
    print(f"JAX {jax.__version__}, Triton {triton.__version__}, sm_90")
    print("| tile | kernel | " + " | ".join(("REG", "LOCAL", *SHOWN)) + " |")
    print("|---" * (len(SHOWN) + 4) + "|")
    for tile in args.tile:
        height, width = map(int, tile.split(","))
        for name, text in kernels((height, width)).items():
            row = counts(name, text)
            cells = (f"{height}x{width}", name, *map(str, row.values()))
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
