"""Scenes at the edge: nothing there, too much, too large, not a number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from videomv_kernels.rasterize import RasterConfig, rasterize

SIZE = 32
COUNT = 8
CAMERA = ("world_to_camera", "intrinsics")


@functools.cache
def compiled(height, width, config):
    def loss(inputs):
        out = rasterize(**inputs, height=height, width=width, config=config)
        return out.rgb.sum() + (out.alpha * out.depth).sum(), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def draw(inputs, height=SIZE, width=SIZE, config=None):
    """The output, and the gradient of a loss, which must be finite."""
    inputs = {name: jnp.asarray(x, jnp.float32) for name, x in inputs.items()}
    (_, out), grads = compiled(height, width, config or RasterConfig())(inputs)
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name
    assert all(np.isfinite(x).all() for x in out)
    return out, grads


def facing(n=1, *, spread=0.0, views=1):
    """n Gaussians in front of a camera at the origin that looks down z.

    The first is at depth 4, where a world unit is 8 pixels, each next 0.1 farther. The
    axis hits the image's centre, a corner of four tiles. Transparent ones fill up to
    `COUNT`, so that all tests share one compiled program.
    """
    rng = np.random.default_rng(0)
    means = rng.uniform(-1, 1, size=(COUNT, 3)) * [spread, spread, 0]
    means[:, 2] = 4 + 0.1 * np.arange(COUNT)
    return {
        "means": means,
        "quats": np.tile([1.0, 0, 0, 0], (COUNT, 1)),
        "scales": np.full((COUNT, 3), 0.2),
        "opacities": np.where(np.arange(COUNT) < n, 0.8, 0.0),
        "colors": rng.uniform(size=(COUNT, 3)),
        "world_to_camera": np.stack([np.eye(4)] * views),
        "intrinsics": np.array([[32.0, 32.0, SIZE / 2, SIZE / 2]] * views),
    }


def test_nothing_visible():
    out_of_sight = np.tile(
        [[0, 0, -4.0], [0, 0, 0.1], [900.0, 0, 4], [0, 0, 0]], (2, 1)
    )
    transparent = np.tile([0.0, -1.0, 0.003, 1 / 256], 2)
    for field, value in (("means", out_of_sight), ("opacities", transparent)):
        out, grads = draw(facing(COUNT) | {field: value})
        assert not out.alpha.any() and not out.rgb.any() and out.overflow == 0
        assert not any(np.any(grad) for grad in grads.values())


def test_behind_the_camera_changes_nothing():
    inputs = facing(3)
    inputs["means"][2] = [0, 0, -4.0]
    np.testing.assert_array_equal(draw(inputs)[0].rgb, draw(facing(2))[0].rgb)


def test_centre_on_a_tile_corner():
    """All four tiles see their quarter: the image is symmetric."""
    alpha = draw(facing())[0].alpha[0]
    assert alpha[15:17, 15:17].min() > 0.7
    np.testing.assert_allclose(alpha, alpha[::-1], atol=1e-6)
    np.testing.assert_allclose(alpha, alpha.T, atol=1e-6)


def test_one_covers_all():
    inputs = facing() | {"scales": np.full((COUNT, 3), 50.0)}
    out, _ = draw(inputs)
    np.testing.assert_allclose(out.alpha, 0.8, atol=2e-3)
    np.testing.assert_allclose(out.depth, 4 * out.alpha, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 4])
def test_needles(angle):
    """Long and thin, across many tiles, against the closed form."""
    quat = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
    turned = {
        "quats": np.tile(quat, (COUNT, 1)),
        "scales": np.tile([1.5, 0.01, 0.01], (COUNT, 1)),
    }
    out, _ = draw(facing() | turned)
    axis = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-axis[1], axis[0]])
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    along, aside = x * axis[0] + y * axis[1], x * across[0] + y * across[1]
    form = along**2 / (12.0**2 + 0.3) + aside**2 / (0.08**2 + 0.3)
    wanted = 0.8 * np.exp(-form / 2)
    wanted[wanted < 1 / 255] = 0
    np.testing.assert_allclose(out.alpha[0], wanted, atol=1e-4)


def test_opacity_one():
    inputs = facing() | {"scales": np.full((COUNT, 3), 0.8)}
    inputs["opacities"][0] = 1.0
    out, grads = draw(inputs)
    np.testing.assert_allclose(out.alpha.max(), 0.99, rtol=1e-6)
    assert grads["opacities"][0] > 0 and not grads["opacities"][1:].any()


@pytest.mark.parametrize("height, width", [(1, 1), (5, 41)])
def test_any_size(height, width):
    """The same scene, cut out of a larger image."""
    inputs = facing(6, spread=0.05)
    inputs["intrinsics"][:, 2:] = [width / 2, height / 2]
    small, _ = draw(inputs, height, width)
    large, _ = draw(inputs, 48, 48)
    assert small.rgb.shape == (1, height, width, 3) and small.alpha.max() > 0.5
    cut = large.alpha[:, :height, :width]
    np.testing.assert_allclose(small.alpha, cut, atol=1e-6)


def test_order_of_the_input_does_not_matter():
    inputs = facing(COUNT, spread=1.5)
    order = np.random.default_rng(1).permutation(COUNT)
    turned = {name: x if name in CAMERA else x[order] for name, x in inputs.items()}
    one, two = draw(inputs), draw(turned)
    np.testing.assert_allclose(one[0].rgb, two[0].rgb, atol=1e-6)
    for name in set(inputs) - set(CAMERA):
        gradient = one[1][name][order]
        np.testing.assert_allclose(gradient, two[1][name], atol=1e-5, rtol=1e-4)


def test_equal_depths_keep_the_order_of_the_input():
    inputs = facing(2) | {"colors": np.eye(COUNT)[:, :3]}
    inputs["means"][:, 2] = 4.0
    red, green, _ = draw(inputs)[0].rgb[0, 15, 15]
    assert red > 3 * green > 0


@pytest.mark.parametrize("capacity", [1, 13])
def test_overflow(capacity):
    """Farthest first, exactly counted, per view, and without harm to the rest."""
    # Each in exactly four tiles of 8 by 8 around the centre; all but the last view
    # see all of them, so that a view's overflow must not reach the next.
    inputs = facing(COUNT, views=3)
    inputs["world_to_camera"][2, 2, 3] = -20.0
    config = RasterConfig(pairs_per_view=capacity, tile=(8, 8))
    out, grads = draw(inputs, config=config)
    assert out.overflow == 2 * (4 * COUNT - capacity)
    np.testing.assert_array_equal(out.rgb[0], out.rgb[1])
    assert not out.alpha[2].any()
    # Row by row: the last of the four tiles has no room for one Gaussian more.
    wanted, _ = draw(facing(capacity // 4))
    corner = (slice(16, 24), slice(16, 24))
    np.testing.assert_allclose(out.rgb[0][corner], wanted.rgb[0][corner], atol=1e-6)
    partly = -(-capacity // 4)
    assert grads["colors"][:partly].any(1).all() and not grads["colors"][partly:].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors"])
def test_not_finite_gaussians_are_left_out(name, value):
    inputs, clean = facing(4, spread=0.3), facing(4, spread=0.3)
    clean["opacities"][2] = 0.0
    inputs[name].reshape(COUNT, -1)[2, 0] = value
    out, grads = draw(inputs)
    wanted, wanted_grads = draw(clean)
    np.testing.assert_allclose(out.rgb, wanted.rgb, atol=1e-6)
    assert out.overflow == 0
    for key, grad in grads.items():
        assert key in CAMERA or not np.any(grad[2])
        np.testing.assert_allclose(grad, wanted_grads[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CAMERA)
def test_not_finite_cameras_see_nothing(name):
    inputs = facing(4, spread=0.3, views=2)
    inputs[name][1].flat[0] = np.nan
    out, grads = draw(inputs)
    assert out.alpha[0].max() > 0.5 and not out.alpha[1].any() and out.overflow == 0
    assert not grads[name][1].any() and grads[name][0].any()


def test_huge_numbers_do_no_harm():
    inputs = facing(4, spread=0.3)
    inputs["scales"][1] = 1e20
    inputs["means"][2] = [1e30, 0, 4]
    inputs["means"][3] = [0, 0, 1e30]
    out, _ = draw(inputs)
    assert out.alpha.max() > 0.5


def test_background():
    """A grey, a colour for each view, and one for each view of each scene."""
    scenes = {
        name: jnp.asarray(np.stack([x, x]), jnp.float32)
        for name, x in facing(3, views=3).items()
    }
    render = jax.jit(functools.partial(rasterize, height=8, width=8))
    plain = render(**scenes)
    through = 1 - plain.alpha[..., None]
    rng = np.random.default_rng(0)
    for shape in ((), (3, 3), (2, 3, 3)):
        color = rng.uniform(size=shape).astype(np.float32)
        full = np.broadcast_to(color, (2, 3, 3))[:, :, None, None]
        result = render(**scenes, background=color)
        np.testing.assert_allclose(result.rgb, plain.rgb + through * full, atol=1e-6)
        np.testing.assert_array_equal(result.alpha, plain.alpha)


def test_many_channels():
    inputs = facing(5, spread=0.5)
    colors = np.random.default_rng(0).uniform(size=(COUNT, 32))
    out, grads = draw(inputs | {"colors": colors})
    assert grads["colors"].shape == (COUNT, 32)
    for part in (slice(0, 3), slice(29, 32)):
        wanted, wanted_grads = draw(inputs | {"colors": colors[:, part]})
        np.testing.assert_allclose(out.rgb[..., part], wanted.rgb, atol=1e-6)
        np.testing.assert_allclose(
            grads["colors"][:, part], wanted_grads["colors"], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(out.depth, wanted.depth, atol=1e-6)


def test_bad_input():
    inputs = {k: jnp.asarray(x, jnp.float32) for k, x in facing(3).items()}
    call = functools.partial(rasterize, height=8, width=8)
    for change, message in (
        ({"implementation": "cuda"}, "implementation is 'cuda'; choose from .*xla"),
        ({"height": 0}, "image is 0 x 8"),
        ({"quats": inputs["means"]}, r"quats has shape \(8, 3\), wanted \(8, 4\)"),
        ({"colors": jnp.zeros((COUNT, 33))}, "colors has 33 channels, wanted 1 to 32"),
        ({"means": jnp.zeros((0, 3))}, "wanted"),
        ({"means": jnp.zeros(3)}, "means"),
        ({"background": jnp.zeros(4)}, r"background has shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**(inputs | change))
    for bad, message in (
        ({"extents": "round"}, "extents is 'round'; choose"),
        ({"stop_rule": "never"}, "stop_rule is 'never'; choose"),
        ({"extents": "original", "tile": (8, 8)}, r"defined on \(16, 16\)"),
        ({"chunk": 0}, "must be positive"),
        ({"alpha_max": 1.0}, "0 < alpha_min < alpha_max < 1"),
        ({"near": 0.0}, "near 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            RasterConfig(**bad)
    config, size = RasterConfig(pairs_per_view=1 << 30), 1 << 17
    many = {name: jnp.stack([x] * 3) for name, x in inputs.items()}
    with pytest.raises(ValueError, match="3 views of 8 Gaussians and .* pairs are"):
        rasterize(**many, height=size, width=size, config=config)
