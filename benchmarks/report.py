"""A table of measurements that is never lost, and measurements apart from others."""

import contextlib
import json
import multiprocessing
import pathlib
import time
from typing import Any

import jax

HIDDEN = ("kernels", "kinds")  # in the JSON alone


class Table:
    """Prints rows as they come and writes all of them after each."""

    def __init__(self, about: dict[str, Any], path: pathlib.Path | None):
        self._about, self._path, self._rows = about, path, []
        self._start = time.time()
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print("| at | work | ms | more |\n|---|---|---|---|", flush=True)

    def add(self, work: str, ms: float | None = None, **more) -> None:
        at = round(time.time() - self._start, 1)
        self._rows.append({"at": at, "work": work, "ms": ms, **more})
        shown = ", ".join(f"{k} {cell(v)}" for k, v in more.items() if k not in HIDDEN)
        print(f"| {at} | {work} | {cell(ms)} | {shown} |", flush=True)
        if self._path:
            text = json.dumps(self._about | {"rows": self._rows}, indent=1) + "\n"
            self._path.write_text(text)


def cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def peak() -> dict[str, float]:
    """The most GB that this process had on its first device, where that is known."""
    stats = jax.devices()[0].memory_stats() or {}
    most = stats.get("peak_bytes_in_use")
    return {} if most is None else {"peak_gb": most / 1e9}


class Remote:
    """A `Table` in another process."""

    def __init__(self, queue):
        self._queue = queue

    def add(self, work: str, ms: float | None = None, **more) -> None:
        self._queue.put((work, ms, more))


def apart(table: Table, function, *args) -> None:
    """Run `function(table, *args)` in a fresh process.

    For torch, whose libraries are others, and for what is measured from a fresh start.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=function, args=(Remote(queue), *args))
    process.start()
    while process.is_alive() or not queue.empty():
        with contextlib.suppress(Exception):
            work, ms, more = queue.get(timeout=0.5)
            table.add(work, ms, **more)
    if process.exitcode:
        table.add(f"{function.__name__} failed: exit code {process.exitcode}")
