"""Gradients of gated products and layer norms: Pallas' interpreter, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from videomv_kernels import gated_product, layer_norm
from videomv_kernels.gated_linear import hopper

TRITON = "__gpu$xla.gpu.triton"


def normal(seed, *shape, dtype="bfloat16"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def exact(tree):
    return jax.tree.map(lambda x: x.astype("float32"), tree)


def compare(found, wanted, arguments, grads, tolerances):
    """Gradients, against float32 autodiff of the same numbers."""
    _, pull = jax.vjp(found, *arguments)
    _, pull_wanted = jax.vjp(wanted, *exact(arguments))
    gradients = zip(
        pull(grads), pull_wanted(exact(grads)), arguments, tolerances, strict=True
    )
    for back, right, argument, tolerance in gradients:
        assert (back.shape, back.dtype) == (argument.shape, argument.dtype)
        far = jnp.linalg.norm((back.astype("float32") - right).ravel())
        assert far < tolerance * jnp.linalg.norm(right.ravel())


@pytest.mark.parametrize(
    "dtype,interpret", [("bfloat16", True), ("bfloat16", False), ("float16", False)]
)
def test_gated_product(monkeypatch, dtype, interpret):
    """Of rows that no tile divides; the kernel, and what stands in for it."""
    monkeypatch.setattr(gated_product, "_TILES", 2)
    shapes = (3, 20, 16), (16, 2, 128), (2, 128), (128, 8)
    arguments = [normal(i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]
    arguments[1] /= 4
    found = functools.partial(gated_product.gated_product, interpret=interpret)
    grad = normal(4, 3, 20, 8, dtype=dtype)
    tolerances = [0.01, 0.01, 0.01, 0.01] if interpret else [0.02] * 4
    compare(found, gated_product.reference, arguments, grad, tolerances)
    same = gated_product.reference(*arguments)
    np.testing.assert_array_equal(found(*arguments), same)


def test_its_normal_distribution():
    x = jnp.linspace(-12, 12, 4001)
    found = gated_product._normal_cdf(x, jnp.exp(-0.5 * x * x))
    np.testing.assert_allclose(found, jax.scipy.stats.norm.cdf(x), atol=3e-7)


@pytest.mark.parametrize("interpret", [True, False])
def test_layer_norm(monkeypatch, interpret):
    """Beside a shortcut, with rows and columns that no tile divides."""
    monkeypatch.setattr(layer_norm, "_PROGRAMS", 2)
    rows, width = 67, 320
    x = (normal(0, rows, width) * 4).round() / 2 + 1  # so that adding is exact
    offset = normal(5, width).round()
    scale, bias = (normal(i, width, dtype="float32") for i in (1, 2))
    arguments = x, offset, scale, bias
    grads = normal(3, rows, width), normal(4, rows, width)

    def found(*arguments):
        return layer_norm.layer_norm(*arguments, 1e-5, interpret=interpret)

    def wanted(x, offset, scale, bias):
        x += offset[None]
        return layer_norm.reference(x, scale, bias, 1e-5), x

    compare(found, wanted, arguments, grads, [0.004, 0.004, 1e-5, 1e-5])
    if not interpret:
        for one, other in zip(found(*arguments), wanted(*arguments), strict=True):
            np.testing.assert_array_equal(one, other)
    one, other = (f(*exact(arguments)) for f in (found, wanted))
    np.testing.assert_allclose(one[0], other[0], 1e-5, 1e-5)
    np.testing.assert_array_equal(one[1], other[1])


def test_what_they_take():
    assert gated_product.supports(normal(0, 3, 2, 256))
    assert not gated_product.supports(normal(0, 3, 2, 256, dtype="float32"))
    assert not gated_product.supports(normal(0, 3, 2, 100))
    assert layer_norm.supports(normal(0, 3, 100))
    assert not layer_norm.supports(normal(0, 3, 100, dtype="float32"))
    assert not layer_norm.supports(normal(0, 3, 2049))


# From JAX 0.11 on; docs/rasterizer.md says what comes after Triton.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_lower_for_a_gpu_without_one():
    """At shapes of the released model."""

    def loss(x, scale, *weights):
        normed, x = layer_norm.layer_norm(x, scale, scale, scale, 1e-5)
        x += gated_product.gated_product(normed, *weights)
        return jnp.square(x.astype(jnp.float32)).sum()

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
    mesh = AbstractMesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    shapes = (4, 24, 64, 1280), (1280,), (1280, 2, 5120), (2, 5120), (5120, 1280)
    types = [jnp.bfloat16, jnp.float32, *[jnp.bfloat16] * 3]
    arguments = [jax.ShapeDtypeStruct(*one) for one in zip(shapes, types, strict=True)]
    # A norm alone, which has a kernel where there is no gradient; then all gradients.
    norm = functools.partial(layer_norm.layer_norm, eps=1e-5)
    for f, inputs, kernels in (
        (norm, arguments[:2] + arguments[1:2] * 2, 1),
        (jax.grad(loss, argnums=range(5)), arguments, 3),
    ):
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(f).trace(*inputs)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count(f"@{TRITON}") == kernels


@pytest.mark.skipif(not hopper.LOWERS, reason="the kernel needs JAX 0.11's interfaces")
def test_a_device_of_a_mesh_has_its_part_of_the_gated_layer():
    """By the Hopper kernel, if whole tiles are left for each."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
    mesh = AbstractMesh(
        (2,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    weights = (256, 2, 128), (2, 128), (128, 256)
    for rows, kernels in (128, 1), (64, 0):
        inputs = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16)
            for shape in ((2, rows, 256), *weights)
        ]
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(
                lambda *a: gated_product.gated_product(*a, ("data",), True)
            ).trace(*inputs)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("@mosaic_gpu_v2") == kernels
