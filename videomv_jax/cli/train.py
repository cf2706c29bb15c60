"""`videomv train`: run or resume the training that a config file describes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def train(
    config: Annotated[
        Path, typer.Option(help="A Python file with get_config(), see configs/.")
    ],
    set: Annotated[
        list[str] | None,
        typer.Option(help="Override a field of the config: name=value; repeatable."),
    ] = None,
) -> None:
    """Train the networks of one stage; the same command resumes an earlier run."""
    from videomv_jax.training.config import load_config
    from videomv_jax.training.loop import train as run
    from videomv_jax.training.stages import make_task

    run_config = load_config(config, set or ())
    run(make_task(run_config), run_config, Console())
