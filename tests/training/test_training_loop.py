"""The loop on a small regression task: learning, resuming, placement."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from videomv_jax.models.layers import linear
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.loop import train
from videomv_jax.training.metrics import MetricWriter
from videomv_jax.training.state import Networks
from videomv_jax.types import InputError

QUIET = Console(quiet=True)
CONFIG = TrainConfig(
    stage="autoencoder",
    steps=12,
    batch_size=16,
    objects=64,
    learning_rate=0.05,
    warmup_steps=2,
    log_every=1,
    save_every=4,
    sample_every=100,
)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = linear(4, 8, dtype=jnp.float32, rngs=rngs)
        self.second = linear(8, 4, axes=("mlp", "embed"), dtype=jnp.float32, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class Reverse:
    """Learn to reverse vectors; noise in the loss shows whether keys resume."""

    def __init__(self, poison: bool = False):
        self.networks = Networks(lambda rngs: {"net": Net(rngs)})
        self.initial = {}
        x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        self.constants = {"x": x * np.float32(np.nan if poison else 1)}
        self.exported = None

    def loss(self, networks, constants, index, key):
        x = constants["x"][index]
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        error = jnp.square(networks["net"](noisy) - x[:, ::-1]).mean()
        return error, {"index_sum": index.sum().astype(jnp.float32)}

    def sheet(self, params, constants):
        return np.zeros((8, 8, 3), np.float32)

    def export(self, params, constants, folder):
        self.exported = jax.device_get(params)


def losses(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [line.split(",")[:4] for line in lines]


def run(folder, task=None, **changes):
    task = task or Reverse()
    train(task, dataclasses.replace(CONFIG, out=str(folder), **changes), QUIET)
    return task.exported


def test_learns_and_writes(tmp_path):
    run(tmp_path, steps=60)
    rows = losses(tmp_path)
    assert rows[0] == ["step", "loss", "grad_norm", "index_sum"]
    assert float(rows[-1][1]) < 0.5 * float(rows[1][1])
    assert (tmp_path / "samples" / "0000060.png").exists()
    assert list((tmp_path / "tensorboard").iterdir())


def test_resumes_as_if_never_stopped(tmp_path):
    whole = run(tmp_path / "whole")
    # Stops at once after the first step (its limit is already over), and again.
    run(tmp_path / "parts", stop_after_minutes=1e-9)
    run(tmp_path / "parts", stop_after_minutes=1e-9)
    parts = run(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])


def test_resuming_another_run_is_refused(tmp_path):
    run(tmp_path, stop_after_minutes=1e-9)
    with pytest.raises(InputError, match="learning_rate"):
        run(tmp_path, learning_rate=0.1)


@pytest.mark.parametrize("mesh", [{"fsdp": 2}, {"tensor": 4}, {"fsdp": 2, "tensor": 2}])
def test_every_mesh_learns_the_same(tmp_path, mesh):
    plain = run(tmp_path / "plain")
    sharded = run(tmp_path / "sharded", **mesh)
    for name in plain:
        np.testing.assert_allclose(sharded[name], plain[name], atol=1e-5)


def test_not_finite_loss_stops_and_saves_nothing(tmp_path):
    with pytest.raises(FloatingPointError, match="step 1"):
        run(tmp_path, task=Reverse(poison=True), save_every=1)
    assert not any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())


def test_metrics_past_the_resumed_step_are_dropped(tmp_path):
    writer = MetricWriter(tmp_path, QUIET, 0)
    for step in (1, 2, 3):
        writer.write(step, 3, {"loss": float(step)})
    writer.close()
    writer = MetricWriter(tmp_path, QUIET, 1)
    writer.write(2, 3, {"loss": 9.0})
    writer.close()
    assert losses(tmp_path) == [["step", "loss"], ["1", "1"], ["2", "9"]]


def test_batch_must_fill_the_mesh(tmp_path):
    with pytest.raises(InputError, match="batch_size"):
        run(tmp_path, batch_size=3)
