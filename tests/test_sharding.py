"""Meshes and the rule table."""

import pytest
from jax.sharding import PartitionSpec

from videomv_jax.sharding import make_mesh, param_sharding
from videomv_jax.types import InputError


def test_mesh_takes_the_rest():
    assert dict(make_mesh(fsdp=2).shape) == {
        "data": 4, "fsdp": 2, "tensor": 1, "view": 1
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"data": -1, "view": -1}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(InputError, match="mesh"):
        make_mesh(**sizes)


def test_rules():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert param_sharding(mesh, "w", (4, 6), ("embed", "mlp")).spec == PartitionSpec(
        "fsdp", "tensor"
    )
    # Axes of size 1 shard nothing, so nothing must divide.
    assert param_sharding(make_mesh(), "w", (3, 5), ("embed", "mlp")).spec in (
        PartitionSpec(None, None),
        PartitionSpec(),
    )


@pytest.mark.parametrize(
    "shape, axes, words",
    [
        ((4, 4), ("mlp", "heads"), "w: .*collide"),
        ((4, 3), ("embed", "mlp"), "w: dimension 3"),
        ((4, 4), ("embed", "colour"), "w: no sharding rule"),
        ((4,), ("embed", "mlp"), "w: axes"),
    ],
)
def test_axes_that_do_not_fit(shape, axes, words):
    with pytest.raises(InputError, match=words):
        param_sharding(make_mesh(fsdp=2, tensor=2), "w", shape, axes)
