"""The sampler's step as a plan traces it runs, and does what the pipeline does."""

import jax
import numpy as np
import pytest

from videomv_jax.model_folder import read_config
from videomv_jax.scale import sampler
from videomv_jax.sharding import make_mesh
from videomv_jax.training.config import TrainConfig
from videomv_jax.types import InputError


@pytest.mark.parametrize("aware", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_on_a_mesh_it_computes_the_same(small_folder, small_model, error, aware):
    """All steps of two prompts, on eight devices and on one; one step is 3D-aware."""
    programs = small_model._programs
    tokens, _ = small_model.tokenize(["a red chair", "a green boat"])
    tokens = np.concatenate([tokens, np.zeros_like(tokens)])
    seeds = np.arange(2, dtype=np.uint32)
    condition, state = programs.start(
        programs.weights, tokens, seeds, programs.cameras, None, mode="guided"
    )
    table, _ = programs.table("guided", None, None, None)
    assert table.project.any()
    one = np.float32(1)
    until = np.int32(table.count)
    inputs = (condition, table, state, until, 2 * one, 0 * one, seeds[0])
    wanted = programs.advance(programs.weights, *inputs, aware=aware, mode="guided")

    config = TrainConfig(stage="diffusion", batch_size=2, compute_dtype="float32")
    mesh = make_mesh("fsdp_view")
    model = read_config(small_folder)
    traced, parameters = sampler.trace(config, model, mesh, aware=aware)
    step = traced.lower().compile()
    found = step(*jax.device_get((programs.weights, *inputs)))
    assert len(found.x.sharding.device_set) == 8
    assert int(found.index) == table.count and not int(found.dropped)
    assert error(found.x, wanted.x) < 1e-4
    read = ("unet", "vae", "reconstructor") if aware else ("unet",)
    assert parameters == sum(x.size for part in read for x in programs.weights[part])


def test_a_mesh_that_does_not_fit(small_folder):
    """The weight is named."""
    config = TrainConfig(stage="diffusion", batch_size=2, compute_dtype="float32")
    mesh = make_mesh("tp", ici={"tensor": 8})
    with pytest.raises(
        InputError, match="token_embedding.* not divisible by .* tensor=8"
    ):
        sampler.trace(config, read_config(small_folder), mesh, aware=False)
