"""The stages in a row, small: each starts from what the one before wrote."""

import csv
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from rich.console import Console

from videomv_jax import presets
from videomv_jax.convert import mapping
from videomv_jax.data import synthetic
from videomv_jax.evaluation import held_out
from videomv_jax.model_folder import load_model, read_config
from videomv_jax.models.lpips import LPIPS, LPIPSConfig
from videomv_jax.pipeline import VideoMV
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.loop import train
from videomv_jax.training.stages import make_task
from videomv_jax.types import InputError

# Seven minutes of one core, nearly all of it compilation.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_folder):
    """Model folders of the stages of a small preset."""
    out = tmp_path_factory.mktemp("runs")
    config = dataclasses.replace(read_config(small_folder), name="small")
    patch = pytest.MonkeyPatch()
    patch.setattr(presets, "PRESETS", {"small": config})
    patch.setattr("videomv_jax.training.stages.PRESETS", {"small": config})
    made = {}
    previous = ""
    metric = out / "lpips.safetensors"
    lpips = LPIPS(LPIPSConfig(widths=(4, 8), convs=(1, 1)), rngs=nnx.Rngs(0))
    safetensors.numpy.save_file(mapping.flatten(lpips), metric)
    for stage, more in (
        ("autoencoder", {"views": 2}),
        ("diffusion", {}),
        ("reconstruction", {"corrupted_inputs": 0.5, "lpips": str(metric)}),
        ("joint", {"corrupted_inputs": 0.5, "feedback": 0.25, "train_text": False}),
    ):
        run = TrainConfig(
            stage=stage,
            model="small",
            init_from=previous,
            out=str(out / stage),
            steps=2,
            batch_size=8,
            objects=8,
            warmup_steps=1,
            log_every=1,
            **more,
        )
        previous = made[stage] = str(train(make_task(run), run, Console(quiet=True)))
    yield made
    patch.undo()


def test_folders_grow(folders):
    parts = {stage: load_model(folder) for stage, folder in folders.items()}
    assert parts["autoencoder"].vae and not parts["autoencoder"].unet
    assert parts["diffusion"].text_encoder and not parts["diffusion"].reconstructor
    last = parts["reconstruction"]
    assert all([last.vae, last.unet, last.text_encoder, last.reconstructor])
    assert last.tokenizer_dir is not None
    # What a stage does not train passes through unchanged.
    for earlier, name in (("autoencoder", "vae"), ("diffusion", "unet")):
        before, after = (getattr(parts[s], name) for s in (earlier, "reconstruction"))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(a, b)


def test_joint_training_moves_unet_and_reconstructor(folders):
    before, after = (load_model(folders[s]) for s in ("reconstruction", "joint"))
    moved = {
        part: not np.array_equal(first, second)
        for part in ("vae", "unet", "text_encoder", "reconstructor")
        for first, second in [
            [np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(m, part))])
             for m in (before, after)]
        ]
    }  # fmt: skip
    assert [part for part, any_moved in moved.items() if any_moved] == [
        "unet",
        "reconstructor",
    ]
    log = Path(folders["joint"]).parent / "metrics.csv"
    for row in csv.DictReader(log.read_text().splitlines()):
        parts = [float(row[f"loss_{n}"]) for n in ("denoising", "renders", "feedback")]
        assert min(parts) > 0 and float(row["loss"]) > parts[0]


def test_the_perceptual_term_is_logged(folders):
    log = Path(folders["reconstruction"]).parent / "metrics.csv"
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert all(float(row["lpips"]) > 0 for row in rows)


def test_latents_have_deviation_one(folders):
    loaded = load_model(folders["autoencoder"])
    objects = synthetic.sample_descriptions(8, 0, "train")
    scenes = synthetic.stack_scenes([synthetic.build_scene(one) for one in objects])
    cameras = loaded.config.cameras.orbit()
    images, _ = synthetic.render_orbit(scenes, cameras, 0.5)
    latents = jax.jit(loaded.vae.encode)(images)
    np.testing.assert_allclose(latents.std(), 1, rtol=0.1)


def test_the_last_folder_generates_and_is_judged(folders):
    model = VideoMV.from_pretrained(folders["reconstruction"])
    data = held_out.held_out(model, 2, seed=0)
    lpips = LPIPS(LPIPSConfig(widths=(4,), convs=(1,)), rngs=nnx.Rngs(0))
    rows = dict(
        held_out.table(
            model,
            data,
            batch=2,
            lpips=lpips,
            fit={"count": 64, "iterations": 2, "views_a_step": 2},
        )
    )
    assert set(rows) == {"plain", "3D-aware", "truth"}
    assert rows["plain"]["lpips"] > 0
    assert all(np.isfinite(list(row.values())).all() for row in rows.values())
    with pytest.raises(InputError, match="batch"):
        dict(held_out.table(model, data, batch=3))


def test_stages_say_what_they_miss(folders):
    run = TrainConfig(stage="diffusion", model="small", objects=8)
    with pytest.raises(InputError, match="init_from: empty"):
        make_task(run)
    run = dataclasses.replace(
        run, stage="reconstruction", init_from=folders["autoencoder"]
    )
    with pytest.raises(InputError, match="has no unet"):
        make_task(run)
    with pytest.raises(InputError, match="did you mean 'small'"):
        make_task(dataclasses.replace(run, model="smal"))
