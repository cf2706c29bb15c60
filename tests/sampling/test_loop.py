"""The denoising loop: the original's trajectories, exactness, one compilation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.diffusion.process import sample_noise
from videomv_jax.diffusion.schedule import cosine_zero_snr, linear_sd
from videomv_jax.sampling import loop, samplers
from videomv_jax.types import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion.npz"
SETS = {
    "eps_linear_sd": (linear_sd(), "epsilon"),
    "v_cosine_ztsnr": (cosine_zero_snr(), "v"),
}
SHAPE = (2, 3, 2, 2, 4)


def channels_last(x):
    """[..., b, c, f, h, w] to [..., b, f, h, w, c]."""
    return np.moveaxis(x, -4, -1)


def error(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


class StandIn:
    """The fixture's network, and what its 3D-aware steps put in place of x0.

    That replacement is a function of x_t, which a projection never sees; so the
    network remembers, while the step is traced, what it was given.
    """

    def __init__(self, z):
        self.weight = jnp.asarray(z["in/w"].T)
        shift = np.concatenate([z["in/y_cond"], z["in/y_uncond"]])
        self.shift = jnp.asarray(shift)[:, None, None, None]

    def denoise(self, x, t):
        self.hidden = x @ self.weight
        phase = jnp.cos(0.01 * t.astype(jnp.float32))
        return jnp.tanh(self.hidden + self.shift * phase[:, None, None, None, None])

    def project(self, x0, key):
        return 0.5 * jnp.tanh(self.hidden + self.shift), jnp.asarray(1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("aware", [False, True], ids=["plain", "aware"])
def test_trajectories_equal_the_original(name, aware):
    z = np.load(GOLDEN)
    schedule, kind = SETS[name]
    steps = samplers.ddim(schedule, 50)
    assert np.array_equal(steps.t[:50], z[f"out/{name}/timesteps"])
    if aware:
        steps = samplers.project_at_indices(steps)
    net = StandIn(z)

    @jax.jit
    def trajectory(steps, noise, guidance):
        def one(state, index):
            state = loop.advance(
                net.denoise,
                kind,
                steps,
                state,
                index + 1,
                guidance=guidance,
                project=net.project if aware else None,
                mode="reference",
            )
            return state, state

        last, states = jax.lax.scan(one, loop.start(noise), jnp.arange(50))
        return last, states.x, states.x0

    noise = channels_last(z["in/noise"])
    state, x, x0 = trajectory(steps, noise, 9.0)
    prefix = "aware" if aware else "plain"
    assert error(x, channels_last(z[f"out/{name}/{prefix}_x"])) < 2e-5
    assert error(x0, channels_last(z[f"out/{name}/{prefix}_x0"])) < 2e-5
    assert state.index == 50 and state.dropped == (3 if aware else 0)


def oracle(schedule, kind, x0):
    """A network that knows x0: its output at (x, t) for the levels of t."""

    def denoise(x, t):
        alpha, sigma = (
            jnp.asarray(v, jnp.float32)[t][:, None, None, None, None]
            for v in (schedule.alpha, schedule.sigma)
        )
        if kind == "x0":
            return x0
        epsilon = (x - alpha * x0) / sigma
        return epsilon if kind == "epsilon" else alpha * epsilon - sigma * x0

    return denoise


@pytest.mark.parametrize("schedule", [linear_sd(), cosine_zero_snr()])
def test_an_oracle_is_obeyed(schedule):
    """With the true x0 at every step x lies on the line from noise to x0."""
    x0, noise = (sample_noise(jax.random.key(i), SHAPE) for i in (0, 1))
    denoise = oracle(schedule, "x0", x0)
    run = jax.jit(lambda steps: loop.sample(denoise, "x0", steps, noise))
    for sampler in ("dpmpp", "dpmpp_karras"):
        for count in (1, 2, 7, 20):
            state = run(samplers.by_name(sampler)(schedule, count))
            assert state.index == count and error(state.x, x0) < 1e-5
    # DDIM stops at time 0 and keeps that time's share of the first step's noise.
    for count in (1, 2, 7, 20):
        steps = samplers.ddim(schedule, count)
        first = (noise - steps.alpha[0] * x0) / steps.sigma[0]
        last = np.float32(schedule.alpha[0]) * x0
        last += np.float32(schedule.sigma[0]) * first
        assert error(run(steps).x, last) < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_an_oracle_of_any_kind_is_obeyed(kind):
    schedule = linear_sd()
    x0, noise = (sample_noise(jax.random.key(i), SHAPE) for i in (0, 1))
    steps = samplers.dpm_solver_pp_2m(schedule, 10, "uniform")
    state = loop.sample(oracle(schedule, kind, x0), kind, steps, noise)
    assert error(state.x, x0) < 1e-4


def linear_network(x, t):
    return 0.1 * x + jnp.cos(0.01 * t.astype(jnp.float32))[:, None, None, None, None]


def two_branches(x, t):
    """Of each sample two outputs, which differ and have a spread."""
    x, t = jnp.repeat(x, 2, 0), jnp.repeat(t, 2)
    branch = jnp.tile(jnp.asarray([0.5, -0.25]), len(x) // 2)
    return linear_network(x, t) + branch[:, None, None, None, None] * jnp.sin(x)


def test_nothing_that_is_an_argument_recompiles():
    traces = []

    def denoise(x, t):
        traces.append(x.shape)
        return two_branches(x, t)

    def project(x0, key):
        return x0 + 0.1 * jax.random.normal(key, x0.shape), jnp.asarray(0)

    @jax.jit
    def run(steps, noise, guidance, rescale, key):
        return loop.sample(
            denoise,
            "v",
            steps,
            noise,
            guidance=guidance,
            rescale=rescale,
            project=project,
            key=key,
        ).x

    schedule, noise = linear_sd(), sample_noise(jax.random.key(0), SHAPE)
    results = [
        run(steps, noise, guidance, rescale, jax.random.key(seed))
        for steps, guidance, rescale, seed in (
            (samplers.ddim(schedule, 50), 9.0, 0.0, 0),
            (samplers.ddim(schedule, 4), 9.0, 0.0, 0),
            (samplers.ddim(schedule, 4), 2.0, 0.0, 0),
            (samplers.dpm_solver_pp_2m(schedule, 20, "karras"), 3.0, 0.0, 0),
            (samplers.dpm_solver_pp_2m(schedule, 20, "uniform"), 3.0, 0.0, 0),
            (samplers.dpm_solver_pp_2m(schedule, 20, "uniform"), 3.0, 0.7, 0),
            (samplers.project_at(samplers.ddim(schedule, 4)), 9.0, 0.0, 0),
            (samplers.project_at(samplers.ddim(schedule, 4)), 9.0, 0.0, 1),
        )
    ]
    traced = len(traces)
    assert run._cache_size() == 1
    run(samplers.ddim(cosine_zero_snr(), 7), noise, 2.0, 0.1, jax.random.key(2))
    assert run._cache_size() == 1 and len(traces) == traced
    assert set(traces) == {SHAPE}  # the network makes its branches itself
    for i, one in enumerate(results):
        assert one.dtype == jnp.float32 and one.shape == SHAPE
        for other in results[:i]:
            assert error(one, other) > 1e-4


def test_stepwise_equals_at_once():
    """What a progress bar runs is the loop itself."""
    steps = samplers.project_at(samplers.dpm_solver_pp_2m(linear_sd(), 6))
    noise = sample_noise(jax.random.key(0), SHAPE)

    def project(x0, key):
        return jax.random.normal(key, x0.shape), jnp.asarray(2)

    @jax.jit
    def run(state, until):
        return loop.advance(
            two_branches,
            "v",
            steps,
            state,
            until,
            guidance=3.0,
            project=project,
            key=jax.random.key(1),
        )

    at_once = run(loop.start(noise), 1000)
    state = loop.start(noise)
    for until in range(1, 7):
        state = run(state, until)
        assert state.index == until
    assert run._cache_size() == 1
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(at_once), strict=True):
        assert np.array_equal(a, b)
    assert state.dropped == 6


def test_projected_steps_project():
    """Marked steps and only they see the projection, after guidance, once."""
    steps = samplers.project_at_indices(samplers.ddim(linear_sd(), 5), [1, 3])
    noise = sample_noise(jax.random.key(0), SHAPE)

    def project(x0, key):
        assert key is None and x0.shape == SHAPE
        return jnp.full_like(x0, 7), jnp.asarray(1)

    state = loop.start(noise)
    for until in range(1, 6):
        state = loop.advance(
            two_branches,
            "epsilon",
            steps,
            state,
            until,
            guidance=2.0,
            project=project,
        )
        assert bool((state.x0 == 7).all()) == (until in (2, 4))
    assert state.dropped == 2


def test_projection_is_off_without_marked_steps():
    steps = samplers.ddim(linear_sd(), 5)
    noise = sample_noise(jax.random.key(0), SHAPE)

    def project(x0, key):
        return x0 * jnp.nan, jnp.asarray(1)

    plain = loop.sample(linear_network, "v", steps, noise)
    marked = loop.sample(linear_network, "v", steps, noise, project=project)
    assert np.array_equal(plain.x, marked.x)


def test_modes_agree_for_an_affine_projection():
    """Guidance and an affine projection commute; both branches must arrive."""
    steps = samplers.project_at(samplers.ddim(linear_sd(), 10))
    noise = sample_noise(jax.random.key(0), SHAPE)

    shapes = []

    def project(x0, key):
        shapes.append(x0.shape)
        return 0.5 * x0 + 1, jnp.asarray(0)

    guided, reference = (
        loop.sample(
            two_branches, "v", steps, noise, guidance=4.0, project=project, mode=mode
        )
        for mode in ("guided", "reference")
    )
    assert set(shapes) == {SHAPE, (4, 3, 2, 2, 4)}
    assert error(guided.x, reference.x) < 1e-5


def test_guidance_of_one_is_the_conditional_branch():
    steps = samplers.ddim(linear_sd(), 5)
    noise = sample_noise(jax.random.key(0), SHAPE)

    def both(x, t):
        return jnp.stack([x, 100 * x], 1).reshape(-1, *x.shape[1:])

    one = loop.sample(both, "v", steps, noise, guidance=1.0)
    unguided = loop.sample(lambda x, t: x, "v", steps, noise)
    assert error(one.x, unguided.x) < 1e-4


def test_half_precision_networks_keep_float32_latents():
    def denoise(x, t):
        return two_branches(x, t).astype(jnp.bfloat16)

    steps = samplers.dpm_solver_pp_2m(linear_sd(), 4)
    noise = sample_noise(jax.random.key(0), SHAPE).astype(jnp.bfloat16)
    state = jax.jit(lambda n: loop.sample(denoise, "v", steps, n, guidance=2.0))(noise)
    assert state.x.dtype == state.x0.dtype == jnp.float32


def test_unknown_mode_and_kind():
    steps, noise = samplers.ddim(linear_sd(), 5), jnp.zeros(SHAPE)
    with pytest.raises(InputError, match="sampling mode 'per_branch'"):
        loop.sample(linear_network, "v", steps, noise, mode="per_branch")
    with pytest.raises(InputError, match="prediction kind 'eps'"):
        loop.sample(linear_network, "eps", steps, noise)
