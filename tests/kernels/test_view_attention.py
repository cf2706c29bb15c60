"""Attention over views: Pallas' interpreter against plain JAX, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from videomv_kernels.view_attention import reference, supports, view_attention

TRITON = "__gpu$xla.gpu.triton"


def joined(views, heads, width, dtype="bfloat16", b=2, length=3):
    rng = np.random.default_rng(views)
    x = rng.normal(size=(b, views, length, 3, heads * width)) * 1.5
    return jnp.asarray(x, dtype)


@pytest.mark.parametrize(
    ("views", "heads", "width", "dtype"),
    [(24, 2, 64, "bfloat16"), (5, 3, 16, "float16"), (1, 1, 32, "bfloat16")],
)
def test_values_and_gradients(views, heads, width, dtype, error):
    qkv = joined(views, heads, width, dtype)
    exact = qkv.astype("float32")
    kernel = functools.partial(view_attention, heads=heads, interpret=True)
    wanted, pull = jax.vjp(functools.partial(reference, heads=heads), exact)
    found, pull_kernel = jax.vjp(kernel, qkv)
    assert found.dtype == dtype
    assert error(found, wanted) < 0.01
    grad = jnp.asarray(np.random.default_rng(0).normal(size=found.shape), dtype)
    (back,), (wanted_back,) = pull_kernel(grad), pull(grad.astype("float32"))
    assert back.dtype == dtype
    for part in range(3):  # one view has no gradients but for its value
        scale = float(jnp.abs(wanted_back).max())
        difference = back[..., part, :].astype("float32") - wanted_back[..., part, :]
        assert float(jnp.abs(difference).max()) < 0.02 * scale


def test_pixels_and_clips_do_not_meet():
    qkv = joined(4, 2, 16)
    kernel = functools.partial(view_attention, heads=2, interpret=True)
    other = qkv.at[0, :, 0].add(1)
    changed = np.asarray(kernel(qkv) != kernel(other))
    assert changed[0, :, 0].any() and not changed[0, :, 1:].any()
    assert not changed[1].any()


def test_what_it_takes():
    qkv = joined(4, 2, 16)
    assert supports(qkv, 2)
    assert not supports(qkv.astype("float32"), 2)
    assert not supports(joined(65, 2, 16, length=1), 2)
    assert not supports(joined(4, 2, 40), 2)
    with pytest.raises(ValueError, match=r"float32 \(2, 4, 3, 3, 32\) with 2 heads"):
        view_attention(qkv.astype("float32"), 2)


# From JAX 0.11 on; docs/rasterizer.md says what comes after Triton.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_lowers_for_a_gpu_without_one():
    """At the released model's shapes, forward and backward."""

    def loss(qkv):
        return view_attention(qkv, 5).astype(jnp.float32).sum()

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
    mesh = AbstractMesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    qkv = jax.ShapeDtypeStruct((2, 24, 1024, 3, 320), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.value_and_grad(loss)).trace(qkv)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"@{TRITON}") == 2
