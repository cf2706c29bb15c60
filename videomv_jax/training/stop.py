"""When a run stops before its last step, agreed by all its processes."""

import collections
import enum
import signal
import threading
import time
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomv_jax import sharding

_STARTED = time.perf_counter()
# A process reads what all have said this many steps ago: by then the devices know, so
# that asking does not make the host wait for them.
_LAG = 2


class Wish(enum.IntEnum):
    """What a process wants; the strongest wish of all is done."""

    GO_ON = 0
    TIME_IS_OVER = 1
    TERMINATED = 2


class Stop:
    """Watches the clock and SIGTERM; as a context, it catches the signal."""

    def __init__(self, minutes: float, mesh: Mesh):
        """Args: minutes since the program started (0: no limit), the run's mesh."""
        self._minutes = minutes
        self._terminated = False
        self._old = None
        self._said: collections.deque[jax.Array] = collections.deque()
        self._flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = mesh.devices.size
        self._strongest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    def __enter__(self) -> "Stop":
        # Python allows handlers in the main thread only; elsewhere the clock is left.
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *_) -> None:
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def wish(self) -> Wish:
        """What to do after this step: every process calls it once a step.

        With several processes the answer is two steps old, and the same for all.
        """
        minutes = (time.perf_counter() - _STARTED) / 60
        own = Wish.GO_ON
        if minutes > self._minutes > 0:
            own = Wish.TIME_IS_OVER
        if self._terminated:
            own = Wish.TERMINATED
        if jax.process_count() == 1:
            return own
        said = np.full(self._devices, own, np.int32)
        self._said.append(self._strongest(sharding.put(said, self._flags)))
        if len(self._said) <= _LAG:
            return Wish.GO_ON
        return Wish(int(self._said.popleft()))
