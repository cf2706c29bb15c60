"""The same numbers under every transformation of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from videomv_kernels.rasterize import ORIGINAL, rasterize

SIZE = {"height": 20, "width": 28}
CAMERA = ("world_to_camera", "intrinsics")
GAUSSIANS = ("means", "quats", "scales", "opacities", "colors")
TRITON = "__gpu$xla.gpu.triton"


@pytest.fixture(scope="module")
def inputs(scene):
    """Two scenes of four views."""
    fields = scene(batch=(2,), views=4, n=40)
    return {name: jnp.asarray(x, jnp.float32) for name, x in fields.items()}


def render(inputs):
    return rasterize(**inputs, background=0.3, **SIZE)


def loss(inputs):
    out = render(inputs)
    return jnp.sin(out.rgb).sum() + (out.alpha * out.depth).sum()


@pytest.fixture(scope="module")
def wanted(inputs):
    """Images and gradients of the plain call."""
    out = jax.jit(render)(inputs)
    assert out.alpha.max() > 0.5
    return out, jax.jit(jax.grad(loss))(inputs)


def assert_same(result, wanted):
    for name, x, y in zip(wanted._fields, result, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6, err_msg=name)


def assert_same_grads(result, wanted):
    for name, y in wanted.items():
        largest = np.abs(y).max()
        assert largest > 0
        np.testing.assert_allclose(
            result[name], y, rtol=0, atol=1e-5 * largest, err_msg=name
        )


def test_vmap_over_scenes(inputs, wanted):
    assert_same(jax.jit(jax.vmap(render))(inputs), wanted[0])
    assert_same_grads(jax.jit(jax.vmap(jax.grad(loss)))(inputs), wanted[1])


def test_vmap_over_cameras_of_one_scene(inputs, wanted):
    """Gaussians not mapped, cameras mapped twice."""
    first = {name: x[0] for name, x in inputs.items()}
    cameras = {name: first.pop(name)[:, None] for name in CAMERA}

    def total(scene):
        def one(camera):
            return loss(scene | camera)

        return jax.vmap(one)(cameras).sum()

    grads = jax.jit(jax.grad(total))(first)
    assert_same_grads(grads, {name: wanted[1][name][0] for name in first})


def test_remat(inputs, wanted):
    assert_same_grads(jax.jit(jax.grad(jax.checkpoint(loss)))(inputs), wanted[1])


def test_named_backend(inputs, wanted):
    named = functools.partial(rasterize, background=0.3, implementation="xla", **SIZE)
    assert_same(jax.jit(named)(**inputs), wanted[0])


def sharded(wanted):
    """`render` and a loss of it with scenes over 2 devices, views over 4."""
    mesh = jax.make_mesh((2, 4), ("scene", "view"), axis_types=(AxisType.Auto,) * 2)
    specs = {name: P("scene") for name in GAUSSIANS}
    specs |= {name: P("scene", "view") for name in CAMERA}
    views = P("scene", "view")

    def local(inputs):
        out = render(inputs)
        return out._replace(overflow=jax.lax.psum(out.overflow, "view"))

    out_specs = type(wanted[0])(views, views, views, P("scene"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=out_specs)

    def mapped_loss(inputs):
        out = mapped(inputs)
        return jnp.sin(out.rgb).sum() + (out.alpha * out.depth).sum()

    return mapped, mapped_loss


def test_shard_map(inputs, wanted):
    """No collectives but the gradient's sum."""
    mapped, mapped_loss = sharded(wanted)
    result = jax.jit(mapped)(inputs)
    assert len(result.rgb.sharding.device_set) == 8
    assert_same(result, wanted[0])
    assert_same_grads(jax.jit(jax.grad(mapped_loss))(inputs), wanted[1])


def test_no_recompilation(inputs):
    """Other numbers, the same program."""
    run = jax.jit(render)
    run(inputs)
    run(jax.tree.map(lambda x: x * 1.01, inputs))
    assert run._cache_size() == 1


def test_same_bits_twice(inputs):
    """On a CPU gradients are added in a fixed order."""
    run = jax.jit(jax.grad(loss))
    one, two = run(inputs), run(inputs)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def text_for(function, inputs, platform):
    """The program lowered for a platform. JAX 0.11 wants to know which GPU it is."""
    kinds = {"cuda": "NVIDIA H200", "tpu": "TPU v5e", "cpu": "cpu"}
    device = AbstractDevice(
        device_kind=kinds[platform], num_cores=None, platform=platform
    )
    mesh = AbstractMesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(function).trace(inputs)
        return traced.lower(lowering_platforms=(platform,)).as_text()


# From JAX 0.11 on; docs/rasterizer.md says what comes after Triton.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_lowers_for_other_devices(inputs):
    """Each platform's own kernels, forward and backward, without one at hand."""
    kernels = {"cpu": (0, 0), "cuda": (5, 0), "tpu": (0, 2)}
    for platform, wanted in kernels.items():
        text = text_for(jax.grad(loss), inputs, platform)
        found = [text.count(f"@{name}") for name in (TRITON, "tpu_custom_call")]
        assert tuple(found) == wanted, platform


def test_lowers_sharded(inputs, wanted):
    """The kernels agree with shard_map on what varies over the mesh."""
    traced = jax.jit(jax.grad(sharded(wanted)[1])).trace(inputs)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 2
    if jax.__version_info__ < (0, 11):  # from then on the mesh itself must be of GPUs
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count(f"@{TRITON}") == 5


@pytest.mark.parametrize("name, other", [("gpu", "tpu"), ("tpu", "cuda")])
def test_a_named_backend_never_falls_back(inputs, name, other):
    named = functools.partial(rasterize, implementation=name, **SIZE)
    with pytest.raises(ValueError, match=f"{name!r} runs on .*, not on cpu"):
        named(**inputs)
    with pytest.raises(ValueError, match=f"{name!r} runs on .*, not on {other}"):
        jax.jit(named).trace(**inputs).lower(lowering_platforms=(other,))
    with pytest.raises(ValueError, match=f"{name!r} has no extents='original'"):
        named(**inputs, config=ORIGINAL)


def test_what_only_xla_does_goes_there(inputs):
    """Without a name: the original's rules need no other backend's consent."""
    run = functools.partial(rasterize, config=ORIGINAL, **SIZE)
    lowered = jax.jit(run).trace(**inputs).lower(lowering_platforms=("cuda",))
    assert f"@{TRITON}" not in lowered.as_text()
