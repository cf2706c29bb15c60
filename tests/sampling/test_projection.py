"""The 3D projection, with stand-in networks and the real cameras and renderer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.diffusion.schedule import linear_sd
from videomv_jax.models.reconstructor import Reconstructor, ReconstructorConfig
from videomv_jax.models.vae import VAE, VAEConfig
from videomv_jax.sampling import loop, projection, samplers
from videomv_jax.sampling.projection import SplatProjection
from videomv_jax.splat.cameras import orbit
from videomv_jax.splat.conventions import canonical_frame, plucker_rays
from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.splat.renderer import Renders, render
from videomv_jax.types import InputError

CAMERAS = orbit(4, elevation=20.0, radius=1.8, size=64)  # resized to the images
VIEWS = (0, 2)
SIZE = 16


class PoolVAE:
    """Latents are images of half the size, shifted, and a fourth channel of zeros."""

    def decode(self, latents, *, chunk=None):
        images = latents[..., :3] + 0.5
        return jnp.repeat(jnp.repeat(images, 2, -3), 2, -2)

    def encode(self, images, key=None, *, chunk=None):
        half = (images[..., ::2, ::2, :] + images[..., 1::2, 1::2, :]) / 2 - 0.5
        latents = jnp.concatenate([half, jnp.zeros_like(half[..., :1])], -1)
        if key is not None:
            latents += 0.1 * jax.random.normal(key, latents.shape)
        return latents


class Blobs:
    """Three Gaussians off the axes, coloured by the images; remembers its inputs."""

    def __call__(self, images, rays):
        self.images, self.rays = images, rays
        means = jnp.asarray([[0.4, 0.1, 0.2], [-0.3, 0.3, -0.1], [0.0, -0.4, 0.3]])
        quats = jnp.asarray([[0.8, 0.6, 0.0, 0.0]] * 3)
        scales = jnp.asarray([[0.2, 0.1, 0.15]] * 3)
        colors = jnp.eye(3) * 0.5
        means, quats, scales, colors = (
            jnp.broadcast_to(x[None], (len(images), *x.shape))
            for x in (means, quats, scales, colors)
        )
        colors = colors + 0.5 * images.mean((1, 2, 3))[:, None]
        return Gaussians(means, quats, scales, jnp.full(means.shape[:2], 0.9), colors)


def latents(seed=0, batch=2):
    return 0.3 * jax.random.normal(jax.random.key(seed), (batch, 4, 8, 8, 4))


def project(**options):
    return SplatProjection(PoolVAE(), Blobs(), CAMERAS, views=VIEWS, **options)


@pytest.fixture
def flat_render(monkeypatch):
    """In place of the renderer: rows, columns and the background as colours."""

    def fake(gaussians, cameras, *, background, config):
        b, (f, _) = len(gaussians.means), cameras.intrinsics.shape
        focal = cameras.intrinsics[0, 0]
        y, x = jnp.mgrid[: cameras.height, : cameras.width].astype(float) / focal
        rgb = jnp.stack([y, x, jnp.broadcast_to(background, x.shape)], -1)
        rgb = jnp.broadcast_to(rgb[None, None], (b, f, *rgb.shape))
        overflow = jnp.full((b,), 2**30)
        return Renders(rgb, jnp.ones_like(rgb[..., 0]), rgb[..., 0], overflow)

    monkeypatch.setattr(projection, "render", fake)


@jax.jit
def projected_and_rendered(x0):
    """The projection, and what it should be by way of the world frame."""
    projected = project(background=0.3)
    cameras = CAMERAS.resize(SIZE, SIZE)
    renders = render(projected.gaussians(x0), cameras, background=0.3)
    return *projected(x0), PoolVAE().encode(renders.rgb.clip(0, 1))


def test_latents_are_renders_of_the_world_gaussians():
    """Rendering in the reconstructor's frame equals rendering the asset in ours."""
    result, dropped, wanted = projected_and_rendered(latents())
    np.testing.assert_allclose(result, wanted, atol=2e-4)
    assert dropped == 0
    # Something is seen in every view, and no two views are alike.
    colors = np.asarray(result[..., :3])
    assert (colors.std((2, 3)).max(-1) > 0.03).all()
    for i in range(4):
        for j in range(i):
            assert np.abs(colors[:, i] - colors[:, j]).max() > 0.05


def test_samples_keep_apart():
    x0 = latents()
    result, *_ = projected_and_rendered(x0)
    swapped, *_ = projected_and_rendered(x0[::-1])
    np.testing.assert_allclose(swapped[::-1], result, atol=1e-5)
    assert np.abs(result[0] - result[1]).max() > 1e-3


@pytest.mark.parametrize("variant", ["consistent", "released"])
def test_the_reconstructor_sees_the_chosen_views_and_their_rays(flat_render, variant):
    projected, x0 = project(variant=variant), latents() * 3
    projected(x0)
    seen = projected.reconstructor
    images = PoolVAE().decode(x0)[:, jnp.asarray(VIEWS)]
    assert images.min() < 0 and images.max() > 1
    np.testing.assert_array_equal(seen.images, images.clip(0, 1))
    cameras, _ = canonical_frame(CAMERAS.resize(SIZE, SIZE), variant)
    rays = plucker_rays(cameras)[jnp.asarray(VIEWS)]
    np.testing.assert_allclose(seen.rays, np.stack([rays, rays]), atol=1e-6)


def test_oversampling_keeps_even_rows_and_columns(flat_render):
    """Twice the pixels at twice the focal length, every other one kept."""
    plain, _ = project(background=0.2)(latents())
    double, _ = project(background=0.2, oversampling=2)(latents())
    np.testing.assert_allclose(double, plain, atol=1e-6)
    np.testing.assert_allclose(plain[..., 2], 0.2 - 0.5, atol=1e-6)


def test_only_a_key_draws_from_the_posterior(flat_render):
    x0 = latents()
    mean, _ = project()(x0)
    one, two = (project()(x0, jax.random.key(i))[0] for i in (0, 1))
    assert np.array_equal(mean, project()(x0)[0])
    assert 0.08 < np.asarray(one - mean).std() < 0.12
    assert np.abs(one - two).max() > 0.1


def test_what_the_renderer_drops_is_reported(flat_render):
    _, dropped = project()(latents())
    assert dropped == 2.0**31  # more than an int32 holds


def test_in_the_loop_with_real_networks():
    """One jitted program: latents stay finite and marked steps make a difference."""
    vae = VAE(
        VAEConfig(channels=8, multipliers=(1, 1), layers=1, groups=4, dtype="float32"),
        rngs=nnx.Rngs(0),
    )
    config = ReconstructorConfig(
        down_channels=(8, 8),
        down_attention=(False, True),
        up_channels=(8,),
        up_attention=(True,),
        layers=1,
        heads=2,
        groups=4,
        views=2,
        dtype="float32",
    )
    reconstructor = Reconstructor(config, rngs=nnx.Rngs(1))
    graph, state = nnx.split((vae, reconstructor))

    @jax.jit
    def run(state, steps, noise, key):
        vae, reconstructor = nnx.merge(graph, state)
        return loop.sample(
            lambda x, t: jnp.repeat(0.1 * x, 2, 0),
            "epsilon",
            steps,
            noise,
            guidance=2.0,
            project=SplatProjection(vae, reconstructor, CAMERAS, views=VIEWS),
            mode="reference",
            key=key,
        )

    steps = samplers.dpm_solver_pp_2m(linear_sd(), 4)
    noise = latents(3)
    plain = run(state, steps, noise, jax.random.key(0))
    aware = run(state, samplers.project_at(steps, [0.5]), noise, jax.random.key(0))
    assert run._cache_size() == 1
    assert np.isfinite(aware.x).all() and aware.x.shape == noise.shape
    assert aware.dropped == 0
    assert np.abs(aware.x - plain.x).max() > 1e-2


def test_bad_input():
    with pytest.raises(InputError, match=r"views: got \(0, 4\), want 0 to 3"):
        SplatProjection(PoolVAE(), Blobs(), CAMERAS, views=(0, 4))
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), CAMERAS)
    with pytest.raises(InputError, match="cameras: got a batch"):
        SplatProjection(PoolVAE(), Blobs(), pair, views=VIEWS)
    with pytest.raises(InputError, match="oversampling: got 0"):
        project(oversampling=0)
    with pytest.raises(InputError, match="x0: got .*want 4 views"):
        project()(latents()[:, :3])
