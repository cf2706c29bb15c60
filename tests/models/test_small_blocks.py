"""Blocks of the autoencoder and of the reconstructor against the original's.

The small input (0.002 times the normal one) is where the eps of the norms decides.
"""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from videomv_kernels import group_norm

from videomv_jax import compat, sharding
from videomv_jax.convert import mapping
from videomv_jax.models.layers import Conv, UpsampleConv, linear, linears
from videomv_jax.models.norms import GroupNorm
from videomv_jax.models.reconstructor import Reconstructor, ReconstructorConfig
from videomv_jax.models.rounding import cast_weights, rounded_to
from videomv_jax.models.vae import VAE, VAEConfig


# The fixture's blocks go from 64 to 96 features, its attentions have 64. All are taken
# out of whole networks, so that those are known to use the right eps.
def autoencoder() -> VAE:
    config = VAEConfig(channels=32, multipliers=(2, 3), layers=1, dtype="float32")
    return VAE(config, rngs=nnx.Rngs(0))


def attention_of_pixels() -> nnx.Module:
    config = VAEConfig(channels=64, multipliers=(1,), layers=1, dtype="float32")
    return VAE(config, rngs=nnx.Rngs(0)).encoder.middle.blocks[1]


def reconstructor() -> Reconstructor:
    config = ReconstructorConfig(
        down_channels=(64, 96),
        down_attention=(True, False),
        up_channels=(96,),
        up_attention=(False,),
        layers=1,
        dtype="float32",
    )
    return Reconstructor(config, rngs=nnx.Rngs(0))


def test_upsampling_by_phases_is_upsampling(error):
    layer = UpsampleConv(5, 7, dtype="float32", rngs=nnx.Rngs(0))
    layer.bias[...] = np.arange(7, dtype=np.float32)
    plain = Conv(5, 7, dtype="float32", rngs=nnx.Rngs(0))
    plain.kernel, plain.bias = layer.kernel, layer.bias
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6, 5)).astype(np.float32)
    large = x.repeat(2, -3).repeat(2, -2)
    assert error(layer(x), plain(large)) < 1e-6


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_what_layers_add_to(error, platform):
    rngs = nnx.Rngs(0)
    dense = linear(5, 7, dtype="float32", rngs=rngs)
    conv = Conv(5, 7, view_axis=1, dtype="float32", rngs=rngs)
    x, onto = (np.random.default_rng(0).normal(size=(1, 2, 3, 3, n)) for n in (5, 7))
    x, onto = x.astype(np.float32), onto.astype(np.float32)
    for layer in dense, conv:
        add = jax.jit(layer.__call__)
        layer.bias[...] = np.arange(7, dtype=np.float32)
        with compat.compiling_for(platform):
            y, pull = jax.vjp(add, x, onto)
        assert error(y, layer(x) + onto) < 1e-6
        wanted, back = jax.vjp(layer, x)[1](onto)[0], pull(onto)
        assert error(back[0], wanted) < 1e-6
        np.testing.assert_array_equal(back[1], onto)


@pytest.mark.parametrize(
    ("strategy", "parts", "offset_of"),
    [
        (None, [(8, 32, 64)], "each"),
        ("dp", [(1, 32, 64)], "each"),
        ("dp", [(1, 32, 64)], "all"),
        ("fsdp_view", [], "each"),
    ],
)
def test_norms_of_a_gpu(monkeypatch, error, strategy, parts, offset_of):
    """Its kernels, whose twin is here, have the samples of each device alone."""
    seen, real = [], group_norm.reference

    def twin(x, *args, **options):
        seen.append(x.shape)
        return real(x, *args, **options)

    monkeypatch.setattr(group_norm, "reference", twin)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 64)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(8, 4, 8, 64)), "bfloat16")
    offset = jnp.asarray(rng.normal(size=(8, 64)), "bfloat16")
    offset = offset if offset_of == "each" else offset[0]

    def gradients(dtype):
        norm = GroupNorm(64, 8, eps=1e-5, dtype=dtype)
        norm.scale[...], norm.bias[...] = weights
        graph, params = nnx.split(norm)

        def loss(params, x, offset):
            y = nnx.merge(graph, params)(x, offset=offset, silu=True)
            return jnp.square(y.astype(jnp.float32)).sum()

        inputs = x.astype(dtype), offset.astype(dtype)
        return jax.jit(jax.grad(loss, (0, 1, 2)))(params, *inputs)

    wanted = gradients("float32")
    mesh = sharding.make_mesh(strategy) if strategy else None
    with compat.compiling_for("gpu"), jax.set_mesh(mesh) if mesh else nullcontext():
        found = gradients("bfloat16")
    assert seen == parts
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert error(a, b) < 0.02


def test_cast_weights_change_nothing_that_is_computed():
    config = VAEConfig(channels=32, multipliers=(1,), layers=1, dtype="bfloat16")
    vae = VAE(config, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    before = vae.decode(x)
    assert rounded_to(vae) is None
    cast_weights(vae)
    assert rounded_to(vae) == "bfloat16"
    np.testing.assert_array_equal(vae.decode(x), before)
    kinds = {x.dtype.name for x in mapping.flatten(vae).values()}
    assert kinds == {"bfloat16", "float32"}  # norms stay


def test_a_gpu_rounds_small_weights_together():
    """With an operand in common, which changes neither them nor their gradients."""
    layer = linear(8, 8, dtype="bfloat16", rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), (4, 8), "bfloat16")

    def loss(state):
        layer = nnx.merge(graph, state)
        cast_weights(layer)
        return jnp.square(layer(x).astype(jnp.float32)).sum()

    wanted = jax.jit(jax.value_and_grad(loss))(state)
    with compat.compiling_for("gpu"):
        traced = jax.jit(jax.value_and_grad(lambda state: loss(state))).trace(state)
    assert str(traced.jaxpr).count("optimization_barrier") == 2  # of two shapes
    found = traced.lower().compile()(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_products_of_one_input():
    """Its own gradient is that of the products one by one."""
    layer = linears(6, 3, 4, dtype="float32", rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x, *grads = (jax.random.normal(jax.random.key(i), (2, 5, 6)) for i in range(4))
    grads = [grad[..., :4] for grad in grads]

    def one_by_one(x, state):
        whole = nnx.merge(graph, state)
        return [whole(x)[..., i, :] for i in range(3)]

    def together(x, state):
        return nnx.merge(graph, state).parts(x)

    results = [jax.vjp(f, x, state) for f in (together, one_by_one)]
    pairs = zip(*((y, pull(grads)) for y, pull in results), strict=True)
    for found, wanted in pairs:
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


RESIDUAL = [
    ("norm1.scale", "norm1.weight"),
    ("norm1.bias", "norm1.bias"),
    ("conv1.kernel", "conv1.weight", mapping.conv),
    ("conv1.bias", "conv1.bias"),
    ("norm2.scale", "norm2.weight"),
    ("norm2.bias", "norm2.bias"),
    ("conv2.kernel", "conv2.weight", mapping.conv),
    ("conv2.bias", "conv2.bias"),
]
NORM = [("norm.scale", "norm.weight"), ("norm.bias", "norm.bias")]
BLOCKS = {
    "ae_res": (
        lambda: autoencoder().encoder.levels[1].blocks[0],
        [
            *RESIDUAL,
            ("shortcut.kernel", "nin_shortcut.weight", mapping.conv1x1_to_linear),
            ("shortcut.bias", "nin_shortcut.bias"),
        ],
    ),
    "lgm_res": (
        lambda: reconstructor().unet.down[1].layers[0].block,
        [
            *RESIDUAL,
            ("shortcut.kernel", "shortcut.weight", mapping.conv1x1_to_linear),
            ("shortcut.bias", "shortcut.bias"),
        ],
    ),
    "ae_attn": (
        attention_of_pixels,
        [
            *NORM,
            (
                "attention.qkv.kernel",
                ("q.weight", "k.weight", "v.weight"),
                mapping.conv1x1_to_linear,
            ),
            ("attention.qkv.bias", ("q.bias", "k.bias", "v.bias")),
            ("attention.out.kernel", "proj_out.weight", mapping.conv1x1_to_linear),
            ("attention.out.bias", "proj_out.bias"),
        ],
    ),
    "lgm_attn": (
        lambda: reconstructor().unet.down[0].layers[0].attention,
        [
            *NORM,
            ("attention.qkv.kernel", "attn.qkv.weight", mapping.fused(3)),
            ("attention.out.kernel", "attn.proj.weight", mapping.linear),
            ("attention.out.bias", "attn.proj.bias"),
        ],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_the_original(name, golden, error):
    make, rows = BLOCKS[name]
    z = golden("blocks_small_nets")
    table = [mapping.Entry(*row) for row in rows]
    theirs = mapping.under(f"{name}/", z.param)
    block = nnx.eval_shape(make)
    mapping.assign(block, mapping.load(table, theirs, mapping.shapes(block)))
    x = np.moveaxis(z.in_["x_views" if name.startswith("lgm") else "x"], 1, -1)
    for scale, case in ((np.float32(1), "normal"), (z.in_["small_scale"], "small")):
        wanted = np.moveaxis(z.out[f"{name}/{case}"], 1, -1)
        assert (
            error(nnx.jit(lambda block, x: block(x))(block, scale * x), wanted) < 2e-5
        )
