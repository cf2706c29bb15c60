"""The UNet over a mesh: the same numbers, and what travels between devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax import sharding
from videomv_jax.models.unet import UNet, UNetConfig
from videomv_jax.scale.collectives import collectives
from videomv_jax.training.state import Networks

CONFIG = UNetConfig(
    dim=64,
    multipliers=(1,),
    res_blocks=1,
    attention_levels=1,
    head_dim=32,
    num_heads=2,
    context_dim=32,
    dropout=0.1,
    dtype="float32",
)
NETWORKS = Networks(lambda rngs: {"unet": UNet(CONFIG, rngs=rngs)})
B, F, SIZE = 8, 8, 8


def gradients(params, x, t, context, camera):
    """Loss and its gradients, with dropout, as a training step has them."""

    def loss(params):
        unet = NETWORKS.merge(params)["unet"]
        return jnp.square(unet(x, t, context, camera, key=jax.random.key(3))).mean()

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, F, SIZE, SIZE, 4)).astype("float32")
    context = rng.normal(size=(B, 5, 32)).astype("float32")
    camera = rng.normal(size=(B, F, 16)).astype("float32")
    return x, np.arange(B) * 100, context, camera


@pytest.fixture(scope="module")
def params():
    def filled(x):  # also the layers that start at zero
        noise = np.random.default_rng(x.size).normal(size=x.shape)
        return x + 0.05 * noise.astype("float32")

    with jax.default_matmul_precision("highest"):
        return jax.tree.map(filled, jax.jit(NETWORKS.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def wanted(params, inputs):
    return jax.jit(gradients)(params, *inputs)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one, marks=() if one == "fsdp_view" else pytest.mark.slow)
        for one in sharding.STRATEGIES
    ],
)
def program(request, params, inputs):
    """The compiled gradients on a mesh of eight devices, and its arguments."""
    # Two clips a device where views are split: leading axes that must not be merged.
    mesh = sharding.make_mesh(request.param)
    params = {
        name: jax.device_put(params[name], place)
        for name, place in NETWORKS.shardings(mesh).items()
    }
    batch = jax.device_put(inputs, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradients).lower(params, *batch).compile()
    return request.param, mesh, compiled, (params, *batch)


def test_every_mesh_computes_the_same(program, wanted):
    _, _, compiled, arguments = program
    loss, found = compiled(*arguments)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    for name, gradient in wanted[1].items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[name] / scale, gradient / scale, atol=1e-4)


def test_views_travel_in_all_to_alls(program):
    _, mesh, compiled, _ = program
    if mesh.shape["view"] == 1:
        return
    found = collectives(compiled.as_text(), dict(mesh.shape))
    # A device's share of an activation: what it has to hold of it, no more.
    share = 4 * CONFIG.dim * B * F * SIZE**2 // 8
    moved = [one for one in found if (one.kind, one.axes) == ("all-to-all", "view")]
    # There and back, forward and backward, for every temporal layer: the first, two in
    # each of the three stages, three in the middle.
    assert len(moved) == 4 * (1 + 2 * 3 + 3)
    assert {one.result_bytes for one in moved} == {share}
    # Beside them only sums (of norms and of gradients), and what has no pixels:
    # embeddings and weights, half as large at most. No activation is gathered.
    others = [one for one in found if "view" in one.axes and one not in moved]
    large = [one for one in others if one.result_bytes > share // 2]
    assert {one.kind for one in large} <= {"all-reduce"}


def test_views_must_divide():
    mesh = sharding.make_mesh("view", ici={"view": 4})
    with jax.set_mesh(mesh), pytest.raises(sharding.InputError, match="6 .*view=4"):
        jax.eval_shape(
            lambda x: sharding.constrain(x, "batch", "views"), jnp.ones((4, 6, 2))
        )
