"""Which form of attention a GPU gets, by shape and type, without a GPU."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from videomv_kernels import view_attention

from videomv_jax import compat, sharding
from videomv_jax.models import attention, unet
from videomv_jax.models.attention import SelfAttention, ViewAttention
from videomv_jax.training.state import Networks

FLASH, BACKWARD = "@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("
TRITON = "@__gpu$xla.gpu.triton("
# From JAX 0.11 on; docs/rasterizer.md says what comes after Triton.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The Pallas Triton backend:DeprecationWarning"
)


@pytest.fixture
def lowered(monkeypatch):
    """The text of a function's program for an H200 whose cuDNN JAX cannot ask."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_100)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(
        cudnn, "is_cuda_compute_capability_equal", lambda _: False, raising=False
    )
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
    mesh = AbstractMesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )

    def text(function, *args):
        with compat.compiling_for("gpu"), jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(function).trace(*args)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return text


def tokens(queries, keys, dtype="bfloat16", width=64):
    q = jax.ShapeDtypeStruct((2, queries, 5, width), dtype)
    k = jax.ShapeDtypeStruct((2, keys, 5, width), dtype)
    return q, k, k


@pytest.mark.parametrize(
    ("shapes", "flash"),
    [
        (tokens(1024, 1024), 1),
        (tokens(24 * 64, 77), 1),
        (tokens(64, 64), 1),
        (tokens(16, 16), 0),
        (tokens(77, 77), 0),
        (tokens(1024, 1024, "float32"), 0),
        (tokens(1024, 1024, width=512), 0),
    ],
)
def test_cudnn_where_it_is_faster_and_able(lowered, shapes, flash):
    # A new function each time: what is traced for a shape is kept.
    text = lowered(lambda *qkv: attention.attention(*qkv), *shapes)
    assert text.count(FLASH) == flash


@pytest.mark.parametrize("keys", [77, 1024])
def test_its_gradient_gets_an_even_number_of_keys(lowered, keys):
    def loss(*qkv):
        return attention.attention(*qkv).astype(jnp.float32).sum()

    text = lowered(jax.grad(loss, (0, 1, 2)), *tokens(1024, keys))
    assert text.count(FLASH) == text.count(BACKWARD) == 1
    assert ("2x80x5x64" in text) == (keys == 77)


@pytest.mark.parametrize(("dtype", "kernels"), [("bfloat16", 2), ("float32", 0)])
def test_views_have_a_kernel_of_their_own(lowered, dtype, kernels):
    layer = ViewAttention(64, 2, bias=False, dtype=dtype, rngs=nnx.Rngs(0))

    def loss(x):
        return layer(x).astype(jnp.float32).sum()

    x = jax.ShapeDtypeStruct((2, 24, 16, 64), dtype)
    assert lowered(jax.value_and_grad(loss), x).count(TRITON) == kernels


def test_flash_attention_is_not_recomputed(lowered):
    layer = SelfAttention(64, 1, bias=False, dtype="bfloat16", rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)

    def loss(policy, x):
        def call(x):
            return nnx.merge(graph, params)(x)

        y = jax.checkpoint(call, policy=unet._REMAT[policy])(x)
        return jnp.square(y.astype(jnp.float32)).sum()

    x = jax.ShapeDtypeStruct((2, 256, 64), "bfloat16")
    for policy, again in {"narrow": 0, "attention": 0, "block": 1}.items():
        text = lowered(jax.grad(functools.partial(loss, policy)), x)
        assert text.count(FLASH) == 1 + again
        assert text.count(BACKWARD) == 1


@pytest.mark.slow
def test_the_released_unet_lowers(lowered):
    """With all kernels and gradients: 16 attentions to the text, 15 of many tokens."""
    config = dataclasses.replace(unet.PRESETS["t2v"], remat="narrow")
    networks = Networks(lambda rngs: {"unet": unet.UNet(config, rngs=rngs)})
    params = jax.eval_shape(networks.init, jax.random.key(0))

    def loss(params, *inputs):
        y = networks.merge(params)["unet"](*inputs, key=jax.random.key(1))
        return jnp.square(y).mean()

    shapes = (4, 24, 32, 32, 4), (4,), (4, 77, 1024), (4, 24, 16)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = lowered(jax.value_and_grad(loss), params, *inputs)
    names = collections.Counter(re.findall(r'name = .?"(\w+)', text))
    # Those under jit are lowered once for each shape, of five in transformers.
    wanted = {
        "view_attention_forward": 5,
        "view_attention_backward": 5,
        "layer_norm_forward": 2 * 5,  # again in the backward pass
        "layer_norm_backward": 5,
        "gated_product_backward": 5,
        "group_norm_sum": 51,
        "group_norm_fold": 51,
        "group_norm_whole": 18,
    }
    assert names == wanted and text.count(TRITON) == sum(wanted.values())
    assert text.count(BACKWARD) == 16 + 15
    assert text.count(FLASH) == 16 + 15  # not again in the backward pass


def test_cudnn_reads_products_of_their_own(lowered):
    """They are those of the joined product, whose slices XLA would copy for cuDNN."""
    layer = SelfAttention(64, 1, bias=True, dtype="bfloat16", rngs=nnx.Rngs(0))
    joined, x = "x3x64xbf16>", jax.ShapeDtypeStruct((2, 256, 64), "bfloat16")
    assert f"tensor<2x256{joined}" not in lowered(lambda x: layer(x), x)
    x = jax.ShapeDtypeStruct((2, 16, 64), "bfloat16")
    assert f"tensor<2x16{joined}" in lowered(lambda x: layer(x), x)

    exact = SelfAttention(64, 2, bias=True, dtype="float32", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 256, 64))
    graph, params = nnx.split(exact)

    def loss(params):
        return jnp.square(nnx.merge(graph, params)(x)).sum()

    wanted = jax.jit(jax.grad(loss))(params)
    with compat.compiling_for("gpu"):
        found = jax.jit(jax.grad(lambda params: loss(params)))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("strategy", "views", "part"),
    [
        ("dp", (1, 4, 16, 3, 64), (1, 4, 16, 2, 32)),
        ("tp", (4, 4, 16, 3, 64), (4, 4, 16, 2, 32)),  # four do not share two heads
        ("fsdp_view", (4, 4, 4, 3, 64), (4, 1, 16, 2, 32)),
    ],
)
@pytest.mark.parametrize("kind", [ViewAttention, SelfAttention])
def test_each_device_attends_for_its_part(monkeypatch, kind, strategy, views, part):
    """A GPU's kernels, which would be given everything; here their twins are."""
    seen = []

    def spy(module, name):
        real = getattr(module, name)

        def call(x, *args, **options):
            seen.append(x.shape)
            return real(x, *args, **options)

        monkeypatch.setattr(module, name, call)

    spy(view_attention, "reference")
    spy(attention, "_plain")
    layer = kind(64, 2, bias=False, dtype="float32", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (8, 4, 16, 64))
    wanted = layer(x)
    mesh = sharding.make_mesh(strategy)
    with compat.compiling_for("gpu"), jax.set_mesh(mesh):
        seen.clear()
        found = jax.jit(layer)(jax.device_put(x, sharding.batch_sharding(mesh)))
    assert seen == [views if kind is ViewAttention else part]
    np.testing.assert_allclose(found, wanted, 1e-4, 1e-4)
