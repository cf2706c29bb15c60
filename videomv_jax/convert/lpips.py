"""Checkpoints of LPIPS: torchvision's VGG16, the heads, and both in one file.

The classifier (`features.N`) and the metric's heads (`lin0.model.1`) are published
apart; the `lpips` package saves both together, the classifier as `net.sliceK.N`.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike

from videomv_jax.convert import mapping
from videomv_jax.convert.mapping import Arrays, Entry, Layout, Shapes
from videomv_jax.models.lpips import LPIPS, SCALE, SHIFT, LPIPSConfig
from videomv_jax.types import InputError

# [1, c, 1, 1] <-> [c]: a map to one number without a bias
_HEAD = Layout(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])

_PACKAGE = {r"net\.slice\d+\.(\d+)\.": r"features.\1."}

_UNUSED = {
    r"classifier\..*": "turns features into classes",
    r"lins\.\d+\..*": "the heads once more",
    r"scaling_layer\..*": "a constant",
}


def entries(lpips: LPIPS) -> list[Entry]:
    """The table of one model, for `mapping.load` and `mapping.save`.

    Names are those of torchvision and of the published heads.

    Args:
        lpips: the model, possibly abstract.
    """
    table = []
    for level, numbers in enumerate(_numbers(lpips.config)):
        for i, number in enumerate(numbers):
            ours, theirs = f"levels.{level}.{i}", f"features.{number}"
            table.append(Entry(f"{ours}.kernel", f"{theirs}.weight", mapping.conv))
            table.append(Entry(f"{ours}.bias", f"{theirs}.bias"))
        table.append(Entry(f"heads.{level}", f"lin{level}.model.1.weight", _HEAD))
    return table


def package_names(config: LPIPSConfig) -> dict[str, str]:
    """Names of `entries` to those of the `lpips` package, for the classifier."""
    return {
        f"features.{number}.{leaf}": f"net.slice{level}.{number}.{leaf}"
        for level, numbers in enumerate(_numbers(config), 1)
        for number in numbers
        for leaf in ("weight", "bias")
    }


def constants() -> dict[str, np.ndarray]:
    """What the `lpips` package saves beside parameters: its shift and scale."""
    return {
        f"scaling_layer.{name}": np.asarray(x, np.float32).reshape(1, 3, 1, 1)
        for name, x in (("shift", SHIFT), ("scale", SCALE))
    }


def unused(names: Iterable[str]) -> dict[str, str]:
    """Names of a checkpoint that the metric does not read, with the reason."""
    return {
        name: reason
        for name in names
        for pattern, reason in _UNUSED.items()
        if re.fullmatch(pattern, name)
    }


def canonical(name: str) -> str:
    """A name of the `lpips` package as `entries` has it; others stay as they are."""
    return mapping.rename(name, _PACKAGE)


def sizes(shapes: Shapes) -> LPIPSConfig:
    """The config that some names and shapes, as `entries` has them, belong to.

    Raises:
        InputError: the classifier is not among them.
    """
    found = [re.fullmatch(r"features\.(\d+)\.weight", name) for name in shapes]
    numbers = sorted(int(match[1]) for match in found if match)
    if not numbers:
        raise InputError("the perceptual metric lacks its classifier, VGG16")
    # A ReLU follows each convolution, and a pooling layer the last of a level.
    levels = [[numbers[0]]]
    for one, two in itertools.pairwise(numbers):
        if two - one == 2:
            levels[-1].append(two)
        else:
            levels.append([two])
    widths = (shapes[f"features.{level[0]}.weight"][0] for level in levels)
    return LPIPSConfig(widths=tuple(widths), convs=tuple(map(len, levels)))


def load(lpips: LPIPS, theirs: Arrays) -> dict:
    """A foreign checkpoint by our paths, ready for `mapping.assign`.

    Args:
        lpips: the model, possibly abstract.
        theirs: classifier and heads together, by the names of either origin; names
            that `unused` tells are left out.

    Raises:
        InputError: names or shapes do not fit, told in the foreign names.
    """
    drop = unused(theirs)
    own = {canonical(k): x for k, x in theirs.items() if k not in drop}
    return mapping.load(entries(lpips), own, mapping.shapes(lpips))


def save(lpips: LPIPS) -> dict[str, np.ndarray]:
    """The parameters by the names of torchvision and of the published heads."""
    return mapping.save(entries(lpips), mapping.flatten(lpips))


def read(path: str | os.PathLike[str], dtype: DTypeLike = "float32") -> LPIPS:
    """The metric from a safetensors file of its parameters by our paths.

    `videomv convert` writes such files, named lpips.safetensors.

    Args:
        path: the file; it tells the sizes.
        dtype: compute type.

    Raises:
        InputError: no such file, or one that does not fit.
    """
    if not Path(path).is_file():
        raise InputError(f"lpips: no file {os.fspath(path)!r}")
    try:
        weights = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"lpips: {path} is not a safetensors file: {error}") from error
    found = (re.fullmatch(r"levels\.(\d+)\.\d+\.kernel", name) for name in weights)
    levels = [int(match[1]) for match in found if match]
    count = max(levels, default=-1) + 1
    heads = [weights.get(f"heads.{i}") for i in range(count)]
    if not count or any(x is None for x in heads):
        raise InputError(f"lpips: {path} holds no weights of the perceptual metric")
    config = LPIPSConfig(
        widths=tuple(len(x) for x in heads if x is not None),
        convs=tuple(levels.count(i) for i in range(count)),
        dtype=dtype,
    )
    module = nnx.eval_shape(lambda: LPIPS(config, rngs=nnx.Rngs(0)))
    try:
        mapping.assign(module, weights)
    except InputError as error:
        raise InputError(f"lpips: {path}: {error}") from error
    return module


def _numbers(config: LPIPSConfig) -> Iterator[list[int]]:
    """torchvision's layer numbers of each level's convolutions."""
    start = 0
    for count in config.convs:
        yield list(range(start, start + 2 * count, 2))
        start += 2 * count + 1
