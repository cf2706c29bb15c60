"""The kernels for GPU and TPU in Pallas' interpreter, against the XLA backend."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from videomv_kernels.rasterize import RasterConfig, gpu, reference, tpu
from videomv_kernels.rasterize.api import render_with
from videomv_kernels.rasterize.config import make_plan

ROOMS = {"gpu": gpu, "tpu": tpu}
# Relative to the largest gradient of an array. The TPU's matrix unit takes two bfloat16
# parts of each number, 16 bits.
ERROR = {"gpu": 1e-4, "tpu": 1e-3}
CAMERA = ("world_to_camera", "intrinsics")


@functools.cache
def backend(name):
    return ROOMS[name].make_backend(interpret=True) if name in ROOMS else XLA


# One tile at a time, whose stop rule then does not wait for its neighbours'.
XLA = reference.make_backend(1)


@functools.cache
def compiled(name, config, height, width):
    """Images and gradients of a loss that looks at every output."""
    run = functools.partial(render_with, backend(name), config=config)

    def loss(inputs):
        out = run(**inputs, height=height, width=width, background=jnp.float32(0.3))
        return jnp.sin(3 * out.rgb).sum() + (out.alpha * out.depth).sum(), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def draw(name, inputs, config, height, width):
    inputs = {key: jnp.asarray(x, jnp.float32) for key, x in inputs.items()}
    (_, out), grads = compiled(name, config, height, width)(inputs)
    return out, grads


def assert_same(name, result, wanted):
    (out, grads), (other, other_grads) = result, wanted
    np.testing.assert_array_equal(out.overflow, other.overflow)
    for field in ("rgb", "alpha", "depth"):
        x, y = getattr(out, field), getattr(other, field)
        np.testing.assert_allclose(x, y, atol=1e-4 if name == "tpu" else 2e-5)
    largest = max(np.abs(grad).max() for grad in other_grads.values())
    for key, y in other_grads.items():
        limit = ERROR[name] * max(np.abs(y).max(), 1e-2 * largest)
        np.testing.assert_allclose(grads[key], y, rtol=0, atol=limit, err_msg=key)


@pytest.mark.parametrize(
    "name, tile, chunk", [("gpu", (8, 16), 8), ("tpu", (16, 16), 128)]
)
def test_same_as_xla(name, tile, chunk, scene):
    """Also where the stop rule acts: it leaves the same Gaussians out."""
    fields = scene(4, n=60, scale=0.2, opacity=(0.9, 1.3))
    config = RasterConfig(
        tile=tile, chunk=chunk, stop_transmittance=0.02, pairs_per_view=3000
    )
    result, wanted = (draw(k, fields, config, 37, 50) for k in (name, "xla"))
    assert wanted[0].alpha.max() > 0.9
    assert all(np.abs(grad).max() > 0 for grad in wanted[1].values())
    assert_same(name, result, wanted)


def facing(count=8):
    """Gaussians in front of a camera at the origin, the first at a tile corner."""
    rng = np.random.default_rng(0)
    means = rng.uniform(-1, 1, size=(count, 3))
    means[0] = 0
    means[:, 2] = 4 + 0.1 * np.arange(count)
    return {
        "means": means,
        "quats": np.tile([1.0, 0, 0, 0], (count, 1)),
        "scales": np.tile([0.25, 0.1, 0.2], (count, 1)),
        "opacities": np.full(count, 0.8),
        "colors": rng.uniform(size=(count, 3)),
        "world_to_camera": np.eye(4)[None],
        "intrinsics": np.array([[32.0, 32.0, 16.0, 16.0]]),
    }


def edge_cases():
    """Changes of `facing`: what of which Gaussians becomes what."""
    turn = [math.cos(0.2), 0, 0, math.sin(0.2)]
    return {
        "plain": {},
        "nothing visible": {"means": (slice(None), [0, 0, -4.0])},
        "behind the camera": {"means": (2, [0, 0, -4.0])},
        "one covers all": {"scales": (1, 50.0)},
        "needles": {"scales": (slice(4), [1.5, 0.01, 0.01]), "quats": (slice(4), turn)},
        "opacity 0": {"opacities": (slice(4), 0.0)},
        "opacity 1": {"opacities": (slice(4), 1.0)},
        "equal depths": {"means": (slice(None), [0.1, 0, 4.0])},
        "not a number": {"means": (1, np.nan), "colors": (2, np.inf)},
        "huge": {"scales": (1, 1e20), "means": (2, [1e30, 0, 4])},
    }


@pytest.mark.parametrize("case", edge_cases())
@pytest.mark.parametrize("name", ROOMS)
def test_edge_cases(name, case):
    inputs = facing()
    for key, (who, value) in edge_cases()[case].items():
        inputs[key][who] = value
    config = RasterConfig(stop_rule="drop")
    result, wanted = (draw(k, inputs, config, 32, 32) for k in (name, "xla"))
    assert_same(name, result, wanted)
    assert bool(wanted[0].alpha.any()) == (case != "nothing visible")


def test_one_pixel_and_many_channels():
    """An image smaller than a tile, and gradient rows longer than a warp."""
    inputs = facing() | {"colors": np.random.default_rng(1).uniform(size=(8, 26))}
    inputs["intrinsics"] = np.array([[32.0, 32.0, 0.5, 0.5]])
    config = RasterConfig(tile=(8, 8), chunk=1)
    result, wanted = (draw(k, inputs, config, 1, 1) for k in ("gpu", "xla"))
    assert np.abs(wanted[1]["colors"]).max(0).min() > 0
    assert_same("gpu", result, wanted)


def test_a_hundred_thousand_in_one_tile():
    """What has no room is counted, the farthest first, without harm to the rest."""
    n, room = 100_000, 1000
    inputs = {k: jnp.asarray(x, jnp.float32) for k, x in facing(n).items()}
    depth = 4 + jnp.arange(n, dtype=jnp.float32) * 1e-4
    inputs["means"] = jnp.stack([depth * 0, depth * 0, depth], -1)
    inputs["opacities"] = jnp.full(n, 0.01)
    inputs["intrinsics"] = jnp.asarray([[32.0, 32.0, 4.0, 8.0]])
    config = RasterConfig(tile=(16, 8), chunk=8, pairs_per_view=room)

    @functools.partial(jax.jit, static_argnames="name")
    def run(inputs, name):
        size = dict(height=16, width=8, background=None, config=config)
        return render_with(backend(name), **inputs, **size)

    out, wanted = run(inputs, "gpu"), run(inputs, "xla")
    assert out.overflow == n - room
    np.testing.assert_allclose(out.alpha, wanted.alpha, atol=1e-5)
    expected = 1 - 0.99**room
    np.testing.assert_allclose(out.alpha[0, 8, 4], expected, atol=0.02)


@pytest.mark.parametrize("most, numbering", [(1, (2, "uint32")), (7, (1, "uint16"))])
def test_tiles_that_short_keys_do_not_number(monkeypatch, scene, most, numbering):
    """Too many in a view, or in two; and fewer pairs than needed."""
    monkeypatch.setattr(gpu, "_SHORT", most)
    fresh = gpu.make_backend(interpret=True)
    inputs = {k: jnp.asarray(x, jnp.float32) for k, x in scene(2, n=40).items()}
    config = RasterConfig(tile=(8, 8), chunk=8, pairs_per_view=8)
    plan = make_plan(config, 2, 40, 16, 16, tile=(8, 8), chunk=8)
    group, dtype = gpu._numbering(plan, 2)
    assert (group, jnp.dtype(dtype).name) == numbering
    size = dict(height=16, width=16, background=jnp.float32(0.3), config=config)

    def loss(inputs, backend):
        out = render_with(backend, **inputs, **size)
        return jnp.sin(3 * out.rgb).sum() + (out.alpha * out.depth).sum(), out

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, out), grads = run(inputs, fresh)
    assert out.overflow > 0
    monkeypatch.undo()
    (_, wanted), wanted_grads = run(inputs, gpu.make_backend(interpret=True))
    jax.tree.map(np.testing.assert_array_equal, (out, grads), (wanted, wanted_grads))


@pytest.mark.parametrize("views", [3, 40])
def test_depth_order(views):
    """Against numpy; near ones keep all bits, far ones 15, ties the input's order."""
    rng = np.random.default_rng(0)
    depth = np.exp(rng.uniform(-1.5, 8, size=(views, 500))).astype(np.float32)
    depth[:, :50] = np.nextafter(depth[:, 50:100], np.float32(0))
    depth[:, 100:150] = depth[:, 150:200]
    visible = rng.uniform(size=depth.shape) < 0.9
    run = jax.jit(functools.partial(gpu._depth_order, near=0.2))
    order = np.asarray(run(depth, visible))
    wanted = np.argsort(np.where(visible, depth, np.inf), axis=1, kind="stable")
    np.testing.assert_array_equal(order, wanted)
    far = np.geomspace(1e4, 1e30, 500, dtype=np.float32)[None].repeat(views, 0)
    mixed = rng.permuted(far, axis=1)
    order = run(mixed, np.ones(far.shape, bool))
    np.testing.assert_array_equal(np.take_along_axis(mixed, np.asarray(order), 1), far)


@pytest.fixture(scope="module")
def scenes(scene):
    """Two scenes of four views, and their gradients by the XLA backend."""
    fields = scene(batch=(2,), views=4, n=20)
    inputs = {name: jnp.asarray(x, jnp.float32) for name, x in fields.items()}
    return inputs, jax.jit(jax.grad(functools.partial(total, backend=XLA)))(inputs)


def total(inputs, backend, sum_over=()):
    config = RasterConfig(pairs_per_view=200)
    size = dict(height=16, width=24, background=None)
    out = render_with(backend, **inputs, **size, config=config)
    value = jnp.sin(out.rgb).sum() + (out.alpha * out.depth).sum()
    return jax.lax.psum(value, sum_over) if sum_over else value


@pytest.mark.parametrize("name", ROOMS)
def test_vmap_and_remat(name, scenes):
    inputs, wanted = scenes
    loss = jax.checkpoint(functools.partial(total, backend=backend(name)))
    run = jax.jit(jax.vmap(jax.grad(loss)))
    grads, again = run(inputs), run(inputs)
    jax.tree.map(np.testing.assert_array_equal, grads, again)
    for key, y in wanted.items():
        limit = ERROR[name] * np.abs(y).max()
        np.testing.assert_allclose(grads[key], y, rtol=0, atol=limit, err_msg=key)


@pytest.mark.parametrize("name", ROOMS)
def test_shard_map(name, scenes):
    """Scenes over 2 devices, views over 4. The interpreter mixes what varies over the
    mesh with what does not, so this does not check it; `test_lowers_sharded` does."""
    inputs, wanted = scenes
    mesh = jax.make_mesh((2, 4), ("scene", "view"), axis_types=(AxisType.Auto,) * 2)
    specs = {key: P("scene") for key in inputs}
    specs |= {key: P("scene", "view") for key in CAMERA}
    loss = functools.partial(total, backend=backend(name), sum_over=("scene", "view"))
    mapped = jax.shard_map(
        loss, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=False
    )
    grads = jax.jit(jax.grad(mapped))(inputs)
    for key, y in wanted.items():
        limit = ERROR[name] * np.abs(y).max()
        np.testing.assert_allclose(grads[key], y, rtol=0, atol=limit, err_msg=key)


def test_refused():
    for room, config, message in (
        (gpu, RasterConfig(tile=(8, 12)), "powers of two"),
        (gpu, RasterConfig(tile=(4, 4)), "at least 32 pixels"),
        (tpu, RasterConfig(tile=(8, 8)), "multiple of 128 pixels"),
        (tpu, RasterConfig(chunk=64), "multiple of 128"),
        (tpu, RasterConfig(pairs_per_view=20_000_000), "set pairs_per_view"),
    ):
        with pytest.raises(ValueError, match=message):
            room.make_backend().plan(config, 1, 1 << 16, 1024, 1024)
