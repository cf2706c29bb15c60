"""Plans: the real train or sampling step, compiled for a topology that is not there.

libtpu compiles for any TPU topology on a CPU host, as far as `program` lets it.
Parameters are shapes; nothing of the model's size is ever in memory but the program.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from videomv_jax import compat, sharding
from videomv_jax.model_folder import ModelConfig
from videomv_jax.presets import PRESETS
from videomv_jax.scale import sampler
from videomv_jax.scale.chips import Bounds, bounds, chip_of
from videomv_jax.scale.collectives import SLICES, collectives, totals
from videomv_jax.scale.program import OutOfMemory, Program, program
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.diffusion import DiffusionTask
from videomv_jax.training.flops import count as count_flops
from videomv_jax.training.state import abstract_state, make_mesh
from videomv_jax.training.step import make_optimizer, make_step
from videomv_jax.types import InputError

Say = Callable[[str], None]
_READING = "4"
"""Changes when a plan reads a program otherwise: plans kept before are not found."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one chip does in a step.

    Attributes:
        topology, slices, strategy: what it was compiled for.
        mesh: sizes of the mesh axes, over all slices.
        step: a name in `STEPS`.
        batch: objects per step, over all chips; of a sampler prompts.
        parameters: those that are trained; those that a sampler's step reads.
        fits: whether the compiler found room in the chip's memory.
        total_bytes: memory the program needs, machine code apart; with the compiler's
            reserves where it does not fit.
        argument_bytes, temporary_bytes: of it, what goes in (state, constants,
            batch) and what is made on the way; None where it does not fit, as are the
            following.
        model_flops: matrix products and convolutions of the step as written, those
            that a backward pass repeats included, over the number of chips.
        flops: operations of the chip's kernels, as the compiler counts them.
        bytes: between the chip and its HBM, see `hlo.memory_traffic`.
        sent: bytes sent, by "kind axes".
        compile_seconds: what it took on this host.
    """

    topology: str
    strategy: str
    mesh: dict[str, int]
    batch: int
    parameters: int
    fits: bool
    total_bytes: float
    argument_bytes: float | None = None
    temporary_bytes: float | None = None
    model_flops: float | None = None
    flops: float | None = None
    bytes: float | None = None
    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    slices: int = 1
    step: str = "train"

    @property
    def sent_between_slices(self) -> float:
        """Bytes a chip sends over the data-centre network."""
        return sum(n for what, n in self.sent.items() if what.endswith(f" {SLICES}"))

    @property
    def bounds(self) -> Bounds | None:
        """Times of the step; None where it does not fit.

        What is sent between slices is not in them: its rate is the data centre's.
        """
        if self.flops is None or self.bytes is None:
            return None
        chip = chip_of(self.topology)
        sent = sum(self.sent.values()) - self.sent_between_slices
        return bounds(chip, self.flops, self.bytes, sent)


def plan(
    config: TrainConfig,
    topology: str,
    say: Say,
    cache: Path | None,
    slices: int = 1,
    step: str = "train",
) -> Plan:
    """Compile a step of a diffusion run for a TPU topology and read the program.

    Args:
        config: the run.
        topology: chip and shape, such as "v5e:16x16".
        say: told what is being done.
        cache: folder of earlier results, found again by the program and versions.
        slices: how many slices of that shape.
        step: a name in `STEPS`.

    Raises:
        InputError: another stage, an unknown step or topology, no libtpu, or a batch
            or model that the mesh does not divide.
    """
    chip_of(topology)
    if step not in STEPS:
        raise InputError.unknown("step", step, STEPS)
    if config.stage != "diffusion":
        raise InputError(f"plan: stage is {config.stage!r}; want 'diffusion'")
    if config.model not in PRESETS:
        raise InputError.unknown("model", config.model, PRESETS)
    file = Path()

    def known(about: tuple[Plan, dict[str, int], str]) -> bool:
        nonlocal file
        if cache is not None:
            file = cache / f"{about[-1]}.json"
        say(f"{name}: compiling")
        return file.is_file()

    name = f"{config.strategy}, batch {config.batch_size}"
    say(f"{name}: tracing")
    clock = time.perf_counter()
    arguments = (config, PRESETS[config.model], topology, slices, step)
    (found, within_slice, _), made = program(STEPS[step][0], _lower, arguments, known)
    if made is None:
        say(f"{name}: found in {file.parent}")
        return Plan(**json.loads(file.read_text()))
    if isinstance(made, OutOfMemory):
        found = dataclasses.replace(found, total_bytes=made.needed)
    else:
        found = _filled(found, made, within_slice)
    seconds = time.perf_counter() - clock
    found = dataclasses.replace(found, compile_seconds=seconds)
    if cache is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(dataclasses.asdict(found), indent=1))
        fresh.replace(file)
    return found


def largest_batch(
    config: TrainConfig,
    topology: str,
    say: Say,
    cache: Path | None,
    slices: int = 1,
    step: str = "train",
) -> Plan | None:
    """The plan with the largest batch that fits; None if not even the smallest does.

    Memory grows about linearly with the batch, so a few compilations find it: the
    smallest batch, twice that, then where the line through the last two meets the
    chip's memory, until one fits and the next larger does not.
    """
    mesh = make_mesh(
        dataclasses.replace(config, batch_size=2**30, accumulate=1),
        _devices(topology, slices),
    )
    unit = sharding.batch_shards(mesh) * config.accumulate
    memory = chip_of(topology).memory
    tried: dict[int, Plan] = {}

    def attempt(units: int) -> Plan:
        if units not in tried:
            run = dataclasses.replace(config, batch_size=units * unit)
            tried[units] = plan(run, topology, say, cache, slices, step)
        return tried[units]

    for units in (1, 2):
        if not attempt(units).fits:
            break
    while True:
        fitting = max((n for n, one in tried.items() if one.fits), default=0)
        too_large = min((n for n, one in tried.items() if not one.fits), default=0)
        if too_large == fitting + 1:
            return tried.get(fitting)
        # Where the line through the two largest meets the memory.
        a, b = sorted(tried)[-2:]
        slope = (tried[b].total_bytes - tried[a].total_bytes) / (b - a)
        guess = a + int((memory - tried[a].total_bytes) / max(slope, 1.0))
        highest = too_large - 1 if too_large else 4 * fitting
        attempt(min(max(guess, fitting + 1), highest))


def _devices(topology: str, slices: int) -> list:
    if slices < 1:
        raise InputError(f"slices: got {slices}, want at least 1")
    several = {"num_slices": slices} if slices > 1 else {}
    # Else libtpu asks the metadata server of a cloud host that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # And it must not lock chips: several plans may be made at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise InputError(
            "plan: libtpu is not installed; pip install 'videomv-jax[tpu]'"
        ) from None
    try:
        return topologies.get_topology_desc(topology, platform="tpu", **several).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(f"topology: {topology!r}: {error}") from error


def _lower(
    config: TrainConfig, model: ModelConfig, topology: str, slices: int, step: str
) -> tuple[jax.stages.Lowered, tuple[Plan, dict[str, int], str]]:
    """The step, and a plan with what is known before it is compiled.

    Beside it the sizes of the mesh within a slice, and a name for the program.
    """
    mesh = make_mesh(config, _devices(topology, slices))
    with compat.compiling_for("tpu"):
        traced, parameters = STEPS[step][1](config, model, mesh)
        model_flops = count_flops(traced.jaxpr) / mesh.devices.size
        lowered = traced.lower()
    text = lowered.as_text()
    empty = Plan(
        topology=topology,
        strategy=config.strategy,
        mesh=dict(mesh.shape),
        batch=config.batch_size,
        parameters=parameters,
        fits=False,
        total_bytes=0.0,
        model_flops=model_flops,
        slices=slices,
        step=step,
    )
    versions = (jax.__version__, metadata.version("libtpu"))
    parts = (_READING, topology, str(slices), *versions, text)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return lowered, (empty, _within_slice(mesh), digest)


def trace(config: TrainConfig, model: ModelConfig, mesh: Mesh) -> tuple[Any, int]:
    """The step of a diffusion run, traced for a mesh; how many parameters it trains."""
    task = DiffusionTask(config, model)
    optimizer = make_optimizer(config)
    state = abstract_state(task.networks, optimizer, config, mesh)
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def placed(place, x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    constants = jax.tree.map(
        lambda place, part: jax.tree.map(functools.partial(placed, place), part),
        task.placements(mesh),
        task.constants,
    )
    index = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=batch)
    key = placed(whole, jax.eval_shape(lambda: jax.random.key(0)))
    with jax.set_mesh(mesh):
        traced = make_step(task, optimizer, config).trace(state, constants, index, key)
    return traced, sum(x.size for x in state.params.values())


STEPS: Mapping[str, tuple[str, Callable[..., tuple[Any, int]]]] = {
    "train": ("step", trace),
    "denoise": ("_advance", functools.partial(sampler.trace, aware=False)),
    "denoise_3d": ("_advance", functools.partial(sampler.trace, aware=True)),
}
"""What can be planned: the function's name, and what traces it. The sampler's steps are
guided ones, of the loop that the pipeline runs, without and with the projection."""


def _within_slice(mesh: Mesh) -> dict[str, int]:
    """Sizes of the axes of the part of a mesh that lies in one slice."""
    number = np.vectorize(lambda device: getattr(device, "slice_index", 0))(
        mesh.devices
    )
    inside, first = {}, number.ravel()[0]
    for i, axis in enumerate(mesh.axis_names):
        line = number[tuple(slice(None) if i == j else 0 for j in range(number.ndim))]
        inside[axis] = int((line == first).sum())
    return inside


def _filled(empty: Plan, made: Program, within_slice: dict[str, int]) -> Plan:
    total = made.arguments + made.temporaries + made.others
    sent = totals(collectives(made.hlo, within_slice))
    return dataclasses.replace(
        empty,
        fits=True,
        total_bytes=float(total),
        argument_bytes=float(made.arguments),
        temporary_bytes=float(made.temporaries),
        flops=made.flops,
        bytes=float(made.bytes),
        sent={f"{kind} {axes}": size for (kind, axes), size in sent.items()},
    )
