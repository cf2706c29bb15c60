"""Names, layouts and the strict assignment of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.models import layers
from videomv_jax.types import InputError


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.stack = nnx.List(
            layers.linear(2, 3, dtype=jnp.float32, rngs=rngs) for _ in range(11)
        )
        self.conv = layers.Conv(2, 3, dtype=jnp.float32, rngs=rngs)


def make() -> Net:
    return Net(rngs=nnx.Rngs(0))


def randoms(module, seed=0):
    rng = np.random.default_rng(seed)
    return {
        k: rng.standard_normal(s).astype(np.float32)
        for k, s in mapping.shapes(module).items()
    }


@pytest.mark.parametrize("build", [make, lambda: nnx.eval_shape(make)])
def test_assign_is_the_inverse_of_flatten(build):
    net = build()
    values = randoms(net)
    mapping.assign(net, values)
    np.testing.assert_array_equal(net.stack[10].kernel[...], values["stack.10.kernel"])
    seen = mapping.flatten(net)
    assert seen.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(seen[path], value)


def test_assign_keeps_type_and_placement():
    net = make()
    device = jax.devices()[3]
    old = net.conv.bias
    old.set_value(jax.device_put(old[...].astype(jnp.bfloat16), device))
    mapping.assign(net, randoms(net))
    assert old[...].dtype == jnp.bfloat16
    assert old[...].devices() == {device}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.pop("conv.bias"), "missing: conv.bias"),
        (lambda d: d.update(extra=d["conv.bias"]), "unexpected: extra"),
        (lambda d: d.update({"conv.bias": d["conv.bias"][:2]}), "mis-shaped: conv.b"),
        (lambda d: d["conv.bias"].fill(np.nan), "finite.*conv.bias"),
        (lambda d: [d.pop(f"stack.{i}.bias") for i in range(7)], "and 2 more"),
    ],
)
def test_assign_names_what_does_not_fit(spoil, words):
    net = make()
    values = randoms(net)
    spoil(values)
    with pytest.raises(InputError, match=words):
        mapping.assign(net, values)


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (mapping.linear, (5, 3), (3, 5)),
        (mapping.conv, (5, 3, 2, 4), (5, 2, 4, 3)),
        (mapping.conv_frames, (5, 3, 2, 1, 1), (5, 2, 1, 3)),
        (mapping.conv1x1_to_linear, (5, 3, 1, 1), (3, 5)),
        (mapping.conv1_to_linear, (5, 3, 1), (3, 5)),
        (mapping.fused(3), (15, 4), (4, 3, 5)),
        (mapping.fused(3), (15,), (3, 5)),
    ],
)
def test_layouts_invert(layout, theirs, ours):
    x = np.arange(np.prod(theirs)).reshape(theirs)
    y = layout.load(x)
    assert y.shape == ours
    np.testing.assert_array_equal(layout.save(y), x)


def test_table_stacks_and_tells_faults_in_foreign_names():
    entry = mapping.Entry("qkv.kernel", ("q", "k", "v"), mapping.linear)
    theirs = {n: np.full((4, 2), i) for i, n in enumerate("qkv")}
    wanted = {"qkv.kernel": (2, 3, 4)}
    ours = mapping.load([entry], theirs, wanted)
    np.testing.assert_array_equal(ours["qkv.kernel"][0, :, 0], [0, 1, 2])
    for name, x in mapping.save([entry], ours).items():
        np.testing.assert_array_equal(x, theirs[name])
    with pytest.raises(InputError, match=r"mis-shaped: k \(2, 4\) instead of \(4, 2\)"):
        mapping.load([entry], theirs | {"k": np.zeros((2, 4))}, wanted)
    with pytest.raises(InputError, match="missing: v; unexpected: w"):
        mapping.load([entry], {n: theirs["q"] for n in "qkw"}, wanted)
