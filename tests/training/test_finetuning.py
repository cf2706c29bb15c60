"""Training parts of a model: which weights move, and where they end up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from videomv_jax import presets
from videomv_jax.convert import mapping
from videomv_jax.model_folder import load_model, read_config
from videomv_jax.training import parts
from videomv_jax.training.config import TrainConfig, freeze
from videomv_jax.training.loop import train
from videomv_jax.training.stages import make_task
from videomv_jax.types import InputError

QKV = "unet.down.0.stages.0.spatial.block.attn1.qkv.kernel"
PARAMS = {
    QKV: np.full((4, 3, 6), 2, np.float32),
    "unet.down.0.stages.0.temporal.proj_in.kernel": np.ones((4, 4), np.float32),
    "unet.down.0.stages.0.res.temporal.norms.0.scale": np.ones(4, np.float32),
    "unet.temporal_in.norm.scale": np.ones(4, np.float32),
    "unet.camera_embedding.out.bias": np.ones(4, np.float32),
    "unet.time_embedding.out.bias": np.ones(4, np.float32),
    "unet.conv_in.bias": np.ones(4, np.float32),
    "text_encoder.norm.scale": np.ones(4, np.float32),
}


def test_split():
    trained, frozen = parts.split(PARAMS, "temporal")
    assert list(trained) == list(PARAMS)[1:5]
    assert {**trained, **frozen} == PARAMS
    assert parts.split(PARAMS, "all") == (PARAMS, {})
    with pytest.raises(InputError, match="chooses no weights"):
        parts.split(PARAMS, "lora")


def test_low_rank_updates():
    params = parts.add_factors(PARAMS, 2, jax.random.key(0))
    trained, frozen = parts.split(params, "lora")
    assert {n: x.shape for n, x in trained.items()} == {
        f"{QKV}.lora_down": (4, 2),
        f"{QKV}.lora_up": (2, 3, 6),
    }
    assert frozen == PARAMS
    merged = parts.merge(trained, frozen)
    assert merged.keys() == PARAMS.keys()
    np.testing.assert_array_equal(merged[QKV], PARAMS[QKV])  # starts as it was
    up = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("float32")
    trained[f"{QKV}.lora_up"] = jnp.asarray(up)
    wanted = PARAMS[QKV] + np.einsum("ir,rpo->ipo", trained[f"{QKV}.lora_down"], up)
    np.testing.assert_allclose(parts.merge(trained, frozen)[QKV], wanted, rtol=1e-5)


def test_rates():
    scale = parts.scale_by_part(0.5, 0.25)
    updates, _ = scale.update(PARAMS, optax.EmptyState())
    factors = [float(np.ravel(u / p)[0]) for u, p in zip(
        updates.values(), PARAMS.values(), strict=True)]  # fmt: skip
    assert factors == [0.5, 1, 1, 1, 1, 1, 0.5, 0.25]


def test_parts_need_weights_to_start_from():
    config = TrainConfig(stage="diffusion", train="lora")
    with pytest.raises(InputError, match="init_from"):
        freeze(dataclasses.asdict(config))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lora", "temporal"])
def test_only_the_part_moves(part, small_folder, tmp_path, monkeypatch):
    """On a mesh that splits weights and views, with recomputation."""
    model = dataclasses.replace(read_config(small_folder), name="small")
    monkeypatch.setattr("videomv_jax.training.stages.PRESETS", {"small": model})
    assert presets.PRESETS  # the monkeypatch replaces what stages reads only
    run = TrainConfig(
        stage="diffusion",
        model="small",
        init_from=str(small_folder),
        out=str(tmp_path),
        train=part,
        train_text=False,
        lora_rank=4,
        remat="attention",
        strategy="fsdp_view",
        steps=3,
        batch_size=8,
        objects=8,
        warmup_steps=1,
        log_every=1,
        sample_every=0,
    )
    folder = train(make_task(run), run, Console(quiet=True))
    before, after = (
        mapping.flatten(load_model(f).unet) for f in (small_folder, folder)
    )
    moved = {n for n in before if not np.array_equal(before[n], after[n])}
    if part == "lora":
        assert moved == {n for n in before if ".attn" in n and n.endswith("kernel")}
    else:
        assert moved <= {n for n in before if parts.is_temporal(f"unet.{n}")}
        assert any("camera" in n for n in moved) and any("temporal" in n for n in moved)
