"""The kernels, Pallas for Triton: sums over rows, and what groups make of them.

Both passes need two sums for each channel: of d and of d x, where d is x itself in the
forward pass and the gradient of the norm's result in the backward pass. Programs that
sum have some rows of a block of channels; those that fold have whole groups.

The first programs that sum have the last rows: these were written last, so a cache has
them yet, as it has the first rows when whoever is next begins with those.
"""

import dataclasses
import functools
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from videomv_kernels.rasterize.compat import shape_like

SUMMED = 64  # channels of a program that sums: rows of 128 bytes
VECTOR = 8  # channels that a thread loads at once, 16 bytes
_PARTS = 64  # partial sums of a channel that a fold reads at once
_FOLD_WARPS = 4


@dataclasses.dataclass(frozen=True)
class Norm:
    """What is normalised: x `[n, rows, c]`, perhaps with offsets, perhaps by SiLU."""

    n: int
    rows: int
    c: int
    groups: int
    eps: float
    silu: bool
    offsets: int  # one for each sample, one for all, or none

    @property
    def group(self) -> int:
        """Channels of a group."""
        return self.c // self.groups

    @property
    def unit(self) -> int:
        """Channels of the fewest groups that begin where a vector does."""
        return math.lcm(self.group, VECTOR)

    def folded(self, backward: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of what a fold knows, by name: float32."""
        names = ("of_x", "of_one") if backward else ("scale", "shift", "mean", "rstd")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (self.n, self.c))
        if backward:
            shapes["dparams"] = (self.n, 2, self.c)
        if self.offsets:
            shapes["doffset" if backward else "total"] = (self.n, self.c)
        return shapes


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Rows of a program, in tiles of one vector a thread, and its warps."""

    rows: int
    warps: int

    def tile(self, lanes: int) -> int:
        """Rows of a tile so many channels wide."""
        return min(self.rows, max(1, 32 * self.warps * VECTOR // lanes))


class _Place:
    """Some channels of a sample: `width`, of lanes to the next power of two."""

    def __init__(self, norm: Norm, sample, first, width: int):
        self._norm, self._sample = norm, sample
        self.lanes = pl.next_power_of_2(width)
        lane = jnp.arange(self.lanes, dtype=jnp.int32)
        self.channel = first + lane
        self.real = None if self.lanes == width else lane < width

    def tiles(self, tiling: Tiling, first):
        """Where tiles of rows lie in `[n, rows, c]`, and which of it there is."""
        norm, size = self._norm, tiling.tile(self.lanes)
        ragged = norm.rows % tiling.rows
        places = []
        for start in range(0, min(tiling.rows, norm.rows), size):
            row = first + start + jnp.arange(size, dtype=jnp.int32)
            place = self.rows(self._sample * norm.rows + row)
            places.append((place, self.mask(row < norm.rows if ragged else None, size)))
        return places

    def rows(self, row):
        """Where these rows of `[..., c]` lie."""
        return (row * self._norm.c)[:, None] + self.channel[None]

    def mask(self, rows, size: int):
        """What there is of so many rows, all of them for None; None is all of it."""
        masks = [] if rows is None else [rows[:, None]]
        masks += [] if self.real is None else [self.real[None]]
        masks = [jnp.broadcast_to(mask, (size, self.lanes)) for mask in masks]
        return functools.reduce(jnp.logical_and, masks) if masks else None

    def vector(self, ref):
        """Of an array `[n, c]`."""
        return _load(ref, self._sample * self._norm.c + self.channel, self.real)

    def parameter(self, ref):
        """Of an array `[c]`."""
        return _load(ref, self.channel, self.real)

    def store(self, refs, values):
        """What a fold found, where it is asked for: `[c]`, or several of these."""
        for name, value in values.items():
            if not hasattr(refs, name):
                continue
            rows = value if isinstance(value, tuple) else (value,)
            for i, row in enumerate(rows):
                place = (self._sample * len(rows) + i) * self._norm.c + self.channel
                triton.store(getattr(refs, name).at[place], row, mask=self.real)


def _from_last(axis: int):
    """Where the program is along an axis of the grid, counted from its end."""
    return pl.num_programs(axis) - 1 - pl.program_id(axis)


def _load(ref, place, mask):
    return triton.load(ref.at[place], mask=mask, other=None if mask is None else 0.0)


def _operands(refs, norm: Norm, place: _Place, tiles):
    """x and d of each tile in float32; d is 0 where there is nothing."""
    backward = hasattr(refs, "dy")
    xs = [_load(refs.x, *tile) for tile in tiles]
    ds = [_load(refs.dy, *tile) for tile in tiles] if backward else xs
    if norm.offsets:
        load = place.vector if norm.offsets == norm.n else place.parameter
        offset = load(refs.offset).astype(jnp.float32)[None]
    if norm.silu and backward:
        scale, shift = (place.vector(v)[None] for v in (refs.scale, refs.shift))
    pairs = []
    for (_, mask), x, d in zip(tiles, xs, ds, strict=True):
        x = x.astype(jnp.float32)
        if norm.offsets:
            x = x + offset
        d = d.astype(jnp.float32) if backward else x
        if norm.silu and backward:
            d = d * silu_slope(x * scale + shift)
        if norm.offsets and not backward and mask is not None:
            d = jnp.where(mask, d, 0.0)
        pairs.append((x, d))
    return pairs


def _sigmoid(y):
    """By two instructions of a GPU's own, where `exp` and a quotient take twenty."""
    root = jax.lax.rsqrt(1 + jnp.exp2(-math.log2(math.e) * y))
    return root * root


def silu_slope(y):
    """The derivative of SiLU."""
    s = _sigmoid(y)
    return s * (1 + y * (1 - s))


def _sums(pairs):
    """Of d and of d x, over the rows of all tiles."""
    one = functools.reduce(jnp.add, [d for _, d in pairs])
    two = functools.reduce(jnp.add, [d * x for x, d in pairs])
    return jnp.sum(one, 0), jnp.sum(two, 0)


def _known(refs, norm: Norm, place: _Place) -> dict[str, Any]:
    """What a fold reads beside sums: loaded first, so that nothing waits for it."""
    if not hasattr(refs, "dparams"):  # the forward pass
        return {name: place.parameter(getattr(refs, name)) for name in ("gain", "bias")}
    names = ("mean", "rstd", "scale", *(("total",) if norm.offsets else ()))
    known = {name: place.vector(getattr(refs, name)) for name in names}
    return known | {"gain": place.parameter(refs.gain)}


def _fold(known, norm: Norm, place: _Place, one, two) -> dict[str, Any]:
    """See `Norm.folded`, from the two sums of each channel."""
    count = norm.rows * norm.group
    lane = jnp.arange(place.lanes, dtype=jnp.int32)

    def over_group(x):
        mean = jnp.zeros_like(x)
        for first in range(0, norm.unit, norm.group):
            inside = (lane >= first) & (lane < first + norm.group)
            total = jnp.sum(jnp.where(inside, x, 0.0))
            mean = jnp.where(inside, total / count, mean)
        return mean

    gain = known["gain"]
    if "bias" in known:
        mean = over_group(one)
        variance = over_group(two) - mean * mean
        rstd = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + norm.eps)
        scale = rstd * gain
        shift = known["bias"] - mean * scale
        return dict(scale=scale, shift=shift, mean=mean, rstd=rstd, total=one)
    mean, rstd = known["mean"], known["rstd"]
    dgain = rstd * (two - mean * one)
    of_x = -rstd * rstd * over_group(gain * dgain)
    of_one = -rstd * over_group(gain * one) - of_x * mean
    values = dict(of_x=of_x, of_one=of_one, dparams=(dgain, one))
    if norm.offsets:
        of_rows = one * known["scale"] + known["total"] * of_x
        values["doffset"] = of_rows + norm.rows * of_one
    return values


def _sum_kernel(refs, *, norm: Norm, tiling: Tiling):
    block, part, sample = pl.program_id(0), _from_last(1), _from_last(2)
    place = _Place(norm, sample, block * SUMMED, SUMMED)
    tiles = place.tiles(tiling, part * tiling.rows)
    row = sample * pl.num_programs(1) + part
    for i, value in enumerate(_sums(_operands(refs, norm, place, tiles))):
        at = (row * 2 + i) * norm.c + place.channel
        triton.store(refs.partial.at[at], value)


def _fold_kernel(refs, *, norm: Norm, parts: int):
    unit, sample = (pl.program_id(i) for i in range(2))
    place = _Place(norm, sample, unit * norm.unit, norm.unit)
    step = min(_PARTS, pl.next_power_of_2(parts))
    known = _known(refs, norm, place)

    def add(i, sums):
        part = i * step + jnp.arange(step, dtype=jnp.int32)
        mask = place.mask(part < parts, step)
        row = (sample * parts + part) * 2
        loaded = (_load(refs.partial, place.rows(row + j), mask) for j in range(2))
        return tuple(s + jnp.sum(x, 0) for s, x in zip(sums, loaded, strict=True))

    sums = (jnp.zeros((place.lanes,), jnp.float32),) * 2
    sums = jax.lax.fori_loop(0, -(-parts // step), add, sums)
    place.store(refs, _fold(known, norm, place, *sums))


def _whole_kernel(refs, *, norm: Norm, tiling: Tiling):
    unit, sample = pl.program_id(0), _from_last(1)
    place = _Place(norm, sample, unit * norm.unit, norm.unit)
    known = _known(refs, norm, place)
    tiles = place.tiles(tiling, 0)
    pairs = _operands(refs, norm, place, tiles)
    values = _fold(known, norm, place, *_sums(pairs))
    place.store(refs, values)
    if hasattr(refs, "dy"):
        of_x, of_one = (values[name][None] for name in ("of_x", "of_one"))
        results = [d * known["scale"][None] + x * of_x + of_one for x, d in pairs]
    else:
        scale, shift = (values[name][None] for name in ("scale", "shift"))
        results = _normed(norm, pairs, scale, shift)
    _store(refs, tiles, results)


def _apply_kernel(refs, *, norm: Norm, tiling: Tiling):
    block, part, sample = (pl.program_id(i) for i in range(3))
    place = _Place(norm, sample, block * SUMMED, SUMMED)
    tiles = place.tiles(tiling, part * tiling.rows)
    pairs = _operands(refs, norm, place, tiles)
    # Each thread loads its own: from a cache, without waiting for others.
    at = jnp.broadcast_to(place.rows(sample[None]), tiles[0][0].shape)
    scale, shift = (_load(v, at, None) for v in (refs.scale, refs.shift))
    _store(refs, tiles, _normed(norm, pairs, scale, shift))


def _normed(norm: Norm, pairs, scale, shift):
    results = [x * scale + shift for x, _ in pairs]
    return [y * _sigmoid(y) for y in results] if norm.silu else results


def _store(refs, tiles, results):
    for (at, mask), result in zip(tiles, results, strict=True):
        result = result.astype(refs.result.dtype)
        triton.store(refs.result.at[at], result, mask=mask)


# Under jit, so that what is asked for many times is traced and lowered once.
_once = functools.partial(
    jax.jit, static_argnames=("norm", "wanted", "tiling", "interpret")
)


@_once
def staged(norm: Norm, inputs, wanted, tiling: Tiling, *, interpret: bool):
    """What folds find: sums by many programs, folded by a second kernel.

    Args:
        inputs: by name x and, where there is one, the offset; gain and bias, or for
            the backward pass dy, gain, and what the forward pass found.
        wanted: names of what to write, of `Norm.folded`.
    """
    parts = -(-norm.rows // tiling.rows)
    summed = ("x", "offset", "dy") + (("scale", "shift") if norm.silu else ())
    partial = _call(
        functools.partial(_sum_kernel, norm=norm, tiling=tiling),
        "sum",
        (norm.c // SUMMED, parts, norm.n),  # neighbours in memory run side by side
        {name: inputs[name] for name in summed if name in inputs},
        {"partial": ((norm.n, parts, 2, norm.c), jnp.float32)},
        warps=tiling.warps,
        interpret=interpret,
    )
    folded = {k: v for k, v in inputs.items() if k not in ("x", "offset", "dy")}
    return _call(
        functools.partial(_fold_kernel, norm=norm, parts=parts),
        "fold",
        (norm.c // norm.unit, norm.n),
        partial | folded,
        _folded(norm, "dy" in inputs, wanted),
        warps=_FOLD_WARPS,
        interpret=interpret,
    )


@functools.partial(jax.jit, static_argnames=("norm", "tiling", "interpret"))
def apply(norm: Norm, inputs, tiling: Tiling, *, interpret: bool):
    """The norm, by the scale and the shift among the inputs."""
    return _call(
        functools.partial(_apply_kernel, norm=norm, tiling=tiling),
        "apply",
        (norm.c // SUMMED, -(-norm.rows // tiling.rows), norm.n),
        inputs,
        {"result": (inputs["x"].shape, inputs["x"].dtype)},
        warps=tiling.warps,
        interpret=interpret,
    )["result"]


@_once
def whole(norm: Norm, inputs, wanted, tiling: Tiling, *, interpret: bool):
    """The same by one kernel, and the `result`: y, or the gradient of x."""
    outputs = _folded(norm, "dy" in inputs, wanted)
    outputs["result"] = (inputs["x"].shape, inputs["x"].dtype)
    return _call(
        functools.partial(_whole_kernel, norm=norm, tiling=tiling),
        "whole",
        (norm.c // norm.unit, norm.n),
        inputs,
        outputs,
        warps=tiling.warps,
        interpret=interpret,
    )


def _folded(norm: Norm, backward: bool, wanted):
    shapes = norm.folded(backward)
    return {name: (shapes[name], jnp.float32) for name in wanted}


def _call(kernel, name: str, grid, inputs, outputs, *, warps: int, interpret: bool):
    """Outputs by name; the kernel gets its refs by name, too."""
    names = (*inputs, *outputs)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    example = inputs["x" if "x" in inputs else "partial"]

    def run(*refs):
        kernel(types.SimpleNamespace(**dict(zip(names, refs, strict=True))))

    flat = pl.pallas_call(
        run,
        grid=grid,
        in_specs=[anywhere] * len(inputs),
        out_specs=[anywhere] * len(outputs),
        out_shape=[
            shape_like((math.prod(shape),), dtype, example)
            for shape, dtype in outputs.values()
        ],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=f"group_norm_{name}",
    )(*[x.reshape(-1) for x in inputs.values()])
    return {
        name: x.reshape(shape)
        for (name, (shape, _)), x in zip(outputs.items(), flat, strict=True)
    }
