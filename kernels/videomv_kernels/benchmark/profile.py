"""Which kernels the time of a call goes to."""

import collections
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax


def kernel_ms(call: Callable[[], Any], calls: int = 5) -> dict[str, float]:
    """Milliseconds of each GPU kernel in one call by name, the longest first.

    Empty where there is no GPU.

    Args:
        call: what to look into; compiled and run before.
        calls: how many to take the mean of.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                result = call()
            jax.block_until_ready(result)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    times: collections.Counter[str] = collections.Counter()
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    times[event.name] += event.duration_ns / calls / 1e6
    return dict(times.most_common())
