"""What a command sets up before JAX computes."""

import os
from pathlib import Path

import jax
from rich.console import Console


def use_compilation_cache(notes: Console) -> None:
    """Keep compiled programs between runs, which makes the second one start faster.

    They go where JAX_COMPILATION_CACHE_DIR says, or to videomv/jax in the user's
    cache folder. A folder that cannot be written costs speed only: it is a note.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "videomv" / "jax"
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
