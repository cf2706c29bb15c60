"""The gated layer: Pallas' interpreter against plain JAX, and lowering."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from videomv_kernels.gated_linear import gated_linear, hopper, reference, supports

needs_interfaces = pytest.mark.skipif(
    not hopper.LOWERS, reason="the kernel needs JAX 0.11's interfaces"
)


def test_gelu_in_both_tails():
    x = np.linspace(-12, 12, 9601, dtype=np.float32)
    wanted = np.array([float(v) * math.erfc(-float(v) / 2**0.5) / 2 for v in x])
    found = np.asarray(hopper.gelu(jnp.asarray(x)), np.float64)
    assert np.abs(found - wanted).max() < 1e-6
    near = np.abs(x) < 5
    np.testing.assert_allclose(found[near], wanted[near], 1e-5, 1e-30)
    far = np.asarray(hopper.gelu(jnp.asarray([-1e30, -100, 0, 100, 1e30])))
    np.testing.assert_array_equal(far, np.array([0, 0, 0, 100, 1e30], np.float32))


def layer(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    x, kernel, bias = (rng.normal(size=s) for s in ((m, k), (k, 2, n), (2, n)))
    kernel = kernel * (2 / k) ** 0.5
    return tuple(jnp.asarray(a, jnp.bfloat16) for a in (x, kernel, bias))


def exact(*inputs):
    return reference(*(a.astype(jnp.float32) for a in inputs))


@needs_interfaces
@pytest.mark.parametrize("tiles", [hopper.Tiles(), hopper.Tiles(128, 64, 3, 2)])
def test_values(tiles, error):
    """Of more tiles than blocks, whose shares are not even."""
    inputs = layer(768, 320, 256)
    params = mosaic_gpu.InterpretGPUParams(detect_races=True)
    found = hopper.gated(*inputs, tiles, most=5, interpret=params)
    assert found.dtype == jnp.bfloat16
    assert error(found, exact(*inputs)) < 2**-8


@needs_interfaces
def test_of_rows_with_leading_axes(error):
    x, *weights = layer(128, 256, 128)
    params = mosaic_gpu.InterpretGPUParams()
    found = gated_linear(x.reshape(2, 64, 256), *weights, interpret=params)
    assert error(found.reshape(128, 128), exact(x, *weights)) < 2**-8


def test_what_it_takes():
    inputs = x, kernel, bias = layer(128, 256, 128)
    assert supports(*inputs) == hopper.LOWERS
    assert supports(x, kernel, bias.astype("float32")) == hopper.LOWERS
    assert not supports(x.astype("float32"), kernel, bias)
    assert not supports(x, kernel.astype("float32"), bias)
    for m, k, n in (64, 256, 128), (128, 288, 128), (128, 192, 128), (128, 256, 64):
        assert not supports(*layer(m, k, n))
    with pytest.raises(ValueError, match=r"x: float32 \(128, 256\)"):
        gated_linear(x.astype("float32"), kernel, bias)


@needs_interfaces
def test_lowers_for_a_gpu_without_one():
    """At the released model's shapes."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
    mesh = AbstractMesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    shapes = (2, 24, 1024, 320), (320, 2, 1280), (2, 1280)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = (
            jax.jit(gated_linear).trace(*inputs).lower(lowering_platforms=("cuda",))
        )
    assert lowered.as_text().count("@mosaic_gpu_v2") == 1
