"""Kernels on a mesh, whose arrays the compiler would gather for them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from videomv_kernels.rasterize.compat import varying_like


def over_axes(
    f: Callable[..., Any], axes: tuple[str, ...], *split: Any, shared: Sequence = ()
) -> Any:
    """`f(*split, *shared)`, on each device for its part of the first axis.

    Args:
        f: treats the positions of the first axis independently of each other, or has
            results of one position for a device, which come back side by side.
        axes: of the context's mesh, which split that axis; without any, it is just the
            call.
        split: arrays that they split.
        shared: arrays that every device reads whole.
    """
    if not axes:
        return f(*split, *shared)

    def local(*arguments):
        parts, wholes = arguments[: len(split)], arguments[len(split) :]
        return f(*parts, *(varying_like(x, parts[0]) for x in wholes))

    part = PartitionSpec(axes)
    return jax.shard_map(
        local,
        in_specs=(*[part] * len(split), *[PartitionSpec()] * len(shared)),
        out_specs=part,
        axis_names=set(axes),
    )(*split, *shared)
