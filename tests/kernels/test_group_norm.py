"""Group norms: Pallas' interpreter against plain JAX, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from videomv_kernels.group_norm import group_norm, reference, supports

TRITON = "__gpu$xla.gpu.triton"


def arguments(n, rows, c, dtype="bfloat16"):
    """x, gain, bias, offset and a gradient."""
    rng = np.random.default_rng(rows)
    x, grad = (jnp.asarray(rng.normal(size=(n, rows, c)), dtype) for _ in range(2))
    gain, bias = (jnp.asarray(rng.normal(size=c), "float32") for _ in range(2))
    return x + 1, gain, bias, jnp.asarray(rng.normal(size=(n, c)), dtype), grad


@pytest.mark.parametrize(
    ("n", "rows", "c", "groups", "silu", "offsets", "dtype"),
    [
        (2, 16, 64, 16, True, 0, "bfloat16"),  # one kernel, whole tiles
        (2, 21, 192, 32, True, 2, "bfloat16"),  # groups across a vector's end
        (2, 270, 320, 32, True, 1, "bfloat16"),  # several, across a block's end
        (2, 517, 64, 4, False, 0, "float16"),  # the last rows are few
    ],
)
def test_values_and_gradients(n, rows, c, groups, silu, offsets, dtype, error):
    *inputs, offset, grad = arguments(n, rows, c, dtype)
    inputs += [offset[:offsets]] if offsets else []
    options = dict(groups=groups, eps=1e-5, silu=silu)

    def run(norm, inputs, grad):
        y, pull = jax.vjp(functools.partial(norm, **options), *inputs)
        return y, *pull(grad.astype(y.dtype))

    run = jax.jit(run, static_argnums=0)
    exact = [x.astype("float32") for x in inputs]
    wanted = run(reference, exact, grad)
    kernel = functools.partial(group_norm, interpret=True)
    found = run(kernel, inputs, grad)
    alone = kernel(*inputs, **options)
    assert error(alone, wanted[0]) < 0.01
    for value, exact, given in zip(found, wanted, (grad, *inputs), strict=True):
        assert value.dtype == given.dtype
        assert error(value, exact) < (0.01 if given.dtype == dtype else 1e-5)


def test_samples_do_not_meet():
    x, gain, bias, *_ = arguments(2, 20, 64)
    kernel = functools.partial(group_norm, groups=8, eps=1e-5, interpret=True)
    other = kernel(x.at[0, 3, :8].add(1), gain, bias)
    changed = np.asarray(kernel(x, gain, bias) != other)
    assert changed[0, :, :8].mean() > 0.5
    assert not changed[0, :, 8:].any() and not changed[1].any()


def test_what_it_takes():
    x, gain, bias, *_ = arguments(2, 3, 64)
    assert supports(x, 32)
    assert not supports(x, 24)
    assert not supports(x.astype("float32"), 32)
    assert not supports(x[..., :32], 32)
    with pytest.raises(ValueError, match=r"float32 \(2, 3, 64\) in 32 groups"):
        group_norm(x.astype("float32"), gain, bias, groups=32, eps=1e-5)


# From JAX 0.11 on; docs/rasterizer.md says what comes after Triton.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize(
    ("shape", "kernels"), [((2, 24576, 320), 4), ((48, 64, 1280), 2)]
)
def test_lowers_for_a_gpu_without_one(shape, kernels):
    """At the released model's shapes, forward and backward."""

    def loss(*inputs):
        y = group_norm(*inputs, groups=32, eps=1e-5, silu=True)
        return y.astype(jnp.float32).sum()

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
    mesh = AbstractMesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    parameter = jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, parameter, parameter)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"@{TRITON}") == kernels
