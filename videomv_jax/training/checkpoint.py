"""Saving and resuming a run: state, data position and config in one place."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from videomv_jax.training.config import TrainConfig
from videomv_jax.training.state import TrainState
from videomv_jax.types import InputError

# Fields that may differ between the run that saved and the one that resumes.
_FREE = {"out", "stop_after_minutes", "log_every", "sample_every", "save_every", "keep"}
_FREE |= {"data", "fsdp", "tensor", "view", "init_from"}


class Checkpoints:
    """Checkpoints of one run, written in the background.

    A checkpoint holds the training state, the position of the data iterator and
    the config; it appears under its final name only once complete.
    """

    def __init__(self, folder: str | Path, config: TrainConfig):
        self._config = dataclasses.asdict(config)
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep),
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
        """The newest checkpoint, placed like `like`; None if there is none.

        Raises:
            InputError: the checkpoint was made with another config.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
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

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
