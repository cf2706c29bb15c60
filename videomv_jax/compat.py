"""Everything that differs between JAX versions or installed backends."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target", default=None
)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Programs traced inside are for another platform than this process's own."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def _platform() -> str:
    return _target.get() or jax.default_backend()


def has_cuda() -> bool:
    """Whether programs are for an NVIDIA GPU."""
    return _platform() == "gpu"


def on_cpu() -> bool:
    """Whether programs are for the CPU."""
    return _platform() == "cpu"
