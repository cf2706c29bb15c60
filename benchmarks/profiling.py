"""Which kernels of a GPU take how long."""

import collections
import glob
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from jax.profiler import ProfileData

_REPEATS = 3


def kernels(call: Callable[[], Any]) -> list[tuple[str, float, int]]:
    """Kernels of a call: name and HLO operation, milliseconds, how many.

    The longest come first. Within command buffers the operation is not known:
    compile with `xla_gpu_enable_command_buffer=""` to see it.
    """
    jax.block_until_ready(call())
    found: dict[str, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_REPEATS):
                result = call()
            jax.block_until_ready(result)
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        for plane in ProfileData.from_file(file).planes:
            lines = plane.lines if "GPU" in plane.name else ()
            for line in (one for one in lines if "Stream" in one.name):
                for event in line.events:
                    op = dict(event.stats).get("hlo_op", "")
                    key = f"{event.name} ({op})"
                    ms, count = found.get(key, (0.0, 0))
                    found[key] = ms + event.duration_ns / 1e6 / _REPEATS, count + 1
    rows = [(name, ms, count // _REPEATS) for name, (ms, count) in found.items()]
    return sorted(rows, key=lambda row: -row[1])


def by_kind(rows: list[tuple[str, float, int]]) -> list[tuple[str, float, int]]:
    """Kernels that differ in numbers alone, added up: name, milliseconds, how many."""
    ms: collections.defaultdict[str, float] = collections.defaultdict(float)
    counts: collections.Counter[str] = collections.Counter()
    for name, time, count in rows:
        kind = re.sub(r"[\d.]+", "#", name.split(" (")[0])
        ms[kind] += time
        counts[kind] += count
    return [(kind, ms[kind], counts[kind]) for kind in sorted(ms, key=lambda k: -ms[k])]
