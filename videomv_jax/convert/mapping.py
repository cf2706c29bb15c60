"""Names and layouts: how foreign checkpoints and our parameters meet.

Our own files hold `flatten(module)`: dotted paths such as
`down.0.stages.1.res.norm1.scale`. A foreign model is a table of `Entry`s, and
`load` and `save` walk it in either direction on dicts of numpy arrays:

    flat = load(table, checkpoint, shapes(module))
    assign(module, flat)
    checkpoint = save(table, flatten(module))

Layouts are views, so nothing is copied before the values reach the module.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from videomv_jax.types import InputError

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Layout(NamedTuple):
    """Foreign array to ours (`load`) and back (`save`)."""

    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


same = Layout(lambda x: x, lambda x: x)
# [o, i] <-> [i, o]
linear = Layout(np.transpose, np.transpose)
# [o, i, *window] <-> [o, *window, i]
conv = Layout(lambda x: np.moveaxis(x, 1, -1), lambda x: np.moveaxis(x, -1, 1))
# [o, i, k, 1, 1] <-> [o, k, 1, i]: a convolution over frames alone
conv_frames = Layout(
    lambda x: np.moveaxis(x[..., 0], 1, -1), lambda x: np.moveaxis(x, -1, 1)[..., None]
)
# [o, i, 1, 1] and [o, i, 1] <-> [i, o]
conv1x1_to_linear = Layout(lambda x: x[..., 0, 0].T, lambda x: x.T[..., None, None])
conv1_to_linear = Layout(lambda x: x[..., 0].T, lambda x: x.T[..., None])


def fused(parts: int) -> Layout:
    """`[parts * o, i]` or `[parts * o]` <-> `[i, parts, o]` or `[parts, o]`."""

    def load(x):
        x = x.reshape(parts, -1, *x.shape[1:])
        return x if x.ndim == 2 else x.transpose(2, 0, 1)

    def save(x):
        x = x if x.ndim == 2 else x.transpose(1, 2, 0)
        return x.reshape(-1, *x.shape[2:])

    return Layout(load, save)


class Entry(NamedTuple):
    """One parameter of ours and where a foreign checkpoint keeps it.

    Attributes:
        ours: dotted path.
        theirs: foreign name; several of them are stacked on our axis -2.
        layout: applied to each foreign array.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: Layout = same

    @property
    def names(self) -> tuple[str, ...]:
        """The foreign names."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def load(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Our array, from what `read` gives for the foreign names."""
        parts = [self.layout.load(read(name)) for name in self.names]
        return parts[0] if isinstance(self.theirs, str) else np.stack(parts, -2)

    def save(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The foreign arrays of ours."""
        if isinstance(self.theirs, str):
            return {self.theirs: self.layout.save(x)}
        parts = (x[..., i, :] for i in range(len(self.theirs)))
        return dict(zip(self.theirs, map(self.layout.save, parts), strict=True))


def load(table: Iterable[Entry], theirs: Arrays, wanted: Shapes) -> dict:
    """Foreign arrays as ours.

    Args:
        table: one entry per parameter.
        theirs: the foreign checkpoint, already free of what belongs elsewhere.
        wanted: our shapes, see `shapes`; they may exceed the table.

    Returns:
        Arrays by our dotted path, in the types of the checkpoint.

    Raises:
        InputError: names or shapes differ, told in the foreign names.
    """
    table = tuple(table)
    check(theirs, foreign_shapes(table, wanted))
    return {entry.ours: entry.load(theirs.__getitem__) for entry in table}


def save(table: Iterable[Entry], ours: Arrays) -> dict:
    """Our arrays as foreign ones: the inverse of `load`, bit for bit.

    Raises:
        InputError: `ours` lacks or exceeds the paths of the table.
    """
    table = tuple(table)
    check(ours, {entry.ours: None for entry in table})
    out = {}
    for entry in table:
        out |= entry.save(ours[entry.ours])
    return out


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by dotted path; the module may be abstract."""
    return {path: tuple(p.get_value().shape) for path, p in _params(module)}


def flatten(module: nnx.Module) -> dict[str, np.ndarray]:
    """All parameters by dotted path, on the host: what our model files hold."""
    values = {path: p.get_value() for path, p in _params(module)}
    return {path: np.asarray(x) for path, x in jax.device_get(values).items()}


def assign(module: nnx.Module, flat: Arrays) -> None:
    """Set every parameter of a module from `flat`, exactly once.

    Values take the type and the device placement of the parameter they replace.
    The module may be abstract (`nnx.eval_shape`): then nothing is initialised in
    vain.

    Raises:
        InputError: names or shapes differ, or values are not finite.
    """
    check(flat, shapes(module))
    if bad := [k for k, x in flat.items() if not np.isfinite(x).all()]:
        raise InputError(f"parameters must be finite; these are not: {_some(bad)}")
    for path, p in _params(module):
        old = p.get_value()
        value = np.asarray(flat[path]).astype(old.dtype)
        # Not jnp.asarray, which compiles a program per shape.
        where = old.sharding if isinstance(old, jax.Array) else None
        p.set_value(jax.device_put(value, where))


def shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a tensor that a checkpoint of this kind must have.

    Raises:
        InputError: it has not.
    """
    if name not in shapes:
        raise InputError(f"the sizes cannot be told: {name} is missing")
    return shapes[name]


def foreign_shapes(table: Iterable[Entry], wanted: Shapes) -> dict[str, tuple]:
    """The foreign names and shapes that a table implies for shapes of ours."""
    # Zero strides: no memory.
    table = tuple(table)
    blank = {e.ours: np.broadcast_to(np.float32(0), wanted[e.ours]) for e in table}
    return {name: x.shape for name, x in save(table, blank).items()}


def under(prefix: str, theirs: Arrays) -> dict[str, np.ndarray]:
    """The part of a checkpoint whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): x
        for name, x in theirs.items()
        if name.startswith(prefix)
    }


def rename(path: str, rules: Mapping[str, str | Callable[[re.Match], str]]) -> str:
    """One of our paths in foreign words.

    Args:
        path: of a parameter; its leaf `kernel` or `scale` becomes `weight` first.
        rules: regular expressions and their replacements, applied in order.
    """
    name = re.sub(r"\.(kernel|scale)$", ".weight", path)
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def check(seen: Arrays, wanted: Mapping[str, tuple[int, ...] | None]) -> None:
    """Compare names and shapes (None: any shape).

    Raises:
        InputError: with up to five missing, unexpected and mis-shaped names each.
    """
    shaped = [
        f"{k} {tuple(seen[k].shape)} instead of {shape}"
        for k, shape in wanted.items()
        if k in seen and shape is not None and tuple(seen[k].shape) != tuple(shape)
    ]
    faults = {
        "missing": [k for k in wanted if k not in seen],
        "unexpected": [k for k in seen if k not in wanted],
        "mis-shaped": shaped,
    }
    if any(faults.values()):
        told = (f"{word}: {_some(names)}" for word, names in faults.items() if names)
        raise InputError(f"the parameters do not fit; {'; '.join(told)}")


def _params(module: nnx.Module) -> list[tuple[str, nnx.Variable]]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return [(".".join(map(str, path)), param) for path, param in flat]


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
