"""A small regression run for tests: as a function, and as a program.

python small_run.py FOLDER [task=reverse|host|small|tiny] [name=value ...]

reverse: the small regression task. host: the same, its objects on the host. small: a
UNet of one level on eight random views. tiny: the embedded model, trained further on
eight views of 32 pixels.
"""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from videomv_jax import presets, sharding
from videomv_jax.cli.environment import console_of_the_first, join_hosts
from videomv_jax.models.layers import linear
from videomv_jax.training import stages
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.diffusion import DiffusionTask
from videomv_jax.training.feed import Numbers
from videomv_jax.training.loop import train
from videomv_jax.training.state import Networks
from videomv_jax.training.step import Task

QUIET = Console(quiet=True)
CONFIG = TrainConfig(
    stage="autoencoder",
    steps=12,
    batch_size=16,
    objects=64,
    learning_rate=0.05,
    warmup_steps=2,
    log_every=1,
    save_every=4,
    sample_every=100,
)

CLIPS = TrainConfig(
    stage="diffusion",
    steps=50,
    batch_size=8,
    objects=16,
    learning_rate=3e-4,
    warmup_steps=5,
    log_every=1,
    save_every=50,
    sample_every=0,
)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = linear(4, 8, dtype=jnp.float32, rngs=rngs)
        self.second = linear(8, 4, axes=("mlp", "embed"), dtype=jnp.float32, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class Host(Numbers):
    """Vectors that lie on the host: each process hands its devices theirs."""

    threads = 2

    def __init__(self, x):
        super().__init__(len(x))
        self.x = x

    def load(self, numbers):
        return {"number": numbers, "x": self.x[numbers]}


class Reverse:
    """Learn to reverse vectors; noise in the loss shows whether keys resume."""

    def __init__(self, poison=False, noise=0.1, spike_at=-1, broken_at=-1, host=False):
        self.noise, self.events = noise, (spike_at, broken_at)
        self.networks = Networks(lambda rngs: {"net": Net(rngs)})
        self.initial = {}
        x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        self.constants = {"x": x * np.float32(np.nan if poison else 1)}
        self.feed = Host(x) if host else Numbers(64)
        self.exported = None

    def loss(self, networks, constants, batch, key):
        index = batch["number"] if isinstance(batch, dict) else batch
        x = batch["x"] if isinstance(batch, dict) else constants["x"][index]
        noisy = x + self.noise * jax.random.normal(key, x.shape)
        error = jnp.square(networks["net"](noisy) - x[:, ::-1]).mean()
        for step, factor in zip(self.events, (1e4, np.nan), strict=True):
            if step < 0:
                continue
            # The step's key tells which step it is.
            wanted = jax.random.fold_in(jax.random.key(CONFIG.seed + 1), step - 1)
            same = (jax.random.key_data(wanted) == jax.random.key_data(key)).all()
            error = error * jnp.where(same, factor, 1.0)
        return error, {"index_sum": index.sum().astype(jnp.float32)}

    def placements(self, mesh):
        return sharding.replicated(mesh)

    def sheet(self, params, constants):
        return np.zeros((8, 8, 3), np.float32)

    def export(self, params, constants, folder):
        self.exported = jax.device_get(params)


def losses(folder):
    """The first columns of the run's metrics: step, loss, norm, objects, rate."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [line.split(",")[:5] for line in lines]


def run(folder, task=None, console=QUIET, **changes):
    task = task or Reverse()
    train(task, dataclasses.replace(CONFIG, out=str(folder), **changes), console)
    return task.exported


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(folder: Path, count: int, *changes: str, devices: int = 8):
    """Processes with eight devices together, or so many."""
    port = free_port()
    started = []
    for i in range(count):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}",
        }
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(i),
            }
        command = [sys.executable, __file__, str(folder), *changes]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    return started


def finish(processes, timeout=150):
    texts = [p.communicate(timeout=timeout)[0] for p in processes]
    return [p.returncode for p in processes], texts


def main() -> None:
    join_hosts()
    console = console_of_the_first()
    folder, *changes = sys.argv[1:]
    values = {k: v for k, v in (change.split("=") for change in changes)}
    kind = values.pop("task", "reverse")
    clips = {"small": small, "tiny": few_views}
    base = CLIPS if kind in clips else CONFIG
    types = {f.name: type(getattr(base, f.name)) for f in dataclasses.fields(base)}
    values = {name: types[name](text) for name, text in values.items()}
    config = dataclasses.replace(base, out=folder, **values)
    if kind in clips:
        train(clips[kind](config), config, console)
        return
    task = Reverse(host=kind == "host")
    train(task, config, console)
    if task.exported is not None:
        np.savez(f"{folder}/weights-{jax.process_index()}.npz", **task.exported)


def small(config: TrainConfig) -> DiffusionTask:
    sizes = dataclasses.replace(
        presets.TINY.unet, multipliers=(1,), attention_levels=1, dropout=0.1
    )
    text = dataclasses.replace(presets.TINY.text_encoder, layers=1)
    cameras = dataclasses.replace(presets.TINY.cameras, views=8, size=32)
    model = dataclasses.replace(
        presets.TINY, unet=sizes, text_encoder=text, cameras=cameras
    )
    task = Unsaved(config, model)
    task.constants = jax.jit(task.random_constants)(jax.random.key(1))
    return task


class Unsaved(DiffusionTask):
    def export(self, params, constants, folder):
        pass


def few_views(config: TrainConfig) -> Task:
    cameras = dataclasses.replace(presets.TINY.cameras, views=8, size=32)
    stages.PRESETS = {"tiny": dataclasses.replace(presets.TINY, cameras=cameras)}
    return stages.make_task(dataclasses.replace(config, init_from="tiny"))


if __name__ == "__main__":
    main()
