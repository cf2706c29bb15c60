"""Samplers against diffusers' schedulers, trajectory by trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.diffusion.process import sample_noise
from videomv_jax.diffusion.schedule import cosine_zero_snr, linear_sd
from videomv_jax.sampling import loop, samplers

pytestmark = [
    pytest.mark.parity,
    # diffusers turns torch tensors into numpy arrays the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SETS = {"linear_sd": (linear_sd(), "epsilon"), "cosine": (cosine_zero_snr(), "v")}
BETAS = {
    "linear_sd": dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ),
    "cosine": dict(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True),
}
NOISE = sample_noise(jax.random.key(0), (1, 3, 4, 4, 4))


def make_scheduler(name, cls, **config):
    """diffusers' scheduler, with its float32 table replaced by our float64 one.

    The tables agree to float32; the difference would hide the sampler's.
    """
    import torch

    schedule, kind = SETS[name]
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[kind]
    scheduler = cls(prediction_type=kind, **config)
    theirs = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(theirs, schedule.alphas_cumprod, atol=1e-5)
    ours = torch.from_numpy(schedule.alphas_cumprod.copy())
    ours[-1] = scheduler.alphas_cumprod[-1].double()
    scheduler.alphas_cumprod = ours
    scheduler.final_alpha_cumprod = ours[0]
    return scheduler


def their_trajectory(scheduler):
    import torch

    x = torch.from_numpy(np.array(NOISE))
    xs = []
    for t in scheduler.timesteps:
        output = torch.tanh(0.7 * x.flip(-1) + torch.cos(0.01 * t.float()))
        x = scheduler.step(output, t, x).prev_sample
        xs.append(x.numpy())
    return scheduler.timesteps.numpy(), np.stack(xs)


def our_trajectory(steps, kind):
    def denoise(x, t):
        phase = jnp.cos(0.01 * t.astype(jnp.float32))[:, None, None, None, None]
        return jnp.tanh(0.7 * x[..., ::-1] + phase)

    @jax.jit
    def run(steps):
        def one(state, index):
            state = loop.advance(denoise, kind, steps, state, index + 1)
            return state, state.x

        state = loop.start(NOISE)
        return jax.lax.scan(one, state, jnp.arange(samplers.MAX_STEPS))[1]

    return np.asarray(run(steps))[: int(steps.count)]


def compare(steps, kind, scheduler):
    t, wanted = their_trajectory(scheduler)
    assert steps.t[: int(steps.count)].tolist() == t.tolist()
    ours = our_trajectory(steps, kind)
    error = np.abs(ours - wanted).max() / np.abs(wanted).max()
    assert error < 5e-6
    last = np.abs(ours[-1] - wanted[-1]).max() / np.abs(wanted[-1]).max()
    assert last < 5e-6


@pytest.mark.parametrize("count", [10, 50])
@pytest.mark.parametrize("name", SETS)
def test_ddim(name, count):
    import diffusers

    scheduler = make_scheduler(
        name,
        diffusers.DDIMScheduler,
        **BETAS[name],
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    scheduler.set_timesteps(count)
    schedule, kind = SETS[name]
    compare(samplers.ddim(schedule, count), kind, scheduler)


@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize("name", SETS)
def test_dpm_solver(name, spacing, count):
    import diffusers

    schedule, kind = SETS[name]
    betas = BETAS[name]
    if name == "cosine":
        # Given as numbers, or else diffusers truncates the times of Karras spacing
        # for this schedule, where for others it rounds them as we do.
        betas = dict(trained_betas=schedule.betas, rescale_betas_zero_snr=True)
    scheduler = make_scheduler(
        name,
        diffusers.DPMSolverMultistepScheduler,
        **betas,
        use_karras_sigmas=spacing == "karras",
    )
    scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)  # two steps may share a time
    steps = samplers.dpm_solver_pp_2m(schedule, count, spacing)
    compare(steps, kind, scheduler)
