"""Images and gradients against a dense float64 oracle and the original's fixture."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videomv_kernels
from videomv_kernels.rasterize import ORIGINAL, RasterConfig, rasterize
from videomv_kernels.rasterize.api import render_with
from videomv_kernels.rasterize.reference import (
    GPU_ELEMENTS,
    make_backend,
)

SIZE = {"height": 37, "width": 50}
# The oracle never stops; neither do these within float32.
EXACT = RasterConfig(stop_transmittance=1e-9)
STEPS = {"one tile at a time": 1, "all tiles": GPU_ELEMENTS}
CASES = {
    "sparse": dict(scale=0.03, opacity=(0.05, 0.5)),
    "dense": dict(scale=0.1),
    "opaque": dict(scale=0.2, opacity=(0.9, 1.3)),
}


def weights(seed=5, channels=3):
    """Random factors of a loss that looks at every output."""
    rng = np.random.default_rng(seed)
    shape = (2, SIZE["height"], SIZE["width"])
    return [rng.normal(size=s) for s in ((*shape, channels), shape, shape)]


def loss_of(rgb, alpha, depth, factors):
    parts = zip((rgb, alpha, depth), factors, strict=True)
    return sum((x * jnp.asarray(w, x.dtype)).sum() for x, w in parts)


@pytest.fixture(scope="session")
def oracle(dense):
    """Images and the gradients of all arrays, in float64."""

    @functools.cache
    def compiled(**options):
        def loss(inputs, background):
            out = dense(**inputs, background=background, **SIZE, **options)
            return loss_of(*out, weights()), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def run(fields, background, **options):
        with jax.enable_x64(True):
            inputs = {name: jnp.asarray(x) for name, x in fields.items()}
            (_, images), grads = compiled(**options)(inputs, jnp.asarray(background))
            return jax.tree.map(np.asarray, (images, with_background(grads)))

    return run


def with_background(grads):
    return {**grads[0], "background": grads[1]}


@functools.cache
def compiled(config, step):
    backend = make_backend(step and STEPS[step])

    def loss(inputs, background):
        out = render_with(
            backend, **inputs, background=background, config=config, **SIZE
        )
        return loss_of(out.rgb, out.alpha, out.depth, weights()), out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def ours(fields, background, config=EXACT, step=None):
    inputs = {name: jnp.asarray(x, jnp.float32) for name, x in fields.items()}
    background = jnp.asarray(background, jnp.float32)
    (_, images), grads = compiled(config, step)(inputs, background)
    assert images.overflow == 0
    return images[:3], with_background(grads)


def assert_close(result, wanted, image, gradient):
    """Absolute errors of images; of gradients relative to the array's largest."""
    for name, x, y in zip(("rgb", "alpha", "depth"), result[0], wanted[0], strict=True):
        np.testing.assert_allclose(x, y, atol=image, err_msg=name)
    for name, y in wanted[1].items():
        largest = np.abs(y).max()
        assert largest > 0
        np.testing.assert_allclose(
            result[1][name], y, rtol=0, atol=gradient * largest, err_msg=name
        )


@pytest.mark.parametrize("case", CASES)
def test_matches_the_oracle(case, scene, oracle):
    fields, background = scene(1, **CASES[case]), [0.2, 0.5, 0.9]
    result = ours(fields, background)
    assert_close(result, oracle(fields, background), 1e-5, 1e-4)


@pytest.mark.parametrize(
    "step, tile, chunk",
    [("one tile at a time", (16, 16), 7), ("all tiles", (4, 8), 3)],
)
def test_steps_tiles_and_chunks(step, tile, chunk, scene, oracle):
    fields, background = scene(2), [0.2, 0.5, 0.9]
    config = dataclasses.replace(EXACT, tile=tile, chunk=chunk)
    result = ours(fields, background, config, step)
    assert_close(result, oracle(fields, background), 1e-5, 1e-4)


def test_finite_differences(scene, dense):
    """The oracle's derivatives are right: autodiff's word against differences.

    Without the threshold at 1/255, where pixels jump.
    """
    fields, rng, step = scene(3, n=20), np.random.default_rng(0), 1e-6

    def loss(fields):
        images = dense(**fields, background=0.3, alpha_min=0.0, **SIZE)
        return loss_of(*images, weights())

    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(loss))
        grads = both(fields)[1]
        for name, grad in grads.items():
            direction = rng.normal(size=grad.shape)
            plus, minus = (
                both(fields | {name: fields[name] + sign * step * direction})[0]
                for sign in (1, -1)
            )
            slope = (plus - minus) / (2 * step)
            np.testing.assert_allclose((grad * direction).sum(), slope, rtol=1e-5)


def test_original_fixture():
    """Images of the original's rules: 3 sigma tiles, and a stop that drops."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "raster_tiny.npz")
    config = json.loads(str(golden["config"]))
    height, width = config["height"], config["width"]
    raw = jnp.asarray(golden["in/gaussians"])
    focal = width / 2 / config["tanfovx"], height / 2 / config["tanfovy"]
    inputs = (
        raw[:, :3],
        raw[:, 7:11],
        raw[:, 4:7],
        raw[:, 3],
        raw[:, 11:],
        jnp.asarray(golden["in/cam_view"]).mT,
        jnp.asarray([[*focal, width / 2, height / 2]] * 2, jnp.float32),
    )
    options = dict(height=height, width=width, background=golden["in/background"])
    wanted = golden["out/image"].transpose(0, 2, 3, 1)
    run = jax.jit(functools.partial(rasterize, **options), static_argnames="config")
    result = run(*inputs, config=ORIGINAL)
    np.testing.assert_allclose(result.rgb, wanted, atol=1e-5)
    np.testing.assert_allclose(result.alpha, golden["out/alpha"], atol=1e-5)
    np.testing.assert_allclose(result.depth, golden["out/depth"], atol=2e-5)
    assert result.overflow == 0
    other = run(*inputs, config=RasterConfig())
    assert np.abs(other.rgb - wanted).max() > 1e-3


def test_stop_that_drops(scene, oracle):
    """At a high threshold: pixels end before the Gaussian that would cross it."""
    fields, background = scene(4, **CASES["opaque"]), [0.0, 0.0, 0.0]
    config = RasterConfig(stop_transmittance=0.02, stop_rule="drop", chunk=4)
    wanted = oracle(fields, background, drop_at=0.02)
    assert_close(ours(fields, background, config), wanted, 1e-5, 1e-4)


def test_stop_that_keeps(scene, dense):
    """What a tile skips is worth no more than the threshold."""
    fields = scene(4, **CASES["opaque"])
    inputs = {name: jnp.asarray(x, jnp.float32) for name, x in fields.items()}
    config = RasterConfig(stop_transmittance=0.02, chunk=4)
    result = jax.jit(functools.partial(rasterize, config=config, **SIZE))(**inputs)
    with jax.enable_x64(True):
        _, alpha, _ = jax.jit(functools.partial(dense, **SIZE))(**fields)
    missing = np.asarray(alpha) - np.asarray(result.alpha)
    assert missing.min() > -1e-6 and 1e-4 < missing.max() <= 0.02


@pytest.mark.parametrize("extents", ["exact", "original"])
def test_gradient_where_alpha_is_limited(extents, scene, oracle):
    fields, background = scene(6, scale=0.1, opacity=(1.5, 3.0)), [0.1, 0.2, 0.3]
    config = dataclasses.replace(EXACT, extents=extents)
    passes = extents == "original"
    wanted = oracle(fields, background, straight_through=passes)
    other = oracle(fields, background, straight_through=not passes)
    grad = ours(fields, background, config)[1]["opacities"]
    error, contrast = (
        np.abs(grad - o[1]["opacities"]).max() / np.abs(o[1]["opacities"]).max()
        for o in (wanted, other)
    )
    # The original's tiles cut some Gaussians off before 1/255.
    assert error < (0.1 if passes else 1e-4) and contrast > 0.2


def test_the_package_offers_it():
    assert videomv_kernels.rasterize is rasterize
