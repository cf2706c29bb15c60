"""A TPU program as the compiler leaves it before it writes machine code.

Machine code takes most of the compilation of a large step, and a plan needs none of it:
what a chip holds, computes and sends is settled before. The compiler has no option to
end there. So a child process compiles, with XLA's option to write down what it has, and
is ended when the scheduled program is there.
"""

import dataclasses
import multiprocessing
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from videomv_jax import compat
from videomv_jax.scale import hlo
from videomv_jax.types import InputError

_LAST = "*.after_optimizations_after_buffer_assignment.txt"
_MEMORY = "*.after_optimizations-buffer-assignment.txt"
_ALLOCATION = re.compile(r"allocation \d+: size (\d+),(?: color (\d+),)? (.*)")


@dataclasses.dataclass(frozen=True)
class Program:
    """One chip's program.

    Attributes:
        hlo: its text, scheduled.
        arguments, temporaries, others: bytes of HBM: what goes in, most of which comes
            out in the same place; what is made on the way; constants and what comes
            out elsewhere. Machine code is not in them.
        flops: operations of its kernels.
        bytes: between HBM and chip, see `hlo.memory_traffic`.
    """

    hlo: str
    arguments: int
    temporaries: int
    others: int
    flops: float
    bytes: int


class OutOfMemory(Exception):
    """A program that no chip has room for.

    Attributes:
        needed: bytes it wanted, with the compiler's reserves.
    """

    def __init__(self, needed: float):
        super().__init__(needed)
        self.needed = needed


def program(
    name: str,
    lower: Callable[..., tuple[Any, Any]],
    arguments: tuple,
    known: Callable[[Any], bool],
) -> tuple[Any, Program | OutOfMemory | None]:
    """The program of a jitted function.

    Args:
        name: of the function.
        lower: called in the child; returns the function lowered, and anything else
            about it.
        arguments: of `lower`. They go to the child, as does `lower`.
        known: told that anything else; where it says True nothing is compiled.

    Returns:
        The anything else, and the program; None if it is known.

    Raises:
        InputError: what `lower` raised.
        RuntimeError: the compiler failed, or wrote no such files.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        here, there = context.Pipe(duplex=False)
        child = context.Process(
            target=_compile, args=(there, where, name, lower, arguments), daemon=True
        )
        child.start()
        there.close()
        try:
            about = _told(here)
            if known(about):
                return about, None
            size = -1
            # Complete when it has stopped growing.
            while size <= 0 or size != _size(folder):
                size = _size(folder)
                if here.poll(1.0) and not _size(folder):
                    return about, _told(here)
            return about, read(folder)
        finally:
            child.kill()
            child.join()


def read(folder: Path) -> Program:
    """What the compiler wrote.

    Raises:
        RuntimeError: not what this can read.
    """
    (schedule,), (memory,) = (
        list(folder.glob(pattern)) for pattern in (_LAST, _MEMORY)
    )
    text = schedule.read_text()
    sizes: Counter[str] = Counter()
    for line in memory.read_text().splitlines():
        found = _ALLOCATION.match(line)
        if found and not found[2]:  # the other colours are memory on the chip
            kinds = ("parameter", "preallocated-temp")
            sizes[next((k for k in kinds if k in found[3]), "other")] += int(found[1])
    if not sizes["parameter"]:
        raise RuntimeError(f"plan: cannot read {memory.name}")
    return Program(
        hlo=text,
        arguments=sizes["parameter"],
        temporaries=sizes["preallocated-temp"],
        others=sizes["other"],
        flops=compat.flops_of_hlo(hlo.unrolled(text)),
        bytes=hlo.memory_traffic(text),
    )


def needed(error: Exception) -> float:
    """Bytes that a program wanted, from the compiler's refusal; else raises it."""
    text = str(error)
    # What the second calls temporaries is all: arguments are in it.
    used = re.search(
        r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|"
        r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds",
        text,
    )
    if used is None:
        raise error
    size, unit = (one for one in used.groups() if one is not None)
    return float(size) * 1024 ** (1 + "KMGT".index(unit))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(_LAST))


def _told(pipe: Connection) -> Any:
    try:
        told = pipe.recv()
    except EOFError:
        raise RuntimeError("plan: the process that compiles has died") from None
    if isinstance(told, OutOfMemory) or not isinstance(told, Exception):
        return told
    raise told


def _compile(pipe: Connection, folder: str, name: str, lower, arguments: tuple) -> None:
    """What the child does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it():
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
    os.environ["XLA_FLAGS"] = (
        f"--xla_dump_to={folder} --xla_dump_hlo_as_text "
        f"--xla_dump_hlo_module_re=jit_{name}"
    )
    jax.config.update("jax_platforms", "cpu")
    try:
        lowered, about = lower(*arguments)
    except InputError as error:
        pipe.send(error)
        return
    pipe.send(about)
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        try:
            pipe.send(OutOfMemory(needed(error)))
        except jax.errors.JaxRuntimeError:
            pipe.send(RuntimeError(str(error)))
    else:
        pipe.send(RuntimeError("plan: the compiler did not write down its program"))
