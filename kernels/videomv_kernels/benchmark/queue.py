"""Time calls that return before they are done."""

import statistics
import time
from collections.abc import Callable
from typing import Any

_QUEUES = 5


def queue_ms(call: Callable[[], Any], wait: Callable[[Any], Any], calls: int) -> float:
    """Milliseconds of a call.

    Calls are queued without waiting, so that gaps between launches do not count. The
    result is the median of a few such queues, after one, divided by their length.

    Args:
        call: what to time.
        wait: returns when a result of `call`, and all before it, is there.
        calls: length of a queue.
    """
    times = []
    for _ in range(_QUEUES + 1):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        times.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(times[1:])
