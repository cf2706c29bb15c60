"""Meshes and the rule table."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from videomv_jax import presets
from videomv_jax.models.reconstructor import Reconstructor
from videomv_jax.models.unet import UNet
from videomv_jax.models.vae import VAE
from videomv_jax.sharding import MESH_AXES, STRATEGIES, make_mesh, param_sharding
from videomv_jax.training.state import Networks
from videomv_jax.types import InputError


def sizes(*args, **kwargs):
    return tuple(make_mesh(*args, **kwargs).shape.values())


@pytest.mark.parametrize(
    "strategy, wanted",
    [
        ("dp", (8, 1, 1, 1)),
        ("fsdp", (1, 8, 1, 1)),
        ("tp", (2, 1, 4, 1)),
        ("fsdp_tp", (1, 2, 4, 1)),
        ("view", (2, 1, 1, 4)),
        ("fsdp_view", (1, 2, 1, 4)),
    ],
)
def test_strategies_on_eight_devices(strategy, wanted):
    assert sizes(strategy) == wanted
    assert make_mesh(strategy).axis_names == MESH_AXES


def test_given_sizes_come_first():
    assert sizes(ici={"fsdp": 2}) == (4, 2, 1, 1)
    assert sizes("tp", ici={"tensor": 2}) == (4, 1, 2, 1)
    assert sizes("fsdp_view", ici={"data": 2, "fsdp": -1, "view": 2}) == (2, 2, 1, 2)
    assert sizes("tp", ici={"fsdp": -1}) == (1, 8, 1, 1)
    assert sizes("tp", devices=jax.devices()[:2]) == (1, 1, 2, 1)


def test_slices_are_the_outer_part_of_an_axis():
    mesh = make_mesh("view", ici={"view": 2}, slices=2)
    assert tuple(mesh.shape.values()) == (4, 1, 1, 2)
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)
    np.testing.assert_array_equal(numbers[:, 0, 0], [[0, 1], [2, 3], [4, 5], [6, 7]])
    mesh = make_mesh("fsdp", dcn={"fsdp": -1}, slices=2)
    assert tuple(mesh.shape.values()) == (1, 8, 1, 1)
    mesh = make_mesh("dp", ici={"data": 2, "tensor": 2}, dcn={"tensor": 2}, slices=2)
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)[:, 0, :, 0]
    # Along `tensor`: two devices of the first slice, then two of the second.
    np.testing.assert_array_equal(numbers, [[0, 1, 4, 5], [2, 3, 6, 7]])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"ici": {"data": 3}}, "data=3 does not divide 8"),
        ({"ici": {"fsdp": 3}}, "fsdp=3 does not divide 8"),
        ({"ici": {"data": -1, "view": -1}}, "at most one -1"),
        ({"ici": {"views": 2}}, "did you mean 'view'"),
        ({"dcn": {"data": 2}}, "across slices: data=2 does not divide 1"),
        ({"slices": 3}, "slices: 3"),
        ({"strategy": "fspd"}, "did you mean 'fsdp'"),
    ],
)
def test_meshes_that_do_not_fit(arguments, words):
    with pytest.raises(InputError, match=words):
        make_mesh(**arguments)


def test_rules():
    mesh = make_mesh(ici={"fsdp": 2, "tensor": 2})
    assert param_sharding(mesh, "w", (4, 6), ("embed", "mlp")).spec == PartitionSpec(
        "fsdp", "tensor"
    )
    batch = param_sharding(mesh, "x", (8, 24), ("batch", "views")).spec
    assert batch == PartitionSpec(("data", "fsdp"), None)
    # Axes of size 1 shard nothing, so nothing must divide.
    assert param_sharding(make_mesh(), "w", (3, 5), ("embed", "mlp")).spec in (
        PartitionSpec(None, None),
        PartitionSpec(),
    )


@pytest.mark.parametrize(
    "shape, axes, words",
    [
        ((4, 4), ("mlp", "heads"), "w: .*collide"),
        ((4, 3), ("embed", "mlp"), r"w: dimension 3 .*\(mlp\).* tensor=2"),
        ((4, 4), ("embed", "colour"), "w: no sharding rule"),
        ((4,), ("embed", "mlp"), "w: axes"),
    ],
)
def test_axes_that_do_not_fit(shape, axes, words):
    with pytest.raises(InputError, match=words):
        param_sharding(make_mesh(ici={"fsdp": 2, "tensor": 2}), "w", shape, axes)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", ["tiny", "t2v"])
def test_every_network_fits_every_strategy(model, strategy):
    sizes = presets.PRESETS[model]
    networks = Networks(
        lambda rngs: {
            "unet": UNet(sizes.unet, rngs=rngs),
            "vae": VAE(sizes.vae, rngs=rngs),
            "reconstructor": Reconstructor(sizes.reconstructor, rngs=rngs),
        }
    )
    shardings = networks.shardings(make_mesh(strategy))
    split = [name for name, one in shardings.items() if any(one.spec)]
    assert bool(split) == (strategy not in ("dp", "view"))
