"""Counted operations against arithmetic done by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from videomv_jax.training.flops import count

A, B = jnp.ones((4, 8)), jnp.ones((8, 16))
PRODUCT = 2 * 4 * 8 * 16


def flops(f, *args):
    return count(jax.jit(f).trace(*args).jaxpr)


def test_product_and_its_gradients():
    assert flops(jnp.dot, A, B) == PRODUCT
    loss = jax.grad(lambda a, b: jnp.square(a @ b).sum(), argnums=(0, 1))
    assert flops(loss, A, B) == 3 * PRODUCT


def test_batched_product():
    assert flops(jax.vmap(jnp.dot), jnp.ones((3, 4, 8)), jnp.ones((3, 8, 16))) == (
        3 * PRODUCT
    )


def test_convolution():
    x, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((5, 3, 3, 3))

    def conv(x, kernel):
        layout = ("NHWC", "OHWI", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout
        )

    forward = 2 * (2 * 3 * 3 * 5) * (3 * 3 * 3)
    assert flops(conv, x, kernel) == forward
    # The derivative by the input: its holes are not counted, its borders are.
    back = flops(jax.grad(lambda x: conv(x, kernel).sum()), x)
    assert forward / 2 <= back <= 3 * forward


def test_scan_counts_its_length_and_branches_the_costlier_one():
    def scan(a, b):
        return jax.lax.scan(lambda c, _: (c, c @ b), a, None, length=7)[1]

    assert flops(scan, A, B) == 7 * PRODUCT

    def branch(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((4, 16)))

    assert flops(branch, A, B) == PRODUCT


def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((2, 4), ("other", "rows"), (AxisType.Auto,) * 2)
    rows = PartitionSpec("rows")

    def split(a, b):
        specs = {"in_specs": (rows, PartitionSpec()), "out_specs": rows}
        return jax.shard_map(jnp.dot, mesh=mesh, axis_names={"rows"}, **specs)(a, b)

    assert flops(split, A, B) == PRODUCT
