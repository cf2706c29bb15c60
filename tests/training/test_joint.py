"""What teaches whom: gradients of the parts of the loss."""

import dataclasses

import jax
import numpy as np
import pytest

from videomv_jax.model_folder import read_config
from videomv_jax.training import stages
from videomv_jax.training.config import TrainConfig, freeze
from videomv_jax.types import InputError

CONFIG = TrainConfig(
    stage="joint",
    model="small",
    batch_size=4,
    objects=4,
    supervised_views=1,
    corrupted_inputs=0.5,
    feedback=0.25,
    even_inputs=1.0,
    train_text=False,
)


@pytest.fixture
def make(small_folder, monkeypatch):
    """Makes the task of a config, with the weights of a small model."""
    model = dataclasses.replace(read_config(small_folder), name="small")
    monkeypatch.setattr(stages, "PRESETS", {"small": model})

    def task(config):
        return stages.make_task(
            dataclasses.replace(config, init_from=str(small_folder))
        )

    return task


def reached(task, *names):
    """The networks and the kinds of layers that gradients of some metrics reach."""

    @jax.jit
    def gradients(params):
        def metric(params, name):
            networks = task.networks.merge(params)
            key, index = jax.random.key(0), np.arange(4)
            loss, metrics = task.loss(networks, task.constants, index, key)
            return (metrics | {"loss": loss})[name]

        return [jax.grad(metric)(params, name) for name in names]

    params = {name: np.asarray(value) for name, value in task.initial.items()}
    return [
        {name for name, g in found.items() if np.any(np.asarray(g))}
        for found in gradients(params)
    ]


@pytest.mark.slow
def test_renders_teach_the_unet(make):
    task = make(CONFIG)
    renders, feedback = reached(task, "loss_renders", "loss_feedback")
    both = {name.partition(".")[0] for name in renders}
    assert both == {"unet", "reconstructor"}
    assert "unet.camera_embedding.hidden.kernel" in renders
    # What is rendered for feedback teaches nobody but who denoises it.
    assert {name.partition(".")[0] for name in feedback} == {"unet"}


@pytest.mark.slow
def test_single_images_know_no_camera(make):
    config = dataclasses.replace(CONFIG, stage="diffusion", image_batch=2)
    images, both = reached(make(config), "loss_images", "loss")
    cameras = {name for name in both if "camera" in name}
    assert cameras and images == both - cameras


def test_what_is_for_which_stage():
    with pytest.raises(InputError, match="image_batch: is for"):
        freeze(dataclasses.asdict(CONFIG) | {"image_batch": 2})
    with pytest.raises(InputError, match="feedback: 1.5"):
        freeze(dataclasses.asdict(CONFIG) | {"feedback": 1.5})
