"""Sampling from a photo against diffusers' modules and scheduler, weights converted.

Both sides start from the same files and the same noise; every step of DDIM on the
zero-terminal-SNR schedule is compared, with both branches of guidance: negative text,
no vector and the same latent in the second.
"""

import json

import jax
import numpy as np
import pytest

from videomv_jax.diffusion.process import sample_noise
from videomv_jax.model_folder import load_model
from videomv_jax.models.clip import _MEAN, _STD
from videomv_jax.sampling import samplers
from videomv_jax.sampling.programs import Programs

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SIZE, VIEWS, STEPS, GUIDANCE, FPS, SEED = 16, 3, 5, 6.0, 8.0, 3
LATENT = SIZE // 4
TOWER = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    hidden_act="gelu",
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Small random modules, and their folder."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    modules = {
        "unet": diffusers.I2VGenXLUNet(
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlock3D",),
            up_block_types=("CrossAttnUpBlock3D",),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.3,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=50, max_position_embeddings=7, **TOWER
            )
        ),
        "image_encoder": transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(
                image_size=SIZE, patch_size=8, projection_dim=32, **TOWER
            )
        ),
    }
    folder = tmp_path_factory.mktemp("i2vgen-xl")
    generator = torch.Generator().manual_seed(0)
    for name, module in modules.items():
        with torch.no_grad():
            for p in module.parameters():
                scale = 0.5 / np.sqrt(max(p[0].numel(), 1)) if p.ndim > 1 else 0.1
                p.add_(torch.randn(p.shape, generator=generator) * scale)
        module.eval().save_pretrained(folder / name)
    index = dict.fromkeys(modules, ["x", "y"])
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder, modules


def their_trajectory(modules, scheduler, photo, tokens, noise):
    """x after each step, `[steps, f, h, w, 4]`."""
    import torch

    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    latent = modules["vae"].encode(2 * image - 1).latent_dist.mean * 0.3
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (_MEAN, _STD))
    vector = modules["image_encoder"]((image - mean) / std).image_embeds
    text = modules["text_encoder"](torch.from_numpy(tokens)).last_hidden_state
    places = torch.linspace(0, 1, VIEWS)[1:].reshape(1, 1, -1, 1, 1)
    later = places.expand(1, 4, -1, LATENT, LATENT)
    frames = torch.cat([latent[:, :, None], later], 2)
    x = torch.from_numpy(noise).permute(0, 4, 1, 2, 3)
    scheduler.set_timesteps(STEPS)
    xs = []
    for t in scheduler.timesteps:
        output = modules["unet"](
            torch.cat([x, x]),
            t.repeat(2),
            torch.full((2,), FPS),
            image_latents=torch.cat([frames, frames]),
            image_embeddings=torch.cat([vector, torch.zeros_like(vector)]),
            encoder_hidden_states=text,
        ).sample
        conditional, unconditional = output.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        x = scheduler.step(guided, t, x).prev_sample
        xs.append(x[0].permute(1, 2, 3, 0).numpy())
    return xs


def test_the_trajectory(pipeline, convert, tmp_path):
    import diffusers
    import torch

    folder, modules = pipeline
    ours, back = tmp_path / "ours", tmp_path / "back"
    settings = (f"cameras.size={SIZE}", f"cameras.views={VIEWS}")
    convert(folder, "--to", ours, *(w for s in settings for w in ("--set", s)))
    convert(ours, "--as", "diffusers", "--to", back)
    scheduler = diffusers.DDIMScheduler.from_pretrained(back / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr

    rng = np.random.default_rng(0)
    photo = rng.uniform(size=(SIZE, SIZE, 3)).astype(np.float32)
    tokens = rng.integers(0, 50, (2, 7))
    noise = sample_noise(jax.random.key(SEED), (1, VIEWS, LATENT, LATENT, 4))
    with torch.no_grad():
        xs = their_trajectory(modules, scheduler, photo, tokens, np.array(noise))

    model = load_model(ours, dtype="float32")
    names = ("unet", "vae", "text_encoder", "image_encoder")
    programs = Programs(model.config, {n: getattr(model, n) for n in names})
    told, state = programs.start(
        programs.weights,
        tokens.astype(np.int32),
        np.asarray([SEED], np.uint32),
        programs.cameras,
        photo[None],
        mode="guided",
    )
    table = samplers.ddim(programs.schedule, STEPS)
    numbers = np.float32(GUIDANCE), np.float32(0), np.uint32(SEED)
    traced = programs.advance.trace(
        programs.weights,
        told,
        table,
        state,
        np.int32(1),
        *numbers,
        aware=False,
        mode="guided",
    )
    options = {"xla_backend_optimization_level": 0}
    run = traced.lower().compile(compiler_options=options)
    assert int(table.count) == len(xs)
    for step, wanted in enumerate(xs):
        state = run(programs.weights, told, table, state, np.int32(step + 1), *numbers)
        error = np.abs(state.x[0] - wanted).max() / np.abs(wanted).max()
        assert error < 1e-4, (step, error)
