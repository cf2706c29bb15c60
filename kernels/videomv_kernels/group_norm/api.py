"""Group norm: the specification, the kernels behind it and their gradient."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from videomv_kernels.group_norm import triton_kernels
from videomv_kernels.group_norm.triton_kernels import SUMMED, VECTOR, Norm, Tiling
from videomv_kernels.rasterize.compat import varying_like

STATISTICS = "group_norm_statistics"  # what a policy of jax.checkpoint may save
_MAX_SIZE = 2**31  # places are counted in int32
_MAX_GRID = 2**16  # CUDA's, for samples and for parts of them
_MAX_UNIT = 256  # channels that a program folds
# Measured on an H100, at the shapes of the released UNet.
_PROGRAMS = 800  # that sum: six for each of its 132 processors
_STAGED_ROWS = 16, 128
_WARPS = 4
_WHOLE_VALUES = 1024  # of a warp that has all rows of its groups
_WHOLE_WARPS = 8
_APPLIED = Tiling(rows=64, warps=4)


def reference(
    x: Float[Array, "n r c"],
    gain: Float[Array, "c"],
    bias: Float[Array, "c"],
    offset: Float[Array, "#n c"] | None = None,
    *,
    groups: int,
    eps: float,
    silu: bool = False,
) -> Float[Array, "n r c"]:
    """What `group_norm` computes, in plain JAX for any device and type."""
    n, rows, c = x.shape
    y = x.astype(jnp.float32)
    if offset is not None:
        y = y + offset.astype(jnp.float32)[:, None]
    y = y.reshape(n, rows, groups, c // groups)
    y = y - y.mean((1, 3), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + eps)
    y = y.reshape(x.shape) * gain[None, None] + bias[None, None]
    return (jax.nn.silu(y) if silu else y).astype(x.dtype)


def supports(x: Float[Array, "n r c"], groups: int) -> bool:
    """Whether the kernels take these: 16-bit types, widths like the UNet's."""
    n, rows, c = x.shape
    return (
        x.dtype in (jnp.bfloat16, jnp.float16)
        and c % SUMMED == 0
        and c % groups == 0
        and math.lcm(c // groups, VECTOR) <= _MAX_UNIT
        and x.size < _MAX_SIZE
        and max(n, rows // _STAGED_ROWS[0]) < _MAX_GRID
    )


def group_norm(
    x: Float[Array, "n r c"],
    gain: Float[Array, "c"],
    bias: Float[Array, "c"],
    offset: Float[Array, "#n c"] | None = None,
    *,
    groups: int,
    eps: float,
    silu: bool = False,
    interpret: bool = False,
) -> Float[Array, "n r c"]:
    """Normalise groups of channels over all rows of a sample.

    Statistics are float32: sums of x and x^2 for each channel, in one pass over x, in
    the same order every time. Where samples have many rows, some hundred programs sum
    them, one for each few groups folds the sums into a scale and a shift of channels,
    and a third kernel applies these, or XLA does together with what follows where there
    is a gradient. Where they have few, one kernel does all of it. Differentiable once,
    likewise: the gradients of gain, bias and offset come from the two sums that the
    gradient of x needs.

    Args:
        x: channels of n samples of r rows.
        gain, bias: of channels, after the norm.
        offset: what to add to x before, the same for each row of a sample, or of all.
        groups: how many; each is of neighbouring channels.
        eps: added to variances.
        silu: whether an activation follows, which is cheaper in here.
        interpret: run the kernels in Pallas' interpreter, on any device: for tests.

    Returns:
        The result, in the type of x.

    Raises:
        ValueError: inputs that `supports` refuses.
    """
    if not supports(x, groups):
        raise ValueError(
            f"x: {x.dtype} {x.shape} in {groups} groups; want bfloat16 or float16 "
            f"[n, r, c] with c a multiple of {SUMMED} and of the groups"
        )
    n, rows, c = x.shape
    norm = Norm(n, rows, c, groups, eps, silu, 0 if offset is None else len(offset))
    gain, bias = (varying_like(p, x) for p in (gain, bias))
    offset = None if offset is None else varying_like(offset, x)
    return _norm(x, gain, bias, offset, norm, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _norm(x, gain, bias, offset, norm: Norm, interpret: bool):
    return _apply(x, gain, bias, offset, norm, (), interpret)[0]


def _forward(x, gain, bias, offset, norm: Norm, interpret: bool):
    wanted = tuple(norm.folded(backward=False))
    y, found = _apply(x, gain, bias, offset, norm, wanted, interpret)
    return y, (x, gain, offset, found)


def _apply(x, gain, bias, offset, norm: Norm, wanted, interpret: bool):
    """The norm, and what else is wanted of what the fold finds."""
    inputs = {"x": x, "gain": gain, "bias": bias}
    if offset is not None:
        inputs["offset"] = offset
    if tiling := _whole(norm, tensors=1):
        found = triton_kernels.whole(norm, inputs, wanted, tiling, interpret=interpret)
    else:
        names, tiling = wanted or ("scale", "shift"), _staged(norm)
        found = triton_kernels.staged(norm, inputs, names, tiling, interpret=interpret)
        if not wanted:
            inputs = {k: v for k, v in inputs.items() if k in ("x", "offset")} | found
            y = triton_kernels.apply(norm, inputs, _APPLIED, interpret=interpret)
            return y, {}
    y = found.pop("result", None)
    found = {name: checkpoint_name(v, STATISTICS) for name, v in found.items()}
    if y is None:
        y = _shifted(x, offset) * found["scale"][:, None] + found["shift"][:, None]
        y = (jax.nn.silu(y) if norm.silu else y).astype(x.dtype)
    return y, found


def _backward(norm: Norm, interpret: bool, saved, dy):
    x, gain, offset, found = saved
    inputs = {"x": x, "dy": dy, "gain": gain} | found
    if offset is not None:
        inputs["offset"] = offset
    wanted = tuple(norm.folded(backward=True))
    if tiling := _whole(norm, tensors=2):
        of = triton_kernels.whole(norm, inputs, wanted, tiling, interpret=interpret)
        dx = of["result"]
    else:
        tiling = _staged(norm)
        of = triton_kernels.staged(norm, inputs, wanted, tiling, interpret=interpret)
        scale, shift = (found[name][:, None] for name in ("scale", "shift"))
        shifted, dy = _shifted(x, offset), dy.astype(jnp.float32)
        if norm.silu:
            dy = dy * triton_kernels.silu_slope(shifted * scale + shift)
        dx = dy * scale + shifted * of["of_x"][:, None] + of["of_one"][:, None]
        dx = dx.astype(x.dtype)
    dgain, dbias = of["dparams"].sum(0)
    if offset is not None:
        doffset = of["doffset"].reshape(norm.offsets, -1, norm.c).sum(1)
        offset = doffset.astype(offset.dtype)
    return dx, dgain, dbias, offset


_norm.defvjp(_forward, _backward)


def _shifted(x, offset):
    x = x.astype(jnp.float32)
    return x if offset is None else x + offset.astype(jnp.float32)[:, None]


def _whole(norm: Norm, tensors: int) -> Tiling | None:
    """Tiling of the single kernel, if samples are small enough for its registers."""
    rows, lanes = (pl.next_power_of_2(size) for size in (norm.rows, norm.unit))
    warps = max(1, rows * lanes // _WHOLE_VALUES)
    return Tiling(rows, warps) if warps * tensors <= _WHOLE_WARPS else None


def _staged(norm: Norm) -> Tiling:
    """As many rows a program as leave enough programs for a GPU, up to a limit."""
    rows = norm.n * norm.rows * norm.c // (SUMMED * _PROGRAMS)
    rows = 1 << max(rows, 1).bit_length() - 1
    return Tiling(min(max(rows, _STAGED_ROWS[0]), _STAGED_ROWS[1]), _WARPS)
