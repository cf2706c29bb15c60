"""Layers shared by every network: linear, convolution, embeddings, dropout.

Every parameter carries `axes`, the logical names of its dimensions; the table in
`videomv_jax.sharding` maps them to the mesh. Parameters are float32 unless the
config says otherwise, compute runs in `dtype`, norms always in float32.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videomv_jax import compat, sharding
from videomv_jax.models.norms import SUMMED, GroupNorm, LayerNorm
from videomv_jax.types import PRNGKey

Axes = tuple[str | None, ...]

READ = "read"
"""What inputs of convolutions, and of linear layers before a norm, are called for
policies of rematerialisation."""


class Linear(nnx.Module):
    """Linear map of the last axis; the kernel is `[i, *o]`, see `linear`."""

    def __init__(
        self,
        features_in: int,
        features_out: tuple[int, ...],
        *,
        axes: Axes,
        use_bias: bool,
        variance: float = 1.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        shape = (features_in, *features_out)
        self.kernel = nnx.Param(
            _initial(rngs, shape, variance / features_in), axes=axes
        )
        zeros = jnp.zeros(features_out, jnp.float32)
        self.bias = nnx.Param(zeros, axes=axes[1:]) if use_bias else None

    def __call__(
        self, x: Float[Array, "... i"], onto: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """Args: x `[..., i]`, and what to add. Returns `[..., *o]`.

        It is added before the bias: then cuBLAS adds both while it multiplies, and the
        sum is written once (`compat.compiler_options`).
        """
        return self.added(self.product(x), onto)

    def product(self, x: Float[Array, "... i"]) -> Float[Array, "..."]:
        """The layer without its bias."""
        return self._product(x, ...)

    def added(
        self, y: Float[Array, "..."], onto: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """The layer's result, given its product: with its bias, and what to add."""
        shape, wide = y.shape, self.kernel[...].size > self.kernel[...].shape[0] ** 2
        if not wide:
            y = _as_matrix(y)
        if onto is not None:
            y = onto.astype(self.dtype).reshape(y.shape) + y
        y = self._biased(y, ...)
        if onto is not None and compat.has_cuda():
            # Or XLA's own kernels for products and norms would take a part of the sum.
            y = jax.lax.optimization_barrier(y)
        return (y if wide else checkpoint_name(y, SUMMED)).reshape(shape)

    def beside(
        self,
        x: Float[Array, "... i"],
        norm: LayerNorm,
        onto: Float[Array, "... o"] | None = None,
    ) -> tuple[Float[Array, "... o"], Float[Array, "... o"]]:
        """The layer's result, normalised, and as it is, for a shortcut.

        The norm adds the bias, for which it has the gradient.
        """
        y = self.product(checkpoint_name(x, READ))
        shape, y = y.shape, _as_matrix(y)
        if onto is not None:
            y = onto.astype(self.dtype).reshape(y.shape) + y
        assert self.bias is not None
        normed, y = norm.beside(y, self.bias[...])
        return normed.reshape(shape), y.reshape(shape)

    def parts(self, x: Float[Array, "... i"]) -> list[Float[Array, "... o"]]:
        """The parts of a layer of `linears` as products, and arrays, of their own."""
        kernels = self.kernel[...].astype(self.dtype)
        kernels = [kernels[:, i] for i in range(kernels.shape[1])]
        products = _products(x.astype(self.dtype), *kernels)
        return [self._biased(y, i) for i, y in enumerate(products)]

    def _product(self, x, part):
        kernel = self.kernel[...][:, part].astype(self.dtype)
        return _dot(x.astype(self.dtype), kernel)

    def _biased(self, y, part):
        if self.bias is None:
            return y
        bias = self.bias[...][part].astype(self.dtype)
        if bias.ndim > 1 and compat.has_cuda():
            # Or cuBLAS would add what it takes for a matrix, written out before.
            y = jax.lax.optimization_barrier(y)
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _dot(x: Array, kernel: Array, over: int = 0) -> Array:
    """Of x's last axis and the kernel's axis `over`."""
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (over,)), ((), ())))


@jax.custom_vjp
def _products(x: Array, *kernels: Array) -> list[Array]:
    """Of x and each kernel. The gradient for x adds up while it multiplies."""
    return [_dot(x, kernel) for kernel in kernels]


def _products_backward(saved, grads):
    x, *kernels = saved
    rows = tuple(range(x.ndim - 1))
    dx = _dot(grads[0], kernels[0], 1)
    for grad, kernel in zip(grads[1:], kernels[1:], strict=True):
        # Or XLA would not have cuBLAS add the second time.
        dx = jax.lax.optimization_barrier(dx) + _dot(grad, kernel, 1)
    of_kernels = [jax.lax.dot_general(x, g, ((rows, rows), ((), ()))) for g in grads]
    return dx, *of_kernels


_products.defvjp(lambda x, *ks: (_products(x, *ks), (x, *ks)), _products_backward)


def _as_matrix(y: Array) -> Array:
    """`[..., o]` as `[n, o]` on a GPU, if its leading axes may be merged on a mesh.

    XLA has cuBLAS overwrite what it adds, if nothing else reads that: a view made just
    for the sum looks so, and the array behind it would be copied before.
    """
    merge = compat.has_cuda() and sharding.batch_axes(len(y)) is not None
    return y.reshape(-1, y.shape[-1]) if merge else y


def linear(
    features_in: int,
    features_out: int,
    *,
    axes: Axes = ("embed", "mlp"),
    use_bias: bool = True,
    zero: bool = False,
    variance: float = 1.0,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Linear:
    """A linear layer `[..., in] -> [..., out]` with named axes.

    Args:
        features_in, features_out: widths.
        axes: logical names of the kernel's (in, out) dimensions.
        zero: start at zero (last layers of residual branches).
        variance: of the initial output for independent inputs of variance 1.
        dtype: compute type.
    """
    return Linear(
        features_in,
        (features_out,),
        axes=axes,
        use_bias=use_bias,
        variance=0 if zero else variance,
        dtype=dtype,
        rngs=rngs,
    )


def linears(
    features_in: int,
    parts: int,
    features_out: int,
    *,
    axes: Axes = ("embed", "mlp"),
    use_bias: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Linear:
    """Several linear maps of one input as one matmul, `[..., i] -> [..., parts, o]`.

    The parts have an axis of their own, so that all of them can be sharded alike
    over their outputs: keys and values by heads, the halves of a gated unit by width.
    Args as `linear`.
    """
    return Linear(
        features_in,
        (parts, features_out),
        axes=(axes[0], None, axes[1]),
        use_bias=use_bias,
        dtype=dtype,
        rngs=rngs,
    )


class Conv(nnx.Module):
    """Convolution over the trailing spatial axes of `[..., *space, c]`.

    The kernel is stored output channel first (O, *window, I): what cuDNN reads
    without a copy. Padding is explicit and symmetric unless given per side.

    Layers at the border of a network, whose few channels no mesh divides, pass `axes`
    with None for that side. `view_axis` is the axis of the input that a mesh with
    `view` splits, which must not be one the window reaches across.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        window: Sequence[int] = (3, 3),
        *,
        stride: int = 1,
        padding: Sequence[tuple[int, int]] | None = None,
        axes: Axes = ("conv_out", "conv_in"),
        view_axis: int | None = None,
        zero: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.view_axis = view_axis
        self.padding = tuple(padding or ((k // 2, k // 2) for k in window))
        self.dtype = dtype
        shape = (features_out, *window, features_in)
        variance = 0 if zero else 1 / math.prod(shape[1:])
        space = (None,) * len(window)
        self.kernel = nnx.Param(
            _initial(rngs, shape, variance),
            axes=(axes[0], *space, axes[1]),
        )
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32), axes=axes[:1])

    def __call__(
        self,
        x: Float[Array, "..."],
        onto: Float[Array, "..."] | None = None,
        *,
        use_bias: bool = True,
    ) -> Float[Array, "..."]:
        """Args: x, what to add, which cuDNN does while it convolves, and whether bias.

        A norm that takes the bias for an offset has its gradient without another sum.
        """
        x = checkpoint_name(x, READ)
        kernel = self.kernel[...].astype(self.dtype)
        bias = self.bias[...].astype(self.dtype)
        bias = bias if use_bias else jnp.zeros_like(bias)
        split = (x,) if onto is None else (x, onto)
        if self.view_axis is None:
            y = self._convolve(*split, kernel, bias)
        else:
            y = sharding.over_views(
                self._convolve, *split, shared=(kernel, bias), axis=self.view_axis
            )
        return checkpoint_name(y, SUMMED)

    def _convolve(self, x: Array, *rest: Array) -> Array:
        *onto, kernel, bias = rest
        batch = x.shape[: -len(self.padding) - 1]
        x = x.astype(self.dtype).reshape(-1, *x.shape[len(batch) :])
        y = _convolution(x, kernel, self.stride, self.padding)
        y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
        for residual in onto:
            y = y + residual.astype(self.dtype).reshape(y.shape)
        return y.reshape(*batch, *y.shape[1:])


class UpsampleConv(Conv):
    """Nearest-neighbour upsampling by 2 of `[..., h, w, c]`, then a 3x3 convolution.

    Even and odd rows see only two different rows of the small image each, and columns
    likewise: four 2x2 convolutions of the small image, with kernels whose taps are
    summed, cost 4/9 of one 3x3 convolution of the large one.
    """

    def _convolve(self, x: Array, kernel: Array, bias: Array) -> Array:
        *batch, h, w, c = x.shape
        x = x.astype(self.dtype).reshape(-1, h, w, c)
        bias = bias.reshape(1, 1, 1, -1)  # cuDNN adds it to each
        phases = [
            _convolution(x, taps.astype(x.dtype), 1, [(1 - i, i), (1 - j, j)]) + bias
            for i, rows in enumerate(_halves(kernel.astype(jnp.float32), 1))
            for j, taps in enumerate(_halves(rows, 2))
        ]
        # First along rows, then along columns: XLA does it in one pass.
        pairs = jnp.stack(phases[:2], 3), jnp.stack(phases[2:], 3)
        y = jnp.stack([pair.reshape(-1, h, 2 * w, bias.size) for pair in pairs], 2)
        return y.reshape(*batch, 2 * h, 2 * w, -1)


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Two taps for even and two for odd places, of three over doubled pixels.

    Of taps a, b, c they are a, b + c and a + b, c: as sums with a masked neighbour, XLA
    makes one kernel of them all.
    """
    low, high = (jax.lax.slice_in_dim(kernel, i, i + 2, axis=axis) for i in range(2))
    first = jax.lax.broadcasted_iota(jnp.int32, low.shape, axis) == 0
    return low + jnp.where(first, 0, high), high + jnp.where(first, low, 0)


def _convolution(x: Array, kernel: Array, stride: int, padding) -> Array:
    """Of `[n, *space, i]` with `[o, *window, i]`."""
    space = "DHW"[-len(padding) :]
    order = f"O{space}I"
    if compat.on_cpu():
        # XLA's CPU backend knows this order only, within loops and branches: others
        # run ten times slower there.
        kernel, order = jnp.moveaxis(kernel, 0, -1), f"{space}IO"
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * len(space),
        padding,
        dimension_numbers=(f"N{space}C", order, f"N{space}C"),
    )


class ResidualBlock(nnx.Module):
    """Two normalised 3x3 convolutions beside a shortcut: `scale (x + f(x))`.

    The block of the autoencoder (scale 1) and of the reconstructor (scale 0.5^1/2,
    which keeps the variance of the sum).
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        groups: int,
        eps: float,
        scale: float = 1.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.scale = scale
        self.norm1 = GroupNorm(features_in, groups, eps=eps, dtype=dtype)
        self.conv1 = Conv(features_in, features_out, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(features_out, groups, eps=eps, dtype=dtype)
        self.conv2 = Conv(features_out, features_out, dtype=dtype, rngs=rngs)
        shortcut = functools.partial(linear, axes=("conv_in", "conv_out"), dtype=dtype)
        same = features_in == features_out
        self.shortcut = None if same else shortcut(features_in, features_out, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
        h = self.conv1(self.norm1(x, silu=True))
        h = self.conv2(self.norm2(h, silu=True))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return (shortcut + h) * self.scale


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in its erf form (jax.nn.gelu's default is the tanh form)."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def repeated(x: Float[Array, "b ..."], count: int) -> Float[Array, "n ..."]:
    """Each clip once for each of its texts, `count` in all; x itself for one each.

    The texts of a clip, such as guidance's two, follow each other: a mesh that splits
    clips splits texts likewise.
    """
    return x if len(x) == count else jnp.repeat(x, count // len(x), 0)


def sinusoid(t: Float[Array, "b"], features: int) -> Float[Array, "b d"]:
    """Sinusoidal embedding of time steps, cosines first, float32.

    Frequencies are 10000^(-i / half), as in the original; `features` is even.
    """
    half = features // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def dropout(
    x: Float[Array, "..."], rate: float, key: PRNGKey | None
) -> Float[Array, "..."]:
    """Zero a share `rate` of x and rescale the rest; no key, no dropout.

    Bits are hashed once from the place, times one word of the key, plus another: a
    Threefry for each of the 1.2 G values that a step of the released model drops from
    would take as long as its norms.
    """
    if key is None or rate == 0:
        return x
    strides = np.cumprod((1, *x.shape[:0:-1]))[::-1]
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, stride in enumerate(strides):  # a mesh may split several of them
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place += along * jnp.uint32(stride % 2**32)
    words = jax.random.key_data(key).reshape(-1)
    bits = _hashed(place * (words[0] | 1), words[-1:])
    keep = bits >= jnp.uint32(rate * 2**32)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def _initial(rngs: nnx.Rngs, shape: tuple[int, ...], variance: float) -> Array:
    """Uniform float32 values of the given variance, zeros for 0.

    They are hashed from the key of the stream, its count and their position: a
    Threefry per parameter, which is what `jax.random` means, takes XLA 0.4 s each to
    compile for a GPU, minutes for a model made in one jit. This takes 0.03 s.
    """
    if variance == 0:
        return jnp.zeros(shape, jnp.float32)
    stream = rngs.params
    seed = jax.random.key_data(stream.key[...]).reshape(-1)
    count = stream.count[...]
    # Calling the stream would assign by index, which takes time quadratic in the size
    # of the model while tracing.
    stream.count.set_value(count + 1)
    return _uniform(seed, count, shape) * (3 * variance) ** 0.5


@functools.partial(jax.jit, static_argnames="shape")
def _uniform(seed, count, shape):
    """Values in [-1, 1) from 24 hashed bits each."""
    place = jax.lax.iota(jnp.uint32, math.prod(shape))
    bits = _hashed(place, (*seed, count.astype(jnp.uint32)))
    return ((bits >> 8).astype(jnp.float32) * 2**-23 - 1).reshape(shape)


def _hashed(place: Array, words) -> Array:
    """32 bits for each place and the words of a seed."""

    def mix(x):  # lowbias32 of C. Wellons' hash-prospector
        x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
        x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
        return x ^ (x >> 15)

    for word in words:
        place = mix(place + word)
    return place
