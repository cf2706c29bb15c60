"""Progress of a command that runs in stages."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Stages:
    """A line per stage, with a bar where it runs, and the seconds each one took.

    Call it as `videomv_jax.sampling.programs.Progress`. On a terminal the lines are
    alive; elsewhere each is printed when its stage ends.

    As a context it also sees to Ctrl-C: JAX swallows a KeyboardInterrupt that comes at
    certain moments while it traces, so the next call here raises it again.

    Attributes:
        seconds: how long each stage took, in their order.
    """

    def __init__(self, console: Console, told: Callable[[str], Any] | None = None):
        """Begin.

        Args:
            console: to draw on.
            told: is told of each stage that begins, and nothing is drawn: what runs is
                part of something that has a bar already.
        """
        self.seconds: dict[str, float] = {}
        self._console, self._told = console, told
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or told is not None,
        )
        self._stage: str | None = None
        self._task: TaskID | None = None
        self._began = 0.0
        self._interrupted = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say that `stage` has done `done` of `total`; another stage ends this one."""
        if self._interrupted:
            raise KeyboardInterrupt
        if stage != self._stage:
            self.end()
            self._stage, self._began = stage, time.perf_counter()
            self._task = self._bars.add_task(stage, total=total)
            if self._told is not None:
                self._told(stage)
        assert self._task is not None
        self._bars.update(self._task, completed=done, total=total)

    def __enter__(self) -> "Stages":
        self._outside = signal.signal(signal.SIGINT, self._interrupt)
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._outside)
        if kind is None:
            self.end()
        self._bars.stop()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def end(self) -> None:
        """End the stage that runs and note how long it took."""
        if self._stage is None or self._task is None:
            return
        seconds = time.perf_counter() - self._began
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + seconds
        task = self._bars.tasks[self._task]
        self._bars.update(self._task, completed=task.total)
        if not self._console.is_terminal and self._told is None:
            self._console.print(f"{self._stage:14} {seconds:6.1f} s")
        self._stage = None
