"""The reconstructor against LGM, and its own promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import reconstructor as convert
from videomv_jax.models.reconstructor import (
    PRESETS,
    MultiViewUNet,
    Reconstructor,
    ReconstructorConfig,
    activate,
)
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.types import InputError

SMALL = ReconstructorConfig(
    down_channels=(8, 16),
    down_attention=(False, True),
    up_channels=(16,),
    up_attention=(True,),
    layers=1,
    heads=2,
    groups=4,
    dtype="float32",
)
TOLERANCE = 2e-5


def make(config: ReconstructorConfig) -> Reconstructor:
    return Reconstructor(config, rngs=nnx.Rngs(0))


def views(b: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.random((b, 4, 8, 12, 3), np.float32)
    return images, rng.standard_normal((b, 4, 8, 12, 6)).astype(np.float32)


@nnx.jit
def raw(reconstructor, images, rays):
    return reconstructor.raw(images, rays)


@nnx.jit
def reconstruct(reconstructor, images, rays):
    return reconstructor(images, rays)


def packed(gaussians: Gaussians) -> jax.Array:
    """As the original packs them."""
    return jnp.concatenate(
        [
            gaussians.means,
            gaussians.opacities[..., None],
            gaussians.scales,
            gaussians.quats,
            gaussians.colors,
        ],
        -1,
    )


def test_equals_the_original(golden, error):
    z = golden("lgm_tiny")
    config = ReconstructorConfig(
        dtype="float32",
        **{
            k: tuple(z.config[k])
            for k in ("down_channels", "down_attention", "up_channels", "up_attention")
        },
    )
    reconstructor = nnx.eval_shape(lambda: make(config))
    mapping.assign(reconstructor, convert.load(reconstructor, z.param))
    x = np.moveaxis(z.in_["images"], 2, -1).reshape(-1, 32, 32, 9)
    wanted = {k: np.moveaxis(z.out[k], 1, -1) for k in ("unet", "conv")}
    out = nnx.jit(lambda unet, x: unet(x))(reconstructor.unet, x)
    assert error(out, wanted["unet"]) < TOLERANCE
    out = reconstructor.mix(out)
    assert error(out, wanted["conv"]) < TOLERANCE
    out = out.reshape(2, -1, 14)
    for norm, name in (("gaussian", "lgm"), ("components", "videomv")):
        gaussians = activate(out, dataclasses.replace(config, quaternion_norm=norm))
        seen, theirs = packed(gaussians), z.out[f"gaussians_{name}"]
        for part in (slice(3), slice(3, 4), slice(4, 7), slice(7, 11), slice(11, 14)):
            assert error(seen[..., part], theirs[..., part]) < TOLERANCE


def test_colours_are_normalised_before_the_rays(filled, monkeypatch):
    seen = []

    def unet(self, x):
        seen.append(x)
        return jnp.zeros((4, 4, 6, 14))

    monkeypatch.setattr(MultiViewUNet, "__call__", unet)
    images, rays = views()
    filled(lambda: make(SMALL)).raw(images, rays)
    # The mean and the deviation of ImageNet's colours.
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    wanted = np.concatenate([(images - mean) / std, rays], -1)
    np.testing.assert_allclose(seen[0], wanted.reshape(4, 8, 12, 9), rtol=1e-5)


def test_gaussians_are_in_order_and_in_bounds(filled):
    reconstructor = filled(lambda: make(SMALL))
    images, rays = views(2)
    gaussians = reconstruct(reconstructor, images, rays)
    assert gaussians.means.shape == (2, 4 * 4 * 6, 3)
    assert {x.dtype for x in jax.tree.leaves(gaussians)} == {jnp.dtype("float32")}
    grid = raw(reconstructor, images, rays)
    assert grid.shape == (2, 4, 4, 6, 14)
    means = np.asarray(gaussians.means).reshape(2, 4, 4, 6, 3)
    np.testing.assert_allclose(means, np.clip(grid[..., :3], -1, 1), atol=1e-5)
    norms = np.linalg.norm(gaussians.quats, axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    assert (gaussians.scales > 0).all()
    for x in (gaussians.opacities, gaussians.colors):
        assert ((x > 0) & (x < 1)).all()


def test_bounds_follow_the_config():
    config = dataclasses.replace(SMALL, position_bound=0.5, scale_factor=0.02)
    gaussians = activate(jnp.full((3, 14), 2.0), config)
    assert (gaussians.means == 0.5).all()
    np.testing.assert_allclose(gaussians.scales, 0.02 * np.log1p(np.exp(2)), rtol=1e-5)


@pytest.mark.parametrize("norm", ["gaussian", "components"])
def test_rotations_of_length_zero_are_finite(norm):
    config = dataclasses.replace(SMALL, quaternion_norm=norm)

    def quats(x):
        return activate(x, config).quats

    zeros = jnp.zeros((3, 14))
    wanted = [1.0, 0, 0, 0] if norm == "gaussian" else [0.0] * 4
    np.testing.assert_array_equal(quats(zeros), [wanted] * 3)
    gradient = jax.grad(lambda x: quats(x)[:, 1].sum())(zeros)
    assert np.isfinite(gradient).all()


def test_views_meet_in_attention_and_scenes_do_not(filled):
    reconstructor = filled(lambda: make(SMALL))
    images, rays = views(2)
    changed = images.copy()
    changed[0, 2] = 0
    before, after = (raw(reconstructor, x, rays) for x in (images, changed))
    difference = np.abs(after - before).max((2, 3, 4))
    assert (difference[0] > 1e-4).all()
    assert (difference[1] == 0).all()


def loss(reconstructor):
    return jnp.square(packed(reconstructor(*views())) - 0.3).mean()


def test_gradients_reach_every_parameter(filled, gradients):
    gradients(loss, filled(lambda: make(SMALL)))


def test_remat_keeps_gradients(filled, gradients, error):
    def found(remat):
        config = dataclasses.replace(
            SMALL,
            down_channels=(8,),
            down_attention=(False,),
            up_channels=(8,),
            up_attention=(False,),
            remat=remat,
        )
        return gradients(loss, filled(lambda: make(config)))

    again = found("block")
    for path, gradient in found("none").items():
        assert error(again[path], gradient) < 1e-4, path


def test_remat_recomputes_each_layer(filled):
    def remats(remat):
        reconstructor = filled(lambda: make(dataclasses.replace(SMALL, remat=remat)))
        names = [
            e.primitive.name
            for e in jax.make_jaxpr(reconstructor.raw)(*views()).jaxpr.eqns
        ]
        return sum(name.startswith(("remat", "checkpoint")) for name in names)

    assert remats("none") == 0
    assert remats("block") == 2 + 2 + 2


def test_bfloat16_keeps_the_ends_in_float32(filled, product_types, error):
    half = filled(lambda: make(dataclasses.replace(SMALL, dtype="bfloat16")))
    types = product_types(half.raw, *views())
    wide = [i for i, kind in enumerate(types) if kind == jnp.float32]
    # Two operands each of the first convolution, the last one and the mixing layer.
    assert wide == [0, 1, *range(len(types) - 4, len(types))]
    assert set(types[2:-4]) == {jnp.dtype("bfloat16")}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    out = raw(half, *views())
    assert out.dtype == jnp.float32
    assert 0 < error(out, raw(filled(lambda: make(SMALL)), *views())) < 0.05


def test_starts_with_visible_gaussians():
    gaussians = reconstruct(nnx.jit(lambda: make(SMALL))(), *views())
    assert 0.02 < gaussians.means.std() < 0.9
    assert 0.2 < gaussians.opacities.mean() < 0.8
    assert 0.03 < gaussians.scales.mean() < 0.2


@pytest.mark.parametrize(
    ("name", "count", "side", "gaussians"),
    [("big", 415_042_848, 256, 65_536), ("tiny", 1_610_240, 128, 16_384)],
)
def test_presets_have_the_documented_size(name, count, side, gaussians):
    reconstructor = nnx.eval_shape(lambda: make(PRESETS[name]))
    shapes = mapping.shapes(reconstructor)
    assert sum(int(np.prod(s)) for s in shapes.values()) == count
    inputs = [jax.ShapeDtypeStruct((1, 4, side, side, c), jnp.float32) for c in (3, 6)]
    out = nnx.eval_shape(lambda model, *x: model(*x), reconstructor, *inputs)
    assert out.means.shape == (1, gaussians, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda model, x, rays: model(x[:, :3], rays[:, :3]), "images.* 4, h, w, 3"),
        (lambda model, x, rays: model(x[:, :, :7], rays[:, :, :7]), "multiples of 2"),
        (lambda model, x, rays: model(x, rays[..., :5]), "rays"),
        (lambda *_: dataclasses.replace(SMALL, up_attention=()), "up_attention"),
        (lambda *_: dataclasses.replace(SMALL, heads=3), "heads 3"),
        (
            lambda *_: dataclasses.replace(
                SMALL, up_channels=(8,) * 3, up_attention=(False,) * 3
            ),
            "up_channels",
        ),
    ],
)
def test_bad_input_is_named(call, word, filled):
    reconstructor = filled(lambda: make(SMALL))
    with pytest.raises(InputError, match=word):
        call(reconstructor, *views())
