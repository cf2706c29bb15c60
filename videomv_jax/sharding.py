"""The device mesh and the one table from logical axis names to mesh axes.

Models name the dimensions of their parameters (`axes` metadata, see
`models/layers.py`) and of some activations, and know nothing of devices. Everything
here is placement.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from videomv_jax.types import InputError

MESH_AXES = ("data", "fsdp", "tensor", "view")
BATCH_AXES, VIEW_AXIS = ("data", "fsdp"), "view"

# Logical name -> mesh axis or axes. Names that map to None are replicated.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    # Parameters.
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "conv_in": "fsdp",
    "conv_out": "tensor",
    "length": None,
    "norm": None,
    # Activations: one mesh axis splits views where layers are spatial and pixels
    # where they are temporal; changing from one to the other is an all-to-all.
    "batch": BATCH_AXES,
    "views": VIEW_AXIS,
    "pixels": VIEW_AXIS,
}

# Strategy -> how many devices of a slice an axis takes at most: the greatest common
# divisor with what is left. `data` takes the rest. 64 is the largest power of two that
# divides every width of the released UNet.
STRATEGIES: Mapping[str, Mapping[str, int]] = {
    "dp": {},
    "fsdp": {"fsdp": 64},
    "tp": {"tensor": 4},
    "fsdp_tp": {"tensor": 4, "fsdp": 64},
    "view": {"view": 4},
    "fsdp_view": {"view": 4, "fsdp": 64},
}


def make_mesh(
    strategy: str = "dp",
    *,
    ici: Mapping[str, int] | None = None,
    dcn: Mapping[str, int] | None = None,
    devices=None,
    slices: int | None = None,
) -> Mesh:
    """A mesh over all devices of all processes.

    Each axis is a part across slices (over the data-centre network, slow) times a
    part within a slice (over the chips' own links, fast).

    Args:
        strategy: a name in `STRATEGIES`.
        ici: sizes within a slice that differ from the strategy's; one may be -1, the
            rest of the slice. 0 is as good as unnamed.
        dcn: sizes across slices, likewise; unnamed, `data` takes all slices.
        devices: the devices to use, all by default.
        slices: how many slices the devices form, in their order; None: what the
            devices say, which is one for everything but several TPU slices.

    Raises:
        InputError: an unknown strategy or axis, or sizes whose product is not the
            number of devices of a slice, or of slices.
    """
    if strategy not in STRATEGIES:
        raise InputError.unknown("strategy", strategy, STRATEGIES)
    groups = _slices(list(jax.devices() if devices is None else devices), slices)
    inner = _sizes("mesh", STRATEGIES[strategy], ici or {}, len(groups[0]))
    outer = _sizes("mesh across slices", {}, dcn or {}, len(groups))
    blocks = np.empty(len(groups), object)
    for i, group in enumerate(groups):
        blocks[i] = mesh_utils.create_device_mesh(
            inner, devices=group, allow_split_physical_axes=True
        )
    # The part across slices is the outer one of every axis.
    grid = np.block(blocks.reshape(outer).tolist())
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _slices(devices: list, count: int | None) -> list[list]:
    if count is not None:
        if count < 1 or len(devices) % count:
            raise InputError(f"slices: {count} does not divide {len(devices)} devices")
        size = len(devices) // count
        return [devices[i : i + size] for i in range(0, len(devices), size)]
    numbers = sorted({getattr(d, "slice_index", 0) for d in devices})
    groups = [
        [d for d in devices if getattr(d, "slice_index", 0) == n] for n in numbers
    ]
    if len({len(group) for group in groups}) > 1:
        raise InputError(f"slices differ in size: {[len(g) for g in groups]} devices")
    return groups


def _sizes(
    what: str, most: Mapping[str, int], given: Mapping[str, int], devices: int
) -> list[int]:
    """The size of every mesh axis: as given, as the strategy says, the rest."""
    for axis in given:
        if axis not in MESH_AXES:
            raise InputError.unknown("mesh axis", axis, MESH_AXES)
    named = {axis: size for axis, size in given.items() if size}
    text = f"{what}: {', '.join(f'{a}={s}' for a, s in named.items()) or 'default'}"
    rest = [axis for axis, size in named.items() if size == -1]
    if len(rest) > 1 or any(size < -1 for size in named.values()):
        raise InputError(f"{text}; want positive sizes, at most one -1")
    sizes = {axis: size for axis, size in named.items() if size > 0}
    left = devices // math.prod(sizes.values()) or 1
    for axis, limit in most.items():
        if axis not in named and not rest:
            sizes[axis] = math.gcd(limit, left)
            left //= sizes[axis]
    if rest or "data" not in named:
        sizes[rest[0] if rest else "data"] = left
    if math.prod(sizes.values()) != devices:
        raise InputError(f"{text} does not divide {devices} devices")
    return [sizes.get(axis, 1) for axis in MESH_AXES]


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def ambient_axes() -> dict[str, int]:
    """Sizes of the axes above 1 of the mesh that `jax.set_mesh` set.

    Empty without one, and inside `shard_map`, where somebody has split already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        return {}
    return {name: size for name, size in mesh.shape.items() if size > 1}


def splits_parameters() -> bool:
    """Whether the ambient mesh splits parameters, not only what is made with them."""
    return bool(ambient_axes().keys() & {"fsdp", "tensor"})


def batch_axes(size: int) -> tuple[str, ...] | None:
    """The axes of `ambient_axes` that split a batch; None if others split arrays, too.

    Nor does a batch count that they do not divide.
    """
    axes = ambient_axes()
    alone = axes.keys() <= set(BATCH_AXES)
    return tuple(axes) if alone and size % math.prod(axes.values()) == 0 else None


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """One copy per device."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(
    mesh: Mesh | AbstractMesh,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
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
    return NamedSharding(mesh, PartitionSpec(*_spec(mesh.shape, name, shape, axes)))


def _spec(
    sizes: Mapping[str, int],
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
) -> list[tuple[str, ...] | str | None]:
    """The mesh axes of each dimension; axes of size 1 shard nothing."""
    spec, used = [], []
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in RULES:
            raise InputError(f"{name}: no sharding rule for axis {axis!r}")
        rule = None if axis is None else RULES[axis]
        rule = (rule,) if isinstance(rule, str) else rule or ()
        rule = tuple(a for a in rule if sizes[a] > 1)
        used += rule
        parts = math.prod(sizes[a] for a in rule)
        if size % parts:
            named = ", ".join(f"{a}={sizes[a]}" for a in rule)
            raise InputError(
                f"{name}: dimension {size} of {shape} ({axis}) is not divisible by "
                f"mesh axis {named}"
            )
        spec.append(rule[0] if len(rule) == 1 else rule or None)
    if len(set(used)) < len(used):
        raise InputError(f"{name}: axes {axes} collide on mesh axes {spec}")
    return spec


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Place an activation on the mesh of the context; without one, x as it is.

    Args:
        x: any array under `jax.jit`.
        axes: logical names of its leading dimensions (None: whole on every device).
            The compiler places the others, and a batch that does not divide, such as
            a part of one.

    Raises:
        InputError: views or pixels that the mesh does not divide.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if math.prod(sizes.values()) == 1:
        return x
    parts = math.prod(sizes[axis] for axis in BATCH_AXES)
    shape = x.shape[: len(axes)]
    split = [
        None if axis == "batch" and size % parts else axis
        for axis, size in zip(axes, shape, strict=True)
    ]
    spec: list[Any] = _spec(sizes, "activation", shape, tuple(split))
    spec += [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
    for i, axis in enumerate(axes):
        if axis != split[i]:
            spec[i] = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def over_views(
    f: Callable[..., Any], *split: Any, shared: tuple = (), axis: int = 1
) -> Any:
    """`f(*split, *shared)`, on each device for its own part of one axis.

    For operations that want the leading axes merged, which the compiler cannot do
    without gathering the activations when two of them are sharded. On a mesh without
    `view`, or without a mesh, it is just the call.

    Args:
        f: treats the positions of the axis independently of each other.
        split: arrays whose `axis` the mesh axis `view` splits, as it splits the
            result's.
        shared: arrays that every device of `view` reads whole.
        axis: which one.
    """
    if dict(jax.sharding.get_abstract_mesh().shape).get("view", 1) == 1:
        return f(*split, *shared)
    part = PartitionSpec(*[None] * axis, "view")
    return jax.shard_map(
        f,
        in_specs=(*[part] * len(split), *[PartitionSpec()] * len(shared)),
        out_specs=part,
        axis_names={"view"},
    )(*split, *shared)


def over_devices(
    f: Callable[..., jax.Array],
    *inputs: tuple[jax.Array, tuple[str | None, ...]],
    result: tuple[str | None, ...],
) -> jax.Array:
    """`f` of some arrays, on each device of the ambient mesh for its own part.

    For a GPU's kernels, which the compiler cannot split: it would gather their inputs
    whole on every device. A dimension that its mesh axes do not divide is whole. An
    array that is whole goes in as one copy for each device, so that the sums of its
    gradients are not made in here, one by one, but with all others at the end.

    Args:
        f: treats the positions along named axes independently of each other.
        inputs: arrays, each with the logical names of its dimensions (None: whole).
        result: those of the result, none that no input has.
    """
    sizes = ambient_axes()
    if not sizes:
        return f(*(x for x, _ in inputs))
    over: dict[str | None, tuple[str, ...] | None] = {None: None}
    for x, axes in inputs:
        for axis, size in zip(axes, x.shape, strict=True):
            rule = RULES[axis] if axis else None
            rule = (rule,) if isinstance(rule, str) else rule or ()
            names = tuple(name for name in rule if name in sizes)
            whole = size % math.prod(sizes[name] for name in names)
            over[axis] = None if whole else names or None

    def spec(axes):
        return PartitionSpec(*[over[axis] for axis in axes])

    used = tuple(dict.fromkeys(n for names in over.values() for n in names or ()))
    copies = math.prod(sizes[name] for name in used)
    whole = [not any(over[axis] for axis in axes) for _, axes in inputs]

    def local(*xs):
        return f(*(x[0] if w else x for x, w in zip(xs, whole, strict=True)))

    split = jax.shard_map(
        local,
        in_specs=tuple(
            PartitionSpec(used) if w else spec(axes)
            for (_, axes), w in zip(inputs, whole, strict=True)
        ),
        out_specs=spec(result),
    )
    return split(
        *(
            jnp.broadcast_to(x, (copies, *x.shape)) if w else x
            for (x, _), w in zip(inputs, whole, strict=True)
        )
    )


def put(tree, shardings):
    """Arrays that every process holds whole, as global arrays.

    Args:
        tree: arrays.
        shardings: one for all of them, or a tree of the tree's first levels.
    """

    def place(sharding: NamedSharding, x):
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(
        lambda sharding, part: jax.tree.map(functools.partial(place, sharding), part),
        shardings,
        tree,
    )


def local_rows(sharding: NamedSharding, size: int) -> np.ndarray:
    """Rows of an array, split along its first axis, that devices of this process hold.

    Args:
        sharding: of the array.
        size: its rows.
    """
    places = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique([row for at in places if at for row in range(size)[at[0]]])


def put_rows(tree, sharding: NamedSharding, size: int):
    """Global arrays of which every process holds its `local_rows`, in their order."""
    rows = local_rows(sharding, size)

    def place(x):
        if len(rows) == size and sharding.is_fully_addressable:
            return jax.device_put(x, sharding)

        def part(at):
            first = int(np.searchsorted(rows, at[0].start or 0))
            return x[first : first + len(range(size)[at[0]])]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, tree)


def local_copy(tree, mesh: Mesh):
    """Global arrays, whole, on one device of each process: all processes call it."""
    whole = replicated(mesh)
    return jax.tree.map(lambda x: jax.device_put(x, whole).addressable_data(0), tree)
