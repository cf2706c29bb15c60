"""Saving and resuming a run: state, data position and config in one place."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from rich.console import Console

from videomv_jax.training.config import TrainConfig
from videomv_jax.training.state import TrainState
from videomv_jax.types import InputError

# Fields that may differ between the run that saved and the one that resumes.
_FREE = {"out", "stop_after_minutes", "log_every", "sample_every", "save_every"}
_FREE |= {"keep", "keep_every", "init_from", "remat", "strategy"}
_FREE |= {
    f"{dcn}{a}" for dcn in ("", "dcn_") for a in ("data", "fsdp", "tensor", "view")
}


class Checkpoints:
    """Checkpoints of one run, written in the background.

    A checkpoint holds the training state, the position of the data iterator and
    the config; it appears under its final name only once complete. The random keys
    of a step follow from the config's seed and the state's step.
    """

    def __init__(self, folder: str | Path, config: TrainConfig, console: Console):
        self._config = dataclasses.asdict(config)
        self._folder = Path(folder).absolute()
        self._console = console
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, keep_period=config.keep_every or None
            ),
        )

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Start writing; returns before the files are complete."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                run=ocp.args.JsonSave(  # pyright: ignore[reportCallIssue]
                    {"config": self._config, "data": data_state}
                ),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, placed like `like`; None if the run
        has none yet.

        One that cannot be read is reported and moved to the folder "damaged" beside.

        Raises:
            InputError: the checkpoint was made with another config, or none of
                several can be read.
        """
        damaged = 0
        while (step := self._manager.latest_step()) is not None:
            error = None
            try:
                restored = self._read(step, like)
            except InputError:
                raise
            except Exception as caught:  # whatever orbax makes of damaged files
                error = caught
            if all(_said_by_all(error is None)):
                return restored  # pyright: ignore[reportPossiblyUnboundVariable]
            self._set_aside(step, error)
            damaged += 1
        if damaged:
            raise InputError(
                f"out: no checkpoint in {self._folder} can be read; choose another "
                "`out` to start anew"
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        run = self._manager.restore(
            step,
            args=ocp.args.Composite(run=ocp.args.JsonRestore()),
        )["run"]
        for name, value in run["config"].items():
            if name not in _FREE and self._config.get(name) != value:
                raise InputError(
                    f"{name}: the run to resume has {value!r}, the config "
                    f"{self._config.get(name)!r}; choose another `out` or set it back"
                )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        state = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(  # pyright: ignore[reportCallIssue]
                    abstract
                )
            ),
        )["state"]
        return state, run["data"]

    def _set_aside(self, step: int, error: Exception | None) -> None:
        place = self._folder.with_name("damaged") / str(step)
        reason = str(error).split("\n")[0][:200] if error else "another process says"
        self._console.print(
            f"checkpoint {step} cannot be read, moved to {place}: {reason}",
            style="red",
            markup=False,
        )
        if jax.process_index() == 0:
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            (self._folder / str(step)).rename(place)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _said_by_all(flag: bool) -> list[bool]:
    if jax.process_count() == 1:
        return [flag]
    return list(np.ravel(multihost_utils.process_allgather(np.array(flag))))
