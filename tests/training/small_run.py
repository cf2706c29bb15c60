"""A run of the small regression task as a program: for tests with several processes.

python small_run.py FOLDER [--set-like name=value ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax  # noqa: E402

from videomv_jax.cli.environment import console_of_the_first, join_hosts  # noqa: E402


def main() -> None:
    import dataclasses

    import numpy as np
    from test_training_loop import CONFIG, Reverse

    from videomv_jax.training.loop import train

    folder, *changes = sys.argv[1:]
    values = {k: v for k, v in (change.split("=") for change in changes)}
    types = {f.name: type(getattr(CONFIG, f.name)) for f in dataclasses.fields(CONFIG)}
    values = {name: types[name](text) for name, text in values.items()}
    task = Reverse()
    config = dataclasses.replace(CONFIG, out=folder, **values)
    train(task, config, console_of_the_first())
    if task.exported is not None:
        np.savez(f"{folder}/weights-{jax.process_index()}.npz", **task.exported)


join_hosts()
main()
