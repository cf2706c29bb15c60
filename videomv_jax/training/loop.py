"""The training loop: read top to bottom, it is what a run does."""

import contextlib
import time
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from videomv_jax import sharding
from videomv_jax.training import parts
from videomv_jax.training.checkpoint import Checkpoints
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.feed import Batch, batches
from videomv_jax.training.flops import count as count_flops
from videomv_jax.training.flops import mfu
from videomv_jax.training.metrics import MetricWriter
from videomv_jax.training.state import TrainState, create_state, make_mesh
from videomv_jax.training.step import BROKEN, Task, make_optimizer, make_step
from videomv_jax.training.stop import Stop, Wish


def train(task: Task, config: TrainConfig, console: Console) -> Path | None:
    """Run or resume a run and export its model.

    Every process of the run calls it; the first one writes.

    Args:
        task: the stage, see `Task`.
        config: the run.
        console: where progress goes.

    Returns:
        The exported model folder, `<out>/model`: the moving average of the weights, or
        they themselves where none is kept (`ema_decay` 0). None if the run was
        terminated; it is saved, and the same call goes on.

    Raises:
        FloatingPointError: the loss is not finite; nothing is saved after it was.
        InputError: the batch does not fit the mesh, the run in `out` was made with
            another config, or no checkpoint of it can be read.
    """
    out = Path(config.out)
    mesh = make_mesh(config)
    state = create_state(
        task.networks, make_optimizer(config), config, mesh, task.initial
    )
    place = sharding.batch_sharding(mesh)
    data = batches(task.feed, config, sharding.local_rows(place, config.batch_size))
    with contextlib.ExitStack() as files:
        checkpoints = Checkpoints(out / "checkpoints", config, console)
        files.callback(checkpoints.close)
        if restored := checkpoints.restore(state):
            state, position = restored
            data.set_state(position)
            console.print(f"resumed at step {int(state.step)} from {out}")
        writer = MetricWriter(out, console, int(state.step))
        files.callback(writer.close)
        constants = sharding.put(task.constants, task.placements(mesh))
        stop = files.enter_context(Stop(config.stop_after_minutes, mesh))
        run = _Run(task, config, mesh, constants, data, checkpoints, writer, stop)
        state, wish = run.steps(state)
    if wish == Wish.TERMINATED:
        console.print(f"terminated at step {int(state.step)}; the same command goes on")
        return None
    folder = out / "model"
    weights, constants = run.local(state)
    if jax.process_index() == 0:
        task.export(weights, constants, str(folder))
        console.print(f"wrote {folder}")
    return folder


class _Run:
    """What the steps of a run share."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        mesh: Mesh,
        constants: Any,
        data: grain.DatasetIterator,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        stop: Stop,
    ):
        self.task, self.config, self.mesh = task, config, mesh
        self.constants, self.data = constants, data
        self.checkpoints, self.writer, self.stop = checkpoints, writer, stop

    def steps(self, state: TrainState) -> tuple[TrainState, Wish]:
        """From where `state` stands to the end, or to where the run has to stop."""
        config, batch = self.config, sharding.batch_sharding(self.mesh)
        key = _replicated_key(config.seed + 1, self.mesh)
        example = sharding.put_rows(self._example(), batch, config.batch_size)
        step, flops = self._compile(state, example, key)

        clock, waited = time.perf_counter(), 0.0
        logged = start = int(state.step)
        wish = Wish.GO_ON
        for number in range(start + 1, config.steps + 1):
            waiting = time.perf_counter()
            read = sharding.put_rows(next(self.data), batch, config.batch_size)
            waited += time.perf_counter() - waiting
            state, metrics = step(state, self.constants, read, key)
            wish = self.stop.wish()
            last = number == config.steps or wish != Wish.GO_ON
            log, save = (
                last or number % every == 0
                for every in (config.log_every, config.save_every)
            )
            if log or save:
                names = sorted(metrics, key=lambda name: (name != "loss", name))
                values = {name: float(metrics[name]) for name in names}
                if broken := int(values.pop(BROKEN)):
                    raise FloatingPointError(f"the loss at step {broken} is not finite")
            if log:
                seconds = time.perf_counter() - clock
                speed = (number - logged) / seconds
                values |= {
                    "steps_per_s": speed,
                    "objects_per_s": speed * config.batch_size,
                    "data_wait": waited / seconds,
                }
                if config.source:
                    values["unreadable"] = len(self.task.feed.problems)
                if (share := mfu(flops, speed)) is not None:
                    values["mfu"] = share
                self.writer.write(number, config.steps, values)
            if save:
                self.checkpoints.save(state, self.data.get_state())
            show = config.sample_every and wish != Wish.TERMINATED
            show = show and (last or number % config.sample_every == 0)
            if show:
                self._show(number, state)
            if log or show:
                logged, clock, waited = number, time.perf_counter(), 0.0
            if last:
                break
        return state, wish

    def _example(self) -> Batch:
        """The rows of this process of some batch, for their shapes."""
        rows = sharding.local_rows(
            sharding.batch_sharding(self.mesh), self.config.batch_size
        )
        first = self.task.feed.numbers(self.config.seed)[0]
        return self.task.feed.load(np.stack([np.asarray(first)] * len(rows)))

    def local(self, state: TrainState) -> tuple[parts.Params, Any]:
        """The model to export and the constants, whole, on one device of each process.

        All processes call it.
        """
        trained, frozen, constants = (
            sharding.local_copy(x, self.mesh)
            for x in (state.exported, state.frozen, self.constants)
        )
        return parts.merge(trained, frozen), constants

    def _compile(self, state, index, key):
        with self.writer.console.status("compiling the step"):
            clock = time.perf_counter()
            # The mesh of the context places activations; samples are made without.
            with jax.set_mesh(self.mesh):
                step = make_step(self.task, make_optimizer(self.config), self.config)
                traced = step.trace(state, self.constants, index, key)
                flops = count_flops(traced.jaxpr)
                step = traced.lower().compile()
        trained, frozen = (
            sum(x.size for x in part.values()) for part in (state.params, state.frozen)
        )
        self.writer.console.print(
            f"{trained / 1e6:.2f} M parameters, {frozen / 1e6:.2f} M frozen, "
            f"{flops / 1e12:.3g} TFLOP a step, on "
            f"{', '.join(f'{a}={n}' for a, n in self.mesh.shape.items())}, "
            f"compiled in {time.perf_counter() - clock:.1f} s"
        )
        return step, flops

    def _show(self, number: int, state: TrainState) -> None:
        weights, constants = self.local(state)
        if jax.process_index() == 0:
            sheet = self.task.sheet(weights, constants)
            self.writer.picture(number, sheet)


def _replicated_key(seed: int, mesh: Mesh):
    whole = sharding.replicated(mesh)
    return jax.jit(lambda: jax.random.key(seed), out_shardings=whole)()
