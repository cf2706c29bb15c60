"""Training on photos: how objects stand, what is taken over, what the UNet is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.convert import mapping
from videomv_jax.model_folder import load_model, read_config
from videomv_jax.training import pool
from videomv_jax.training.config import TrainConfig, load_config
from videomv_jax.training.diffusion import DiffusionTask
from videomv_jax.types import InputError

CONFIG = TrainConfig(stage="diffusion", objects=6, batch_size=2)


def test_objects_stand_by_their_number(small_image_folder):
    cameras = read_config(small_image_folder).cameras
    config = dataclasses.replace(
        CONFIG, objects=400, elevation_jitter=25.0, turned=0.5, seed=3
    )
    elevation, azimuth = pool.stand(config, cameras)
    assert -10 <= elevation.min() < -8 and 38 < elevation.max() <= 40
    assert 0.4 < (azimuth != 0).mean() < 0.6
    assert 340 < azimuth.max() < 360
    fewer = pool.stand(dataclasses.replace(config, objects=40), cameras)
    np.testing.assert_array_equal(fewer, (elevation[:40], azimuth[:40]))
    other = pool.stand(dataclasses.replace(config, seed=4), cameras)
    assert (other[0] != elevation).any()


def test_a_text_model_is_taken_over(small_folder, small_image_folder, capsys):
    """What is new starts afresh and is told; new inputs start at zero."""
    task = DiffusionTask(CONFIG, read_config(small_image_folder))
    start = load_model(small_folder)
    names = ("unet", "text_encoder", "image_encoder")
    given = pool.given(start, task.networks, names)
    assert " ".join(capsys.readouterr().out.split()) == (
        "start afresh: image_encoder, unet.fps_embedding, unet.image, "
        "4 inputs of unet.conv_in.kernel"
    )
    theirs = mapping.flatten(start.unet)
    own = {name for name in given if name.startswith("unet.")}
    assert own == {f"unet.{name}" for name in theirs}
    kernel = given["unet.conv_in.kernel"]
    assert kernel.shape[3] == 8 and not kernel[..., 4:].any()
    np.testing.assert_array_equal(kernel[..., :4], theirs["conv_in.kernel"])
    wider = read_config(small_image_folder)
    unet = dataclasses.replace(wider.unet, context_dim=16)
    wider = dataclasses.replace(wider, unet=unet)
    with pytest.raises(InputError, match="init_from: unet.* want "):
        pool.given(start, DiffusionTask(CONFIG, wider).networks, names)


def test_what_the_unet_is_told(small_image_folder):
    """The unconditional branch: no vector, the negative prompt, the same latent."""
    task = DiffusionTask(CONFIG, read_config(small_image_folder))
    constants = task.random_constants(jax.random.key(0))
    constants["uncond"] += 1
    constants["empty"] += 2
    networks = task.networks.merge(task.networks.init(jax.random.key(1)))
    networks |= task._frozen.merge(constants["frozen"])
    objects = constants["pool"]
    some = dataclasses.replace(
        objects,
        tokens=objects.tokens[:3],
        latents=objects.latents[:3],
        photos=objects.photos[:3],
    )
    dropped = jnp.asarray([False, True, False])
    captionless = jnp.asarray([False, True, True])
    told = task._told(networks, constants, some, dropped, captionless)
    embedding = told["image"].embedding
    assert not embedding[1].any() and embedding[0].any() and embedding[2].any()
    np.testing.assert_array_equal(told["image"].latent, some.latents[:, 0])
    encoder = networks["text_encoder"]
    wanted = [some.tokens[0], constants["uncond"][0], constants["empty"][0]]
    np.testing.assert_allclose(
        told["context"], encoder(jnp.stack(wanted)), rtol=1e-4, atol=1e-4
    )
    assert told["fps"].tolist() == [8.0] * 3


@pytest.mark.parametrize(
    ("path", "millions"),
    [("configs/tiny_image_to_views.py", 9.54), ("configs/image_to_views.py", 1422.13)],
)
def test_the_configs_trace(path, millions, request):
    from videomv_jax.presets import PRESETS

    config = load_config(request.config.rootpath / path, ["rolled_views=True"])
    config = dataclasses.replace(config, objects=4, batch_size=2)
    task = DiffusionTask(config, PRESETS[config.model])
    params = jax.eval_shape(task.networks.init, jax.random.key(0))
    count = sum(x.size for x in params.values())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
