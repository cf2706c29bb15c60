"""`videomv train`: run or resume the training that a config file describes."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[
        Path, typer.Option(help="A Python file with get_config(), see configs/.")
    ],
    set: Annotated[
        list[str] | None,
        typer.Option(help="Override a field of the config: name=value; repeatable."),
    ] = None,
) -> None:
    """Train the networks of one stage; the same command resumes an earlier run.

    On SIGTERM the run saves, and ends with exit code 0.
    """
    from videomv_jax.cli.environment import console_of_the_first, join_hosts
    from videomv_jax.training.config import load_config
    from videomv_jax.training.loop import train as run
    from videomv_jax.training.stages import make_task

    run_config = load_config(config, set or ())
    join_hosts()
    run(make_task(run_config), run_config, console_of_the_first())
