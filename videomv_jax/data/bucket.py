"""Shards to a bucket: each is made in a temporary folder and put up whole.

fsspec speaks to the bucket: gs:// with gcsfs (the extra `gcs`), s3:// with s3fs. What
lies there decides what is left to do, as in a folder: a shard's records go up before
its .json, which says that it is complete.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec

from videomv_jax.data.shards import MANIFEST
from videomv_jax.types import InputError

Publish = Callable[[list[str]], None]


@contextlib.contextmanager
def staged(out: str) -> Iterator[tuple[Path, Publish]]:
    """A local folder for what belongs at `out`, and what puts files of it there.

    For a folder, that is the folder itself and nothing. For an address it is a
    temporary one: with the manifest that lies there, and with empty files by the names
    of its other .json, for `shards.complete`. Files are put up in their order, and are
    gone here then, but for .json.

    Args:
        out: a folder or an address.

    Raises:
        InputError: the address cannot be understood, reached or written.
    """
    if "://" not in out:
        yield Path(out), lambda names: None
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            files, root = fsspec.url_to_fs(out, skip_instance_cache=True)
            there = _names(files, root)
            if MANIFEST in there:
                files.get_file(f"{root}/{MANIFEST}", str(folder / MANIFEST))
        except ImportError as error:
            raise InputError(
                f"out: {out}: {error}; `pip install videomv-jax[gcs]` for gs://"
            ) from error
        except Exception as error:  # every bucket's library has its own
            raise InputError(f"out: {out} cannot be read: {error}") from error
        for name in there - {MANIFEST}:
            if name.endswith(".json"):
                (folder / name).touch()

        def publish(names: list[str]) -> None:
            for name in names:
                local, remote = folder / name, f"{root}/{name}"
                try:
                    files.put_file(str(local), remote)
                    size = files.info(remote)["size"]
                except Exception as error:
                    raise InputError(
                        f"out: cannot write {out}/{name}: {error}"
                    ) from error
                if size != (want := local.stat().st_size):
                    raise InputError(f"out: {out}/{name}: {size} bytes came of {want}")
                if not name.endswith(".json"):
                    local.unlink()

        yield folder, publish


def _names(files: fsspec.AbstractFileSystem, root: str) -> set[str]:
    """Of the files in a folder of a bucket, which need not be there."""
    try:
        return {path.rsplit("/", 1)[-1] for path in files.ls(root, detail=False)}
    except FileNotFoundError:
        return set()
