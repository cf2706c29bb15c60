"""Jitted functions that run executables compiled ahead of time, saved and loaded.

Executables of JAX are saved as they are, not as StableHLO (`jax.export`): compiling is
what takes minutes, and StableHLO would be compiled again by every process.
"""

import json
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from videomv_jax import atomic, compat
from videomv_jax.types import InputError

_INDEX = "programs.json"


class Program:
    """A jitted function of `weights` and other arrays.

    Called with shapes it was compiled for ahead of time it runs that executable,
    otherwise it compiles as any jitted function does.
    """

    def __init__(self, function: Callable, static: tuple[str, ...] = ()):
        """Args: the function, its static keyword arguments."""
        self._jitted = jax.jit(
            function,
            static_argnames=static,
            compiler_options=compat.compiler_options(),
        )
        self.ready: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args, **static):
        compiled = self.ready.get(_signature(args, static))
        return self._jitted(*args, **static) if compiled is None else compiled(*args)

    def trace(self, *args, **static) -> jax.stages.Traced:
        """Trace for arrays, or shapes of arrays."""
        return self._jitted.trace(*args, **static)

    def is_ready(self, args: tuple, static: dict) -> bool:
        """Whether there is an executable for such arguments."""
        return _signature(args, static) in self.ready

    def keep(self, compiled: jax.stages.Compiled, args: tuple, static: dict) -> None:
        """Run `compiled` whenever called with such arguments."""
        self.ready[_signature(args, static)] = compiled


def _signature(args: tuple, static: Mapping[str, Any]) -> Any:
    # Not of the weights, which come first and are always the same.
    leaves, tree = jax.tree.flatten(args[1:])
    shapes = tuple((x.shape, x.dtype.name) for x in leaves)
    return tree, shapes, tuple(sorted(static.items()))


def save(
    directory: str | os.PathLike[str], programs: Mapping[str, Program], model: str
) -> None:
    """Write all executables of some programs; the folder appears whole or not at all.

    Args:
        directory: the folder; an older one of this kind is replaced.
        programs: by name.
        model: what the executables belong to, compared when they are loaded.

    Raises:
        InputError: nothing is compiled yet, XLA cannot save a program, or the folder
            cannot be written.
    """
    found = [
        (name, key, compiled)
        for name, program in programs.items()
        for key, compiled in program.ready.items()
    ]
    if not found:
        raise InputError("nothing is compiled yet; call compile or generate before")
    with atomic.replacing(directory, _INDEX) as folder:
        for number, (name, key, compiled) in enumerate(found):
            try:
                parts = key, *serialize_executable.serialize(compiled)
            except jax.errors.JaxRuntimeError as error:
                raise InputError(f"XLA cannot save {name!r}: {error}") from error
            (folder / f"{number}.bin").write_bytes(pickle.dumps(parts))
        index = {"made_for": _here(model), "programs": [name for name, *_ in found]}
        (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def load(
    directory: str | os.PathLike[str], programs: Mapping[str, Program], model: str
) -> None:
    """Read the executables that `save` wrote.

    Whoever can write these files can run code in this process: load your own alone.

    Raises:
        InputError: no such folder, or one for another device, version or model.
    """
    folder = Path(directory)
    try:
        index = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} holds no compiled programs: {error}") from error
    made, here = index["made_for"], _here(model)
    if other := [key for key in here if made.get(key) != here[key]]:
        told = ", ".join(f"{key} {made.get(key)}, here {here[key]}" for key in other)
        raise InputError(f"{directory} was compiled for something else: {told}")
    device = jax.devices()[0]
    for number, name in enumerate(index["programs"]):
        key, *parts = pickle.loads((folder / f"{number}.bin").read_bytes())
        programs[name].ready[key] = serialize_executable.deserialize_and_load(
            *parts, execution_devices=[device]
        )


def _here(model: str) -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "model": model,
        "device": device.device_kind,
        "runtime": device.client.platform_version,
        "jax": jax.__version__,
    }


def compile_all(
    lowered: Iterable[tuple[Program, jax.stages.Lowered, tuple, dict]],
    told: Callable[[int, int], None],
) -> None:
    """Compile programs and have them keep the executables.

    Side by side where the compiler allows it.

    Args:
        lowered: programs with their traces and the arguments of those.
        told: hears how many are done, of how many so far.
    """
    pool = compat.compiling_pool()
    try:
        futures = []
        for program, trace, args, static in lowered:
            futures.append((pool.submit(trace.compile), program, args, static))
            told(0, 1)
        for number, (future, program, args, static) in enumerate(futures, 1):
            program.keep(future.result(), args, static)
            told(number, len(futures))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
