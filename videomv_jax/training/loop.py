"""The training loop: read top to bottom, it is what a run does."""

import contextlib
import time
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from videomv_jax import sharding
from videomv_jax.training.checkpoint import Checkpoints
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.flops import count as count_flops
from videomv_jax.training.metrics import MetricWriter, mfu
from videomv_jax.training.state import TrainState, create_state
from videomv_jax.training.step import Task, make_optimizer, make_step
from videomv_jax.types import InputError

_STARTED = time.perf_counter()


def train(task: Task, config: TrainConfig, console: Console) -> Path:
    """Run or resume a run and export its model.

    Args:
        task: the stage, see `Task`.
        config: the run.
        console: where progress goes.

    Returns:
        The exported model folder, `<out>/model`: the moving average of the weights.

    Raises:
        FloatingPointError: the loss is not finite; nothing is saved after it was.
        InputError: the batch does not fit the mesh, or the run in `out` was made
            with another config.
    """
    out = Path(config.out)
    mesh = _mesh(config)
    state = create_state(
        task.networks,
        make_optimizer(config),
        jax.random.key(config.seed),
        mesh,
        task.initial,
    )
    data = _indices(config)
    with contextlib.ExitStack() as files:
        checkpoints = Checkpoints(out / "checkpoints", config)
        files.callback(checkpoints.close)
        if restored := checkpoints.restore(state):
            state, position = restored
            data.set_state(position)
            console.print(f"resumed at step {int(state.step)} from {out}")
        writer = MetricWriter(out, console, int(state.step))
        files.callback(writer.close)
        with jax.set_mesh(mesh):
            constants = jax.device_put(task.constants, sharding.replicated(mesh))
            state = _run(task, config, state, constants, data, checkpoints, writer)
    folder = out / "model"
    if jax.process_index() == 0:
        task.export(state.ema, constants, str(folder))
        console.print(f"wrote {folder}")
    return folder


def _run(
    task: Task,
    config: TrainConfig,
    state: TrainState,
    constants,
    data: grain.DatasetIterator,
    checkpoints: Checkpoints,
    writer: MetricWriter,
) -> TrainState:
    """Steps from where `state` stands to the end, or to the time limit."""
    mesh = jax.sharding.get_mesh()
    key = jax.random.key(config.seed + 1)
    local = config.batch_size // jax.process_count()
    index = sharding.put_batch(np.zeros(local, np.int64), mesh)
    with writer.console.status("compiling the step"):
        clock = time.perf_counter()
        step = make_step(task, make_optimizer(config), config)
        traced = step.trace(state, constants, index, key)
        flops = count_flops(traced.jaxpr)
        step = traced.lower().compile()
    size = sum(x.size for x in state.params.values())
    writer.console.print(
        f"{size / 1e6:.2f} M parameters, {flops / 1e12:.3g} TFLOP a step, "
        f"compiled in {time.perf_counter() - clock:.1f} s"
    )

    clock = time.perf_counter()
    logged = start = int(state.step)
    for number in range(start + 1, config.steps + 1):
        index = sharding.put_batch(next(data), mesh)
        state, metrics = step(state, constants, index, key)
        minutes = (time.perf_counter() - _STARTED) / 60
        last = number == config.steps or minutes > config.stop_after_minutes > 0
        log, save, show = (
            last or number % every == 0
            for every in (config.log_every, config.save_every, config.sample_every)
        )
        if log or save:
            names = sorted(metrics, key=lambda name: (name != "loss", name))
            values = {name: float(metrics[name]) for name in names}
            if not np.isfinite(values["loss"]):
                raise FloatingPointError(f"the loss at step {number} is not finite")
        if log:
            speed = (number - logged) / (time.perf_counter() - clock)
            pace = {"steps_per_s": speed, "objects_per_s": speed * config.batch_size}
            share = mfu(flops, speed)
            values |= pace if share is None else pace | {"mfu": share}
            writer.write(number, config.steps, values)
        if save:
            checkpoints.save(state, data.get_state())
        if show:
            writer.picture(number, task.sheet(state.ema, constants))
        if log or show:
            logged, clock = number, time.perf_counter()
        if last:
            break
    return state


def _mesh(config: TrainConfig) -> Mesh:
    mesh = sharding.make_mesh(
        data=config.data, fsdp=config.fsdp, tensor=config.tensor, view=config.view
    )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shards:
        raise InputError(
            f"batch_size: {config.batch_size} does not divide over {shards} shards"
        )
    return mesh


def _indices(config: TrainConfig) -> grain.DatasetIterator:
    """This process's share of shuffled object numbers, `[b]` a step, for ever."""
    count = jax.process_count()
    numbers = grain.MapDataset.range(config.objects).shuffle(seed=config.seed)
    numbers = numbers.repeat()[jax.process_index() :: count]
    batches = numbers.batch(config.batch_size // count, drop_remainder=True)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1)))
