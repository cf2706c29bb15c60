"""Metrics of a run: terminal, CSV and TensorBoard."""

import csv
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from tensorboardX import SummaryWriter

from videomv_jax import media


class MetricWriter:
    """Writes what process 0 sees to `<folder>`: metrics.csv, tensorboard/, samples/.

    Scalars also go to the terminal, `console`.

    The CSV grows when a run resumes; rows past the resumed step are dropped first.
    """

    def __init__(self, folder: Path, console: Console, start_step: int):
        self._active = jax.process_index() == 0
        self.console = console
        if not self._active:
            return
        self._samples = folder / "samples"
        self._samples.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.csv"
        self._csv: csv.DictWriter | None = None
        kept = _rows_until(path, start_step)
        # Beside the old file, which is there until the new one is: nothing is lost to
        # a run that is killed here.
        fresh = path.with_suffix(".new")
        self._file = fresh.open("w", newline="")
        for row in kept:
            self._append(row)
        self._file.flush()
        fresh.replace(path)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)

    def write(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """One line; `values` are Python floats with the same names every time."""
        if not self._active:
            return
        self._append({"step": step} | {k: f"{v:.6g}" for k, v in values.items()})
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.console.print(f"step {step}/{total}  {text}", highlight=False)

    def picture(self, step: int, sheet: np.ndarray) -> None:
        """A sheet of samples `[h, w, 3]` as samples/<step>.png."""
        if self._active:
            media.write_png(self._samples / f"{step:07d}.png", sheet)

    def close(self) -> None:
        """Close the files."""
        if self._active:
            self._file.close()
            self._board.close()

    def _append(self, row: Mapping[str, object]) -> None:
        if self._csv is None:
            self._csv = csv.DictWriter(self._file, list(row))
            self._csv.writeheader()
        self._csv.writerow(row)


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        # A run that is killed may leave half a line.
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [row for row in rows if int(row["step"]) <= step]
