"""Real training steps on the devices that are here, one strategy after another."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from rich.table import Table

from videomv_jax import sharding
from videomv_jax.presets import PRESETS
from videomv_jax.scale.collectives import collectives, totals
from videomv_jax.scale.plan import trace
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.diffusion import DiffusionTask
from videomv_jax.training.flops import PEAK_FLOPS
from videomv_jax.training.flops import count as count_flops
from videomv_jax.training.state import create_state, make_mesh
from videomv_jax.training.step import make_optimizer
from videomv_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Measured:
    """Steps of one strategy on some devices.

    Attributes:
        strategy, mesh, batch, devices: what ran, on how many devices.
        device: their kind.
        seconds: of each step, after the first two, from the end of the one before; the
            next is handed over meanwhile, as a training run does.
        compile_seconds: of the step.
        flops: of a step, over all devices, see `training.flops`.
        memory: bytes a device needs, by the compiler.
        sent: bytes a device sends in a step, by kind and axes.
        losses: of all steps.
    """

    strategy: str
    mesh: dict[str, int]
    batch: int
    devices: int
    device: str
    seconds: tuple[float, ...]
    compile_seconds: float
    flops: float
    memory: float
    sent: dict[tuple[str, str], float]
    losses: tuple[float, ...]

    @property
    def mfu(self) -> float | None:
        """Share of the devices' bf16 peak, where it is known."""
        peak = PEAK_FLOPS.get(self.device)
        if peak is None:
            return None
        return self.flops / float(np.median(self.seconds)) / peak / self.devices


def measure(
    config: TrainConfig, devices: int, steps: int, say: Callable[[str], None]
) -> Measured:
    """Run steps of a diffusion run with random weights and random latents.

    Weights repeat a million random numbers: making others would take longer to compile
    than the step.

    Args:
        config: the run; `batch_size` is of all devices together.
        devices: how many of this process's devices.
        steps: timed ones, after two and before one that are not.
        say: told what is being done.

    Raises:
        InputError: more devices than there are, another stage, or sizes that do not
            divide.
    """
    if not 0 < devices <= jax.local_device_count():
        raise InputError(
            f"devices: got {devices}, this process has {jax.local_device_count()}"
        )
    if config.stage != "diffusion":
        raise InputError(f"bench: stage is {config.stage!r}; want 'diffusion'")
    if config.model not in PRESETS:
        raise InputError.unknown("model", config.model, PRESETS)
    mesh = make_mesh(config, jax.local_devices()[:devices])
    name = f"{config.strategy} on {devices}"
    say(f"{name}: compiling")
    clock = time.perf_counter()
    traced, _ = trace(config, PRESETS[config.model], mesh)
    flops = count_flops(traced.jaxpr)
    step = traced.lower().compile()
    compile_seconds = time.perf_counter() - clock
    say(f"{name}: making the state")
    task = DiffusionTask(config, PRESETS[config.model])
    optimizer = make_optimizer(config)
    block = 0.02 * np.random.default_rng(1).standard_normal(1 << 20, np.float32)
    shapes = jax.eval_shape(task.networks.init, jax.random.key(0))
    weights = {name: np.resize(block, x.shape) for name, x in shapes.items()}
    state = create_state(task.networks, optimizer, config, mesh, weights)
    del weights
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    constants = jax.jit(task.random_constants, out_shardings=task.placements(mesh))(
        jax.random.key(1)
    )
    numbers = np.random.default_rng(0).integers(
        0, config.objects, (steps + 3, config.batch_size)
    )
    index = [sharding.put(row, batch) for row in numbers]
    key = jax.device_put(jax.random.key(2), whole)
    losses, ends = [], []
    for number, one in enumerate(index):
        say(f"{name}: step {number + 1} of {len(index)}")
        state, metrics = step(state, constants, one, key)
        losses.append(metrics["loss"])
        if number:  # waits for the step before, as a training run queues them
            losses[-2] = float(losses[-2])
            ends.append(time.perf_counter())
    losses[-1] = float(losses[-1])
    memory = step.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Measured(
        strategy=config.strategy,
        mesh=dict(mesh.shape),
        batch=config.batch_size,
        devices=devices,
        device=mesh.devices.flat[0].device_kind,
        seconds=tuple(np.diff(ends[1:]).tolist()),
        compile_seconds=compile_seconds,
        flops=flops,
        memory=kept - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        sent=totals(collectives(step.as_text(), dict(mesh.shape))),
        losses=tuple(losses),
    )


def row(one: Measured, alone: Measured | None = None) -> dict[str, str]:
    """The figures as text; `alone` is the run on one device, if there is one."""
    median, scaling = float(np.median(one.seconds)), "-"
    if alone is not None:
        speed = alone.batch / float(np.median(alone.seconds))
        scaling = f"{one.batch / median / one.devices / speed:.1%}"
    sent = ", ".join(f"{k} {a} {n / 1e6:.1f}" for (k, a), n in one.sent.items())
    return {
        "strategy": one.strategy,
        "devices": f"{one.devices} x {one.device}",
        "mesh": " ".join(f"{a}={n}" for a, n in one.mesh.items() if n > 1) or "1",
        "batch": str(one.batch),
        "step ms, median": f"{1e3 * median:.1f}",
        "step ms, least": f"{1e3 * min(one.seconds):.1f}",
        "objects/s": f"{one.batch / median:.2f}",
        "of one device's, per device": scaling,
        "TFLOP a step": f"{one.flops / 1e12:.3f}",
        "MFU": "-" if one.mfu is None else f"{one.mfu:.1%}",
        "memory GiB": f"{one.memory / 2**30:.2f}",
        "last loss": f"{one.losses[-1]:.5g}",
        "compile s": f"{one.compile_seconds:.1f}",
        "sent MB by kind and axis": sent or "-",
    }


def rows_of(measured: Sequence[Measured]) -> list[dict[str, str]]:
    """All of them as text, beside the first that is of one device."""
    alone = next((one for one in measured if one.devices == 1), None)
    return [row(one, alone) for one in measured]


def table(measured: Sequence[Measured]) -> Table:
    """The rows, one column for each run."""
    rows = rows_of(measured)
    made = Table()
    made.add_column("")
    for one in rows:
        made.add_column(one["strategy"], justify="right", overflow="fold")
    for name in list(rows[0])[1:]:
        made.add_row(name, *(one[name] for one in rows))
    return made
