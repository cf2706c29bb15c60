"""What a command sets up before JAX computes."""

import os
from pathlib import Path

import jax
from rich.console import Console

from videomv_jax.types import InputError

_TIMEOUT = 300  # seconds for all processes of a run to find each other


def cache_folder(name: str) -> Path:
    """A folder of ours in the user's cache; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "videomv" / name


def use_compilation_cache(notes: Console) -> None:
    """Keep compiled programs between runs, which makes the second one start faster.

    They go where JAX_COMPILATION_CACHE_DIR says, or to videomv/jax in the user's
    cache folder. A folder that cannot be written costs speed only: it is a note.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder("jax")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            notes.print(f"note: no compilation cache, {folder} cannot be written")
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def join_hosts() -> None:
    """Make this process one of a run's, if it was launched as one of several.

    It was if JAX_COORDINATOR_ADDRESS is set, beside JAX_NUM_PROCESSES and
    JAX_PROCESS_ID; or if VIDEOMV_DISTRIBUTED=1, where JAX finds the others out from
    Slurm, Google's TPU hosts or GKE. `launch.sh` sets one of the two. Nothing of JAX
    may have run before.

    Raises:
        InputError: variables are missing, or the others did not come in time.
    """
    number: dict[str, int | str] = {}
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        number["coordinator_address"] = address
        for variable in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            text = os.environ.get(variable, "")
            if not text.isdigit():
                raise InputError(
                    f"{variable}: got {text!r}; want a number, as "
                    "JAX_COORDINATOR_ADDRESS is set"
                )
            number[variable.removeprefix("JAX_").lower()] = int(text)
    elif os.environ.get("VIDEOMV_DISTRIBUTED") != "1":
        return
    try:
        jax.distributed.initialize(
            **number,  # pyright: ignore[reportArgumentType]
            initialization_timeout=_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes of the run did not meet: {error}") from error


def console_of_the_first() -> Console:
    """A console that prints in the first process of a run and is quiet in others."""
    return Console(quiet=jax.process_index() != 0)
