"""Training goes on from a converted folder, whatever its sizes."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from videomv_jax import weights
from videomv_jax.convert import clip, mapping, unet, vae
from videomv_jax.model_folder import CameraConfig, load_model
from videomv_jax.presets import PRESETS
from videomv_jax.training import diffusion
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.loop import train
from videomv_jax.training.stages import make_task


@pytest.fixture(scope="module")
def files(small_folder, tmp_path_factory):
    """The networks of a small model as foreign files."""
    folder = tmp_path_factory.mktemp("files")
    model = load_model(small_folder)
    for name, tensors in (
        ("unet", unet.save(model.unet)),
        ("vae", vae.save(model.vae)),
        ("text", clip.save(model.text_encoder)),
    ):
        own = {k: np.array(x, order="C") for k, x in tensors.items()}
        safetensors.numpy.save_file(own, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def folder(files, small_folder, convert, tmp_path):
    settings = ["unet.head_dim=32", "vae.groups=8", "text_encoder.heads=2"]
    settings += ["cameras.size=32", "cameras.views=8"]
    chosen = [word for s in settings for word in ("--set", s)]
    chosen += ["--shard-gb", 0.001]
    out = tmp_path / "model"
    convert(
        files, small_folder / "tokenizer", "--to", out, *chosen, "--shard-gb", 0.001
    )
    assert len(weights.files(out, "unet")) > 1
    return out


def config(folder, **more) -> TrainConfig:
    return TrainConfig(
        stage="diffusion",
        model="t2v",
        init_from=str(folder),
        objects=8,
        batch_size=8,
        **more,
    )


def test_a_run_starts_from_the_converted_weights(folder, small_folder, monkeypatch):
    monkeypatch.setattr(diffusion.pool, "encoded", lambda *_, **__: None)
    task = make_task(config(folder))
    small = load_model(small_folder)
    wanted = {f"unet.{k}": x for k, x in mapping.flatten(small.unet).items()}
    text = mapping.flatten(small.text_encoder)
    wanted |= {f"text_encoder.{k}": x for k, x in text.items()}
    assert task.initial.keys() == wanted.keys() == task.networks._variables.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(task.initial[name], x, err_msg=name)
        assert task.networks._variables[name][1].shape == x.shape


@pytest.mark.slow
def test_a_step_of_training(folder, tmp_path, monkeypatch):
    from rich.console import Console

    # The preset decides the cameras: its 24 views of 256 x 256 would take 10 GB here.
    small = dataclasses.replace(PRESETS["t2v"], cameras=CameraConfig(views=8, size=32))
    monkeypatch.setitem(PRESETS, "t2v", small)
    run = config(
        folder, steps=2, warmup_steps=1, sample_every=0, out=str(tmp_path / "run")
    )
    made = load_model(train(make_task(run), run, Console(quiet=True)))
    before, after = (
        mapping.flatten(m.unet)["conv_in.kernel"] for m in (load_model(folder), made)
    )
    assert 0 < np.abs(before - after).max() < 0.1
