"""Time inference at the released size on one GPU, beside torch.

    python benchmarks/inference.py [--rows unet,vae,torch,views,...] [--json FILE] \\
        [--cache DIR] [--calls N] [--repeats N] [--model t2v|tiny] [--profile]

Weights are random, in bfloat16 on a GPU. Expected: a table that grows row by row, and
after each row the same as JSON, so that nothing is lost when time is up. Rows:

    unet      one forward pass of a guidance batch: 24 views, 32x32 latents, 2 texts
    clips     the same of two clips, which share nothing
    choices   the same with one choice at a time undone
    vae       24 images of 256x256 decoded, and encoded
    torch     the peers of these, diffusers' modules, eager; needs torch and diffusers
    torch_compiled   the UNet after torch.compile
    plain     a prompt to 24 views, no 3D: DDIM 50, DPM-Solver++ 20
    views     a prompt to 24 views and Gaussians: the same, 3 steps 3D-aware
    batch     8 prompts with DPM-Solver++ 20, per prompt
    memory    the same from a fresh process, with little memory
    compile   the programs of `VideoMV.compile`: first, from JAX's cache, loaded

Times are medians of queues that are filled without waiting. Few minutes do for
unet,vae,torch. `--model tiny` runs everywhere and says nothing about speed.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch comes after

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from profiling import by_kind, kernels
from report import Table, apart, peak
from videomv_kernels.benchmark.queue import queue_ms
from videomv_kernels.group_norm import api as group_norm

from videomv_jax import compat
from videomv_jax.data.tokenizer import train_tokenizer
from videomv_jax.model_folder import PARTS, LoadedModel, ModelConfig, abstract
from videomv_jax.models import attention, norms, rounding
from videomv_jax.pipeline import VideoMV
from videomv_jax.presets import PRESETS

PROMPT = "a red chair with blue legs"
# Of the released sizes, written plainly: multiply-adds of matmuls and convolutions, as
# torch counts them, times two.
TFLOP = {"unet": 14.67, "decode": 14.9, "encode": 6.6}
SAMPLERS = (("ddim", 50), ("dpmpp", 20))


# Models with random weights, made on the device.


def sizes(name: str, dtype: str | None = None) -> ModelConfig:
    """A preset, its networks in a type; None: the one inference takes here."""
    config = PRESETS[name]
    dtype = dtype or ("float32" if compat.on_cpu() else "bfloat16")
    parts = {
        part: dataclasses.replace(network, dtype=dtype)
        for part in PARTS
        if (network := getattr(config, part))
    }
    return dataclasses.replace(config, **parts)


def network(part: str, config: Any) -> nnx.Module:
    """A network with random weights, held as inference holds them.

    Activations keep about unit size, also through layers that training starts at 0.
    """
    module = abstract(lambda rngs: PARTS[part](config, rngs=rngs))
    rounding.cast_weights(module)
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    shapes = [(str(path[-1]), param.get_value()) for path, param in state]
    rng = np.random.default_rng(0)
    most = max(int(np.prod(x.shape)) for _, x in shapes)
    pool = rng.standard_normal(most + 2**20, np.float32)
    offsets = rng.integers(0, 2**20, len(shapes))

    def make(leaf, x, offset):
        if leaf in ("scale", "bias"):
            return np.full(x.shape, leaf == "scale", x.dtype)
        values = pool[offset : offset + int(np.prod(x.shape))].reshape(x.shape)
        fan_in = np.prod(x.shape[1:]) if len(x.shape) == 4 else x.shape[0]
        gain = np.float32(0.5 / np.sqrt(fan_in) if leaf == "kernel" else 0.02)
        return (gain * values).astype(x.dtype)

    with ThreadPoolExecutor() as threads:
        made = threads.map(make, *zip(*shapes, strict=True), offsets)
        for (_, param), values in zip(state, made, strict=True):
            param.set_value(jax.device_put(values))
    return module


def video_mv(config: ModelConfig, folder: str, *, low_memory: bool = False) -> VideoMV:
    """A whole model, or without 3D, with a tokenizer of few words."""
    tokenizer = pathlib.Path(folder) / "tokenizer"
    train_tokenizer([PROMPT, config.sampling.negative_prompt]).save_pretrained(
        tokenizer
    )
    parts: dict[str, Any] = {
        part: network(part, sizes) if (sizes := getattr(config, part)) else None
        for part in PARTS
    }
    loaded = LoadedModel(config, **parts, tokenizer_dir=tokenizer)
    return VideoMV(loaded, low_memory=low_memory)


# Single networks.


def compiled(function, *args, options: dict | None = None):
    """The executable, seconds of tracing, seconds of compiling, GB of scratch."""
    options = compat.compiler_options() if options is None else options
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    traced = time.perf_counter()
    run = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - traced
    memory = run.memory_analysis()
    scratch = memory.temp_size_in_bytes / 1e9 if memory else None
    more = dict(trace_s=traced - start, compile_s=seconds, scratch_gb=scratch)
    return run, more


def timed(table: Table, args, work: str, run, inputs, flops: str, **more) -> None:
    ms = queue_ms(lambda: run(*inputs), jax.block_until_ready, args.calls)
    if args.model == "t2v":
        more |= {"tflops": TFLOP[flops] / ms * 1e3}
    table.add(work, ms, **more)


def unet_inputs(config: ModelConfig, clips: int = 1):
    """Latents, time, two texts and cameras: of one clip, as guidance has them."""
    unet, cameras = config.unet, config.cameras
    assert unet is not None and config.vae is not None
    side = cameras.size // config.vae.downsampling

    @jax.jit
    def make():
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = (
            (clips, cameras.views, side, side, unet.in_channels),
            (2, 77, unet.context_dim),
            (clips, cameras.views, unet.camera_dim),
        )
        return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    x, context, camera = make()
    return x, jnp.full((clips,), 500), context, camera


def unet_rows(table: Table, args) -> None:
    config = sizes(args.model)
    graph, weights = nnx.split(network("unet", config.unet))
    inputs = unet_inputs(config)

    def forward(weights, *inputs):
        return nnx.merge(graph, weights)(*inputs)

    if "unet" in args.rows:
        run, more = compiled(forward, weights, *inputs)
        inputs_all = (weights, *inputs)
        timed(table, args, "UNet forward", run, inputs_all, "unet", **more)
        if args.profile:
            options = compat.compiler_options()
            if compat.has_cuda():  # within a command buffer kernels have no names
                options |= {"xla_gpu_enable_command_buffer": ""}
            run, _ = compiled(forward, weights, *inputs, options=options)
            found = kernels(lambda: run(weights, *inputs))
            table.add(
                "UNet forward, sum of kernels",
                sum(ms for _, ms, _ in found),
                kinds=by_kind(found),
                kernels=found[:120],
            )
    if "clips" in args.rows:
        two = unet_inputs(config, 2)
        run, more = compiled(forward, weights, *two)
        timed(
            table, args, "UNet forward, two clips", run, (weights, *two), "unet", **more
        )
    if "choices" not in args.rows:
        return
    undone = {
        "XLA for attention over views": mock.patch.object(
            attention.view_attention, "supports", lambda *_: False
        ),
        "XLA for group norms": mock.patch.object(
            norms.group_norm, "supports", lambda *_: False
        ),
        "XLA for layer norms": mock.patch.object(
            norms.layer_norm, "supports", lambda *_: False
        ),
        "several kernels for every group norm": mock.patch.object(
            group_norm, "_whole", lambda *_, **__: None
        ),
        "XLA for attention to the text": mock.patch.object(
            attention, "_FLASH_FROM", 10**9
        ),
    }
    for option in compat.compiler_options():
        others = {k: v for k, v in compat.compiler_options().items() if k != option}
        undone[f"XLA's own {option}"] = mock.patch.object(
            compat, "compiler_options", lambda others=others: others
        )
    for name, patch in undone.items():
        with patch:
            # A new function: traces are cached by it.
            again = functools.partial(forward)
            run, more = compiled(again, weights, *inputs)
        work = f"UNet forward, {name}"
        timed(table, args, work, run, (weights, *inputs), "unet", **more)


def vae_rows(table: Table, args) -> None:
    config = sizes(args.model)
    assert config.vae is not None
    graph, weights = nnx.split(network("vae", config.vae))
    size, views = config.cameras.size, config.cameras.views
    side = size // config.vae.downsampling
    latents = jax.random.normal(jax.random.key(1), (views, side, side, 4))
    images = jax.random.uniform(jax.random.key(2), (views, size, size, 3))
    for name, x in (("decode", latents), ("encode", images)):

        def through(weights, x, name=name):
            return getattr(nnx.merge(graph, weights), name)(x)

        run, more = compiled(through, weights, x)
        timed(table, args, f"VAE {name}", run, (weights, x), name, **more)


# Whole prompts.


class Stages:
    """Seconds of each stage, from what the progress callback hears."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.finish()
            self._stage = stage

    def finish(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = now - self._since
        self._since = now


def generate(model: VideoMV, prompts: list[str], sampler: str, steps: int):
    """Milliseconds, seconds of each stage, and what was dropped."""
    stages, start = Stages(), time.perf_counter()
    made = model.generate(prompts, sampler=sampler, steps=steps, progress=stages)
    jax.block_until_ready(made.gaussians)
    ms = (time.perf_counter() - start) * 1e3
    stages.finish()
    seconds = {f"{k}_s": v for k, v in stages.seconds.items() if k != "compiling"}
    return ms, seconds, made.dropped


def views_rows(table: Table, args, row: str) -> None:
    config, batch = sizes(args.model), 8 if row == "batch" else 1
    if row == "plain":
        sampling = dataclasses.replace(config.sampling, steps_3d=())
        config = dataclasses.replace(config, reconstructor=None, sampling=sampling)
    with tempfile.TemporaryDirectory() as folder:
        model = video_mv(config, folder)
        start = time.perf_counter()
        model.compile(batch)
        seconds = time.perf_counter() - start
        table.add(f"{row}: compile for {batch}", seconds * 1e3, **peak())
        for sampler, steps in SAMPLERS[1:] if batch > 1 else SAMPLERS:
            steps = args.steps or steps
            run = functools.partial(generate, model, [PROMPT] * batch, sampler, steps)
            run()
            runs = [run() for _ in range(args.repeats)]
            ms, stages, dropped = sorted(runs, key=lambda r: r[0])[len(runs) // 2]
            work = f"{row}: {batch} x text to views, {sampler} {steps}, per prompt"
            table.add(work, ms / batch, **stages, dropped=dropped, **peak())


def memory_rows(table, args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = video_mv(sizes(args.model), folder, low_memory=True)
        held = peak()
        model.compile(1)
        most = peak()
        for sampler, steps in SAMPLERS[1:]:
            generate(model, [PROMPT], sampler, args.steps or steps)
            ms, stages, _ = generate(model, [PROMPT], sampler, args.steps or steps)
            table.add(
                "text to views in low memory",
                ms,
                weights_gb=held.get("peak_gb"),
                compiled_gb=most.get("peak_gb"),
                **stages,
                **peak(),
            )


def compile_row(table, args, work: str, compiled: str, cache: str) -> None:
    """Compile everything for one prompt and save it, or load what was saved."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    with tempfile.TemporaryDirectory() as folder:
        model = video_mv(sizes(args.model), folder)
        start = time.perf_counter()
        if work.startswith("load"):
            model.load_compiled(compiled)
        model.compile(1)
        seconds = time.perf_counter() - start
        table.add(work, seconds * 1e3)
        if work.startswith("compile") and not compat.on_cpu():
            model.save_compiled(compiled)
        generate(model, [PROMPT], "dpmpp", 2)
        table.add(f"{work}, then the first 2 steps", None, **peak())


def torch_rows(table, args) -> None:
    import torch

    diffusers = import_module("diffusers")

    def made(kind, **config):
        with torch.device("cuda"):
            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            module = kind(**config).eval()
            torch.set_default_dtype(dtype)
        return module

    def time_it(work, call, flops, **more):
        def wait(_):
            torch.cuda.synchronize()

        with torch.inference_mode():
            start = time.perf_counter()
            wait(call())
            more["first_s"] = time.perf_counter() - start
            ms = queue_ms(call, wait, args.calls)
        table.add(work, ms, tflops=TFLOP[flops] / ms * 1e3, **more)

    def normal(*shape):
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    unet = made(diffusers.UNet3DConditionModel)
    x, context = normal(2, 4, 24, 32, 32), normal(2, 77, 1024)
    t = torch.full((2,), 500, device="cuda")
    versions = f"torch {torch.__version__}"
    if "torch" in args.rows:
        vae = made(
            diffusers.AutoencoderKL,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        latents, images = normal(24, 4, 32, 32), normal(24, 3, 256, 256)
        time_it(
            "torch UNet forward, eager",
            lambda: unet(x, t, context).sample,
            "unet",
            versions=versions,
        )
        time_it("torch VAE decode", lambda: vae.decode(latents).sample, "decode")
        time_it("torch VAE encode", lambda: vae.encode(images).latent_dist, "encode")
    if "torch_compiled" in args.rows:
        fast = torch.compile(unet)
        time_it(
            "torch UNet forward, torch.compile",
            lambda: fast(x, t, context).sample,
            "unet",
            versions=versions,
        )


ROWS = (
    "unet",
    "clips",
    "choices",
    "vae",
    "torch",
    "torch_compiled",
    "plain",
    "views",
    "batch",
    "memory",
    "compile",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="unet,vae,torch,views")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--cache", help="JAX's compilation cache")
    parser.add_argument("--calls", type=int, default=10, help="in a queue")
    parser.add_argument("--repeats", type=int, default=3, help="of whole prompts")
    parser.add_argument("--steps", type=int, help="of both samplers")
    parser.add_argument("--model", choices=sorted(PRESETS), default="t2v")
    parser.add_argument("--profile", action="store_true", help="kernels of the UNet")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown rows {sorted(unknown)}; there are {', '.join(ROWS)}")
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    device = jax.devices()[0]
    about = {"device": device.device_kind, "jax": jax.__version__, "model": args.model}
    table = Table(about, args.json)
    wanted = set(args.rows)
    if wanted & {"unet", "clips", "choices"}:
        unet_rows(table, args)
    if "vae" in wanted:
        vae_rows(table, args)
    if wanted & {"torch", "torch_compiled"}:
        apart(table, torch_rows, args)
    for row in ("plain", "views", "batch"):
        if row in wanted:
            views_rows(table, args, row)
    if "memory" in wanted:
        apart(table, memory_rows, args)
    if "compile" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            paths = (f"{folder}/compiled", f"{folder}/cache")
            works = ("compile first", "load", "compile from cache", "load from cache")
            for work in works[:: 2 if compat.on_cpu() else 1]:  # a CPU saves none
                apart(table, compile_row, args, work, *paths)


if __name__ == "__main__":
    main()
