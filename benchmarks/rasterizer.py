"""Time the rasterizer: forward, and forward with all gradients.

    python benchmarks/rasterizer.py [--case N,scenes,views,size ...] [--json FILE]

A case is a lumpy shell of N Gaussians per scene, seen from an orbit. Each time is the
least of `--repeats` calls, since other work on a machine only ever adds. Runs on
whatever device JAX finds.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from videomv_kernels.rasterize import BACKENDS, RasterConfig, rasterize
from videomv_kernels.rasterize.binning import tile_boxes
from videomv_kernels.rasterize.config import make_plan
from videomv_kernels.rasterize.project import project

from videomv_jax.splat.cameras import orbit

DEFAULT_CASES = ("4096,1,24,64", "4096,1,24,128", "16384,1,24,64", "16384,1,24,128")


def shell(n: int, scenes: int, seed: int = 0) -> tuple[jax.Array, ...]:
    """Means, quats, scales, opacities and colours of a lumpy shell.

    Sizes follow the spacing, so that neighbours overlap: 1.5 to 4 tiles of 16 by 16
    pixels for each Gaussian at the sizes measured here.
    """
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(scenes, n, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    lumps = np.sin(7 * direction[..., :1]) * np.cos(5 * direction[..., 1:2])
    means = direction * (0.6 + 0.1 * lumps)
    quats = rng.normal(size=(scenes, n, 4))
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    scales = 1.2 / np.sqrt(n) * np.exp(0.4 * rng.normal(size=(scenes, n, 3)))
    opacities = rng.uniform(0.05, 1, size=(scenes, n))
    colors = rng.uniform(size=(scenes, n, 3))
    scene = (means, quats, scales, opacities, colors)
    return tuple(jnp.asarray(x, jnp.float32) for x in scene)


def best_of(function, *args, repeats: int) -> float:
    """Milliseconds of the fastest call, after one to warm up."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def pairs_per_gaussian(scene, cameras, config: RasterConfig, backend: str) -> float:
    """Mean number of tiles in a Gaussian's bounding box."""
    size = cameras.height
    means, quats, scales, opacities, colors = (x[0] for x in scene)
    projected = project(
        means,
        quats,
        scales,
        opacities,
        colors,
        cameras.world_to_camera,
        cameras.intrinsics,
        height=size,
        width=size,
        config=config,
    )
    chosen = BACKENDS[backend]
    n = scene[0].shape[1]
    plan = make_plan(config, n, size, size, tile=chosen.tile, chunk=chosen.chunk)
    boxes = tile_boxes(projected, plan)
    extent = (boxes[..., 2:] - boxes[..., :2]).clip(0)
    return float((extent[..., 0] * extent[..., 1]).mean())


def measure(case: str, config: RasterConfig, implementation: str | None, repeats: int):
    """Times and memory of one case, as a dict."""
    n, scenes, views, size = map(int, case.split(","))
    scene = shell(n, scenes)
    cameras = orbit(views, size=size)
    matrices = [
        jnp.broadcast_to(x[None], (scenes, *x.shape))
        for x in (cameras.world_to_camera, cameras.intrinsics)
    ]

    def render(scene):
        return rasterize(
            *scene,
            *matrices,
            height=size,
            width=size,
            config=config,
            implementation=implementation,
        )

    def loss(scene):
        out = render(scene)
        return jnp.square(out.rgb - 0.5).sum() + out.alpha.sum() + out.depth.sum()

    row: dict[str, float] = dict(n=n, scenes=scenes, views=views, size=size)
    chosen = implementation or "xla"
    row["tiles_per_gaussian"] = pairs_per_gaussian(scene, cameras, config, chosen)
    for name, function in (("forward", render), ("gradient", jax.grad(loss))):
        start = time.perf_counter()
        compiled = jax.jit(function).lower(scene).compile()
        row[f"{name}_compile_s"] = time.perf_counter() - start
        row[f"{name}_ms"] = best_of(compiled, scene, repeats=repeats)
        if memory := compiled.memory_analysis():
            row[f"{name}_temp_mib"] = memory.temp_size_in_bytes / 2**20
    row["overflow"] = int(jax.jit(render)(scene).overflow.sum())
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=DEFAULT_CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--implementation", choices=sorted(BACKENDS))
    parser.add_argument("--tile", type=int, nargs=2)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    config = RasterConfig(tile=args.tile and tuple(args.tile), chunk=args.chunk)

    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, best of {args.repeats}")
    print("| Gaussians | scenes x views | image | tiles | fwd / fwd+bwd ms | MiB |")
    print("|---|---|---|---|---|---|")
    rows = []
    for case in args.case:
        row = measure(case, config, args.implementation, args.repeats)
        rows.append(row)
        print(
            f"| {row['n']} | {row['scenes']} x {row['views']} | {row['size']}^2 "
            f"| {row['tiles_per_gaussian']:.2f} "
            f"| {row['forward_ms']:.4g} / {row['gradient_ms']:.4g} "
            f"| {row['forward_temp_mib']:.0f} / {row['gradient_temp_mib']:.0f} |",
            flush=True,
        )
    if args.json:
        about = dict(device=device.device_kind, jax=jax.__version__)
        args.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
