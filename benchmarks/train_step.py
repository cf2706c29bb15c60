"""Time a training step of the released UNet on one GPU, beside torch.

    python benchmarks/train_step.py [--rows narrow,torch,...] [--json FILE] \\
        [--cache DIR] [--clips N] [--calls N] [--model t2v|tiny] [--profile]

The step is the project's own, `training/step.py` on `DiffusionTask`, with random
weights and latents: all parameters of the UNet, float32 with AdamW, bf16 compute,
dropout, clipping, the frozen text encoder; no average of the weights, as the original
has none for texts. Expected: a row for
each choice of what the backward pass recomputes, see `UNetConfig.remat`: none,
products, narrow, attention, block; and `torch`, the peer: diffusers' UNet with bf16
parameters and fused AdamW, nothing recomputed; it needs torch and diffusers. Each is a
process of its own, so its peak of memory is its own; the JSON is written after each.
`count` needs no GPU: bytes that the forward pass leaves for the backward one, weights
aside, before the compiler makes fewer of them, and TFLOP of a step.

MFU is against the 782 TFLOP/s that a bf16 matmul reaches on an H200, and counts three
forward passes, whatever is recomputed.
"""

import argparse
import dataclasses
import os
import pathlib
import time
from importlib import import_module

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np
from profiling import by_kind, kernels
from report import Table, apart, peak
from videomv_kernels.benchmark.queue import queue_ms

from videomv_jax import compat, sharding
from videomv_jax.models.unet import UNet
from videomv_jax.presets import PRESETS
from videomv_jax.training.config import REMAT, TrainConfig
from videomv_jax.training.diffusion import DiffusionTask
from videomv_jax.training.flops import count
from videomv_jax.training.state import Networks, create_state
from videomv_jax.training.step import make_optimizer, make_step

TFLOP = 3 * 14.67 / 2  # of a clip's step, written plainly
CEILING = 782  # TFLOP/s of a large bf16 matmul on one H200


def run_config(model: str, clips: int, remat: str, dtype: str) -> TrainConfig:
    """A step on random latents, the text encoder frozen."""
    return TrainConfig(
        stage="diffusion",
        model=model,
        batch_size=clips,
        objects=8,
        train_text=False,
        compute_dtype=dtype,
        remat=remat,
        ema_decay=0.0,
    )


def ours(table, args, remat: str) -> None:
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
    dtype = "float32" if compat.on_cpu() else "bfloat16"
    config = run_config(args.model, args.clips, remat, dtype)
    task = DiffusionTask(config, PRESETS[args.model])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(config)
    start = time.perf_counter()
    state = create_state(task.networks, optimizer, config, mesh)
    whole = sharding.replicated(mesh)
    constants = jax.jit(task.random_constants, out_shardings=whole)(jax.random.key(1))
    jax.block_until_ready((state, constants))
    ready = time.perf_counter()
    table.add(f"remat {remat}: weights", (ready - start) * 1e3, **peak())
    index = jax.device_put(np.arange(args.clips) % config.objects, whole)
    inputs = constants, index, jax.device_put(jax.random.key(2), whole)
    with jax.set_mesh(mesh):
        lowered = make_step(task, optimizer, config).lower(state, *inputs)
        traced = time.perf_counter()
        step = lowered.compile()
    seconds = time.perf_counter() - traced
    table.add(
        f"remat {remat}: compile",
        seconds * 1e3,
        trace_s=traced - ready,
        **peak(),
    )
    losses = []

    def call():
        nonlocal state
        state, metrics = step(state, *inputs)
        losses.append(metrics["loss"])
        return metrics

    ms = queue_ms(call, jax.block_until_ready, args.calls)
    memory = step.memory_analysis()
    more = {}
    if args.model == "t2v":
        more["mfu"] = TFLOP * args.clips / ms * 1e3 / CEILING
    table.add(
        f"train step, {args.clips} clips, remat {remat}",
        ms,
        **more,
        scratch_gb=memory.temp_size_in_bytes / 1e9,
        state_gb=memory.argument_size_in_bytes / 1e9,
        **peak(),
        losses=f"{float(losses[0]):.4f} to {float(losses[-1]):.4f}",
    )
    if args.profile:
        rows = kernels(call)
        total = sum(ms for _, ms, _ in rows)
        more = dict(kinds=by_kind(rows), kernels=rows[:120])
        table.add(f"remat {remat}, sum of kernels", total, **more)


def count_rows(table, args) -> None:
    """From traces alone, of the UNet without the text encoder."""
    config = PRESETS[args.model]
    assert config.unet is not None and config.vae is not None
    n, views, side = args.clips, config.cameras.views, config.cameras.size
    side //= config.vae.downsampling
    shapes = (n, views, side, side, 4), (n,), (n, 77, config.unet.context_dim)
    x, t, context, camera = (
        jax.ShapeDtypeStruct(shape, np.float32) for shape in (*shapes, (n, views, 16))
    )
    for remat in REMAT:
        sizes = dataclasses.replace(config.unet, remat=remat)
        networks = Networks(lambda rngs, s=sizes: {"unet": UNet(s, rngs=rngs)})
        params = jax.eval_shape(networks.init, jax.random.key(0))

        def error(params, x, t, context, camera, networks=networks):
            unet = networks.merge(params)["unet"]
            y = unet(x, t, context, camera, key=jax.random.key(0))
            return jnp.square(y).mean()

        def residuals(params, *inputs, error=error):
            return jax.vjp(lambda p: error(p, *inputs), params)[1]

        inputs = params, x, t, context, camera
        left = jax.tree.leaves(jax.eval_shape(residuals, *inputs))
        # No weight has so few channels.
        large = [one for one in left if one.shape[:1] in ((n,), (n * views,))]
        size = sum(one.size * one.dtype.itemsize for one in large)
        traced = jax.jit(jax.grad(error)).trace(*inputs)
        table.add(
            f"counted: remat {remat}",
            residuals_gb=size / 1e9,
            tflop=count(traced.jaxpr) / 1e12,
        )


def torch_step(table, args) -> None:
    import torch

    diffusers = import_module("diffusers")

    def normal(*shape):
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    with torch.device("cuda"):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        unet = diffusers.UNet3DConditionModel().train()
        torch.set_default_dtype(dtype)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True)
    n = args.clips
    x, noise, context = (
        normal(*s) for s in ((n, 4, 24, 32, 32),) * 2 + ((n, 77, 1024),)
    )
    t = torch.full((n,), 500, device="cuda")

    def call():
        error = unet(x, t, context).sample.float() - noise.float()
        error.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    ms = queue_ms(call, lambda _: torch.cuda.synchronize(), args.calls)
    most = torch.cuda.max_memory_allocated() / 1e9
    mfu = TFLOP * n / ms * 1e3 / CEILING
    versions = f"torch {torch.__version__}"
    table.add(
        f"torch train step, {n} clips", ms, mfu=mfu, peak_gb=most, versions=versions
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="narrow,torch")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--cache", help="JAX's compilation cache")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--calls", type=int, default=16, help="in a queue")
    parser.add_argument("--model", choices=sorted(PRESETS), default="t2v")
    parser.add_argument("--profile", action="store_true", help="kernels of the step")
    args = parser.parse_args()
    rows = args.rows.split(",")
    if unknown := set(rows) - {*REMAT, "torch", "count"}:
        known = ", ".join((*REMAT, "torch", "count"))
        parser.error(f"unknown rows {sorted(unknown)}; there are {known}")
    table = Table({"jax": jax.__version__, "model": args.model}, args.json)
    for row in rows:
        if row == "count":
            count_rows(table, args)
        elif row == "torch":
            apart(table, torch_step, args)
        else:
            apart(table, ours, args, row)


if __name__ == "__main__":
    main()
