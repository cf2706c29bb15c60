"""Blocks of the UNet against the original's, and the initial values of layers.

The small input (0.002 times the normal one) is where the eps of the norms decides.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from videomv_kernels.gated_linear import hopper

from videomv_jax import compat, sharding
from videomv_jax.convert import mapping
from videomv_jax.convert import unet as names
from videomv_jax.models import blocks, layers
from videomv_jax.models.blocks import (
    ResBlock,
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
)

OPTIONS = dict(dtype="float32")


def build(block: str) -> nnx.Module:
    rngs = nnx.Rngs(0)
    if block == "res":
        return ResBlock(64, 96, 80, **OPTIONS, rngs=rngs)
    if block == "spatial":
        return SpatialTransformer(64, 4, 48, **OPTIONS, rngs=rngs)
    return TemporalTransformer(64, 3, 16, **OPTIONS, rngs=rngs)


@pytest.fixture(scope="module")
def fixture(golden):
    return golden("blocks_tiny")


@pytest.fixture(scope="module", params=["res", "spatial", "temporal"])
def block(request, fixture):
    """Name of a block, the block with the original's weights, compiled."""
    name = request.param
    module = nnx.eval_shape(lambda: build(name))
    places = {name: name, "res.temporal": "res.temopral_conv"}
    paths = {f"{name}.{path}": s for path, s in mapping.shapes(module).items()}
    theirs = {k: x for k, x in fixture.param.items() if k.startswith(f"{name}/")}
    theirs = {k.replace("/", "."): x for k, x in theirs.items()}
    flat = mapping.load(names.translate(paths, places, "videomv"), theirs, paths)
    mapping.assign(module, {k.removeprefix(f"{name}."): x for k, x in flat.items()})
    return name, module, nnx.jit(lambda module, *args: module(*args))


@pytest.mark.parametrize("size", ["normal", "small"])
def test_matches_the_original(fixture, block, error, size):
    name, module, call = block
    x = fixture.in_["x"] * (fixture.in_["small_scale"] if size == "small" else 1)
    x = x.astype(np.float32).transpose(0, 2, 3, 1)
    x = x.reshape(2, 3, *x.shape[1:])
    emb = fixture.in_["emb"].reshape(2, 3, -1)
    # The original repeats the text for every view; here views share it.
    context = fixture.in_["context"].reshape(2, 3, 5, 48)
    if name == "spatial":
        y = jnp.concatenate(
            [call(module, x[:, i : i + 1], context[:, i]) for i in range(3)], 1
        )
    else:
        y = call(module, x, *([emb] if name == "res" else []))
    y = y.reshape(6, *y.shape[2:]).transpose(0, 3, 1, 2)
    assert error(y, fixture.out[f"{name}/{size}"]) <= 2e-5


def test_views_share_the_text_of_their_clip(filled):
    module = filled(lambda: build("spatial"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 2, 2, 64)).astype(np.float32)
    context = rng.normal(size=(2, 5, 48)).astype(np.float32)
    call = nnx.jit(lambda module, *args: module(*args))
    together = call(module, x, context)
    apart = call(module, x.reshape(6, 1, 2, 2, 64), context.repeat(3, 0))
    np.testing.assert_allclose(together.reshape(apart.shape), apart, 1e-5, 1e-5)
    assert not np.allclose(call(module, x, context[::-1]), together, atol=0.1)


def test_blocks_start_as_their_skip():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 4, 4, 64)), "float32")
    context = jnp.ones((1, 5, 48))
    np.testing.assert_array_equal(build("spatial")(x, context), x)
    np.testing.assert_array_equal(build("temporal")(x), x)
    res = build("res")
    y = res(x, jnp.ones((1, 2, 80)))
    np.testing.assert_allclose(y, res.skip(x), atol=1e-6)


def test_dropout_follows_its_key():
    block = TemporalConv(64, groups=32, rate=0.5, **OPTIONS, rngs=nnx.Rngs(0))
    block.convs[3].kernel.set_value(block.convs[2].kernel[...])
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 64))
    call = jax.jit(lambda block, x, key=None: block(x, key))
    keys = jax.random.split(jax.random.key(1))
    a, b = (call(block, x, key) for key in keys)
    np.testing.assert_array_equal(call(block, x, keys[0]), a)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, call(block, x))


def test_where_a_residual_block_drops(monkeypatch):
    """Before its second convolution and all temporal ones but the first."""
    keys = []

    def record(x, rate, key):
        keys.append(key)
        return x

    monkeypatch.setattr(blocks, "dropout", record)
    x, embedding = jnp.ones((1, 1, 1, 1, 64)), jnp.ones((1, 1, 80))
    jax.eval_shape(lambda key: build("res")(x, embedding, key), jax.random.key(0))
    assert [key is None for key in keys] == [False, True, False, False, False]


def test_dropout_keeps_the_mean():
    x = jnp.ones((200, 100))
    y = layers.dropout(x, 0.1, jax.random.key(0))
    assert abs(float(y.mean()) - 1) < 0.01
    assert abs(float((y == 0).mean()) - 0.1) < 0.01


def test_a_mesh_drops_what_one_device_does():
    x, key = jnp.ones((8, 6, 10, 4)), jax.random.key(0)
    with jax.set_mesh(sharding.make_mesh("dp")):
        found = jax.jit(lambda: layers.dropout(x, 0.5, key))()
    np.testing.assert_array_equal(found, layers.dropout(x, 0.5, key))


def test_dropout_is_independent_of_keys_and_places():
    """What is dropped together is as often so as by chance, within five deviations."""
    x = jnp.ones((200, 100))
    keys = [jax.random.key(0), jax.random.key(1), *jax.random.split(jax.random.key(2))]
    dropped = [np.asarray(layers.dropout(x, 0.1, key) == 0).ravel() for key in keys]
    dropped += [np.roll(dropped[0], by) for by in (1, 2, 7, 64, 100, 1000)]
    for i, one in enumerate(dropped):
        for other in dropped[:i]:
            assert abs((one & other).mean() - 0.01) < 5 * 0.1 / one.size**0.5


def test_initial_values_have_their_variance_and_differ():
    rngs = nnx.Rngs(jax.random.key(3))
    options = dict(rngs=rngs, **OPTIONS)
    kernels = [
        layers.linear(64, 192, **options).kernel[...],
        layers.linear(64, 192, **options).kernel[...],
        layers.linears(64, 3, 64, **options).kernel[...],
        layers.Conv(64, 192, (1, 1), **options).kernel[...],
    ]
    flat = np.stack([np.ravel(k) for k in kernels]) * 64**0.5
    assert np.allclose(flat.mean(1), 0, atol=0.05)
    assert np.allclose(flat.std(1), 1, atol=0.03)
    # Neither kernels nor neighbouring values of one kernel know of each other.
    assert np.allclose(np.corrcoef(flat), np.eye(4), atol=0.05)
    assert np.allclose((flat[:, 1:] * flat[:, :-1]).mean(1), 0, atol=0.05)
    again = layers.linear(64, 192, rngs=nnx.Rngs(jax.random.key(3)), **OPTIONS).kernel[
        ...
    ]
    np.testing.assert_array_equal(again, kernels[0])
    other = layers.linear(64, 192, rngs=nnx.Rngs(4), **OPTIONS).kernel[...]
    assert abs(np.corrcoef(np.ravel(other), flat[0])[0, 1]) < 0.05


def test_gradients_on_gpus():
    """There norms and gated products have gradients of their own, on a mesh, too."""
    x, onto = (jax.random.normal(jax.random.key(i), (4, 3, 8, 64)) for i in range(2))

    def gradients(dtype):
        options = dict(dtype=dtype, rngs=nnx.Rngs(0))
        both = nnx.List(
            [
                blocks.TransformerBlock(64, 2, **options),
                layers.linear(64, 64, **options),
            ]
        )
        graph, params = nnx.split(both)

        def loss(params, x):
            block, proj_in = nnx.merge(graph, params)
            y = block(x.astype(dtype), proj_in)
            return (y.astype("float32") * onto).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(params, x)

    def far(found, wanted):
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        norm = jnp.linalg.norm
        return max(float(norm(a - b) / norm(b)) for a, b in pairs)

    wanted = gradients("float32")
    with compat.compiling_for("gpu"):
        one = gradients("bfloat16")
        mesh = sharding.make_mesh("fsdp", ici={"fsdp": 2}, devices=jax.devices()[:4])
        with jax.set_mesh(mesh):
            assert sharding.batch_axes(4) == ("data", "fsdp")
            assert sharding.batch_axes(2) is None
            several = gradients("bfloat16")
    assert far(one, wanted) < 0.03
    assert far(several, wanted) < 0.03


# From JAX 0.11 on; docs/rasterizer.md says what comes after Triton.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.skipif(not hopper.LOWERS, reason="the kernel needs JAX 0.11's interfaces")
def test_gated_layers_are_a_kernel_on_one_hopper(error):
    ff = blocks.FeedForward(256, dtype="bfloat16", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 256)), "bfloat16")
    graph, params = nnx.split(ff)
    wanted = ff(x, onto=x)

    def forward(params, x):
        return nnx.merge(graph, params)(x, onto=x)

    def loss(params, x):
        return forward(params, x).astype("float32").sum()

    def traced(f):
        with compat.compiling_for("gpu"):
            return jax.jit(lambda *args: f(*args)).trace(params, x)

    def kernels(f, devices=1):
        gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
        auto = (AxisType.Auto,)
        mesh = AbstractMesh((devices,), ("data",), auto, abstract_device=gpu)
        with jax.sharding.use_abstract_mesh(mesh):
            text = traced(f).lower(lowering_platforms=("cuda",)).as_text()
        return text.count("@mosaic_gpu_v2")

    assert kernels(forward) == 1
    assert kernels(jax.value_and_grad(loss)) == 0
    ff.recomputed = True  # the product is, without the kernel
    graph, params = nnx.split(ff)
    assert kernels(jax.value_and_grad(jax.checkpoint(loss))) == 1
    program = traced(forward).lower(lowering_platforms=("cpu",)).compile()
    assert error(program(params, x), wanted) < 0.01
    assert kernels(forward, devices=2) == 0
