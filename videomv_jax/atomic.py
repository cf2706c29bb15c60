"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from videomv_jax.types import InputError


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str], marker: str) -> Iterator[Path]:
    """Give an empty folder that takes the place of `target` on success.

    The work happens in a hidden sibling, so that the last step is a rename on one
    file system. On any exception, Ctrl-C included, the sibling is removed and an
    older `target` stays as it was.

    Args:
        target: the folder to make; its parents are made too.
        marker: a file every finished folder of this kind holds. An existing folder
            without it is somebody else's and is not replaced.

    Yields:
        The sibling to write into.

    Raises:
        InputError: target is a file, a foreign folder, or cannot be written.
    """
    target = Path(target).absolute()
    if target.exists() and not (target / marker).is_file():
        if not target.is_dir() or any(target.iterdir()):
            raise InputError(
                f"{target} exists and holds no {marker}: it is not ours to replace; "
                "choose another folder"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to {target.parent}: {error.strerror or error}"
        ) from error
    try:
        yield fresh
        fresh.chmod(0o777 & ~_umask())
        _swap(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, target: Path) -> None:
    """Rename fresh to target; an older target is moved aside, then deleted."""
    if not target.exists():
        fresh.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    target.rename(aside / "old")
    try:
        fresh.rename(target)
    except BaseException:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    """The process's umask (mkdtemp makes folders private, ours should not be)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
