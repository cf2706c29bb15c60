"""The device mesh and the one table from logical axis names to mesh axes.

Models name the dimensions of their parameters (`axes` metadata, see
`models/layers.py`) and know nothing of devices. Everything here is placement.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from videomv_jax.types import InputError

MESH_AXES = ("data", "fsdp", "tensor", "view")
BATCH_AXES, VIEW_AXIS = ("data", "fsdp"), "view"

# Logical name -> mesh axis. Names that map to None are replicated.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "conv_in": "fsdp",
    "conv_out": "tensor",
    "length": None,
    "norm": None,
}


def make_mesh(
    *, data: int = -1, fsdp: int = 1, tensor: int = 1, view: int = 1, devices=None
) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        data, fsdp, tensor, view: sizes; one of them may be -1, the rest of the
            devices.
        devices: the devices to use, all by default.

    Raises:
        InputError: sizes whose product is not the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor, view]
    named = ", ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise InputError(f"mesh: {named}; want positive sizes, at most one -1")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices.size // known
    if int(np.prod(sizes)) != devices.size:
        raise InputError(f"mesh: {named} does not divide {devices.size} devices")
    return Mesh(
        devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes)
    )


def ambient_axes() -> dict[str, int]:
    """Sizes of the axes above 1 of the mesh that `jax.set_mesh` set.

    Empty without one, and inside `shard_map`, where somebody has split already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        return {}
    return {name: size for name, size in mesh.shape.items() if size > 1}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy per device."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(
    mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> NamedSharding:
    """Where one parameter lives.

    Args:
        name: its path, for errors.
        shape: its shape.
        axes: the logical name of each dimension (None: replicated).

    Raises:
        InputError: a name without a rule, two dimensions on one mesh axis, or a
            dimension the mesh axis does not divide.
    """
    if len(axes) != len(shape):
        raise InputError(f"{name}: axes {axes} do not fit shape {shape}")
    unknown = [a for a in axes if a is not None and a not in RULES]
    if unknown:
        raise InputError(f"{name}: no sharding rule for axis {unknown[0]!r}")
    spec = [None if a is None else RULES[a] for a in axes]
    spec = [a if a is not None and mesh.shape[a] > 1 else None for a in spec]
    used = [a for a in spec if a is not None]
    if len(set(used)) < len(used):
        raise InputError(f"{name}: axes {axes} collide on mesh axes {spec}")
    for size, axis in zip(shape, spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise InputError(
                f"{name}: dimension {size} of {shape} is not divisible by mesh axis "
                f"{axis}={mesh.shape[axis]}"
            )
    return NamedSharding(mesh, PartitionSpec(*spec))


def put_batch(batch, mesh: Mesh):
    """This process's share of a batch, as global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
