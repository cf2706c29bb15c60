"""The loop on a small regression task: learning, resuming, placement."""

import contextlib
import dataclasses
import io
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from rich.console import Console
from small_run import CONFIG, QUIET, Net, Reverse, losses, run

from videomv_jax import compat
from videomv_jax.models.layers import linear
from videomv_jax.models.norms import LayerNorm
from videomv_jax.sharding import STRATEGIES
from videomv_jax.training.metrics import MetricWriter
from videomv_jax.training.state import (
    Networks,
    abstract_state,
    apply_gradients,
    create_state,
    make_mesh,
)
from videomv_jax.training.step import global_norm, make_optimizer, make_step
from videomv_jax.types import InputError


def test_learns_and_writes(tmp_path):
    run(tmp_path, steps=60)
    rows = losses(tmp_path)
    assert rows[0] == ["step", "loss", "grad_norm", "index_sum", "learning_rate"]
    # Half a cosine, which is at 0 one update after the last.
    assert 0 < float(rows[-1][-1]) < 0.01 * max(float(row[-1]) for row in rows[1:])
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


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """Weights after a run that splits nothing but the batch."""
    return run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "mesh",
    [
        *(
            {"strategy": name, "fsdp": 2 if "fsdp" in name else 0}
            for name in STRATEGIES
        ),
        {"dcn_data": 1, "data": 2, "tensor": 4},
    ],
    ids=str,
)
def test_every_strategy_learns_the_same(tmp_path, on_one_device, mesh):
    sharded = run(tmp_path, **mesh, log_every=12, save_every=12)
    for name, weights in on_one_device.items():
        np.testing.assert_allclose(sharded[name], weights, atol=1e-5)


def test_moments_and_averages_lie_where_parameters_lie():
    config = dataclasses.replace(CONFIG, strategy="fsdp_tp", fsdp=2)
    mesh, task = make_mesh(config), Reverse()
    optimizer = make_optimizer(config)
    state = create_state(task.networks, optimizer, config, mesh)
    kernel = "net.first.kernel"
    assert state.params[kernel].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert state.params[kernel].addressable_data(0).shape == (2, 2)
    alike = [
        x
        for x in jax.tree.leaves(state)
        if x.shape == (4, 8) and x.sharding == state.params[kernel].sharding
    ]
    assert len(alike) == 4  # the parameter, its average and two moments
    abstract = abstract_state(task.networks, optimizer, config, mesh)
    for like, x in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (like.shape, like.dtype) == (x.shape, x.dtype)
        assert like.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_frozen_weights_are_rounded_as_they_are_used():
    class Rounding(nnx.Module):
        def __init__(self, rngs):
            self.norm = LayerNorm(4, dtype="bfloat16")
            self.linear = linear(4, 8, dtype="bfloat16", rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x))

    networks = Networks(lambda rngs: {"net": Rounding(rngs)})
    params = networks.init(jax.random.key(0))
    rounded = networks.rounded(params)
    types = {name: value.dtype.name for name, value in rounded.items()}
    assert types == {
        "net.norm.scale": "float32",
        "net.norm.bias": "float32",
        "net.linear.kernel": "bfloat16",
        "net.linear.bias": "bfloat16",
    }
    x = jax.random.normal(jax.random.key(1), (3, 4))
    wanted, found = (networks.merge(p)["net"](x) for p in (params, rounded))
    np.testing.assert_array_equal(found, wanted)
    assert params["net.linear.kernel"].dtype == "float32"  # those given stay


def test_a_step_takes_its_own_result():
    """A norm's scale in front of a split layer stays whole, as it was born."""

    class Normed(Net):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.norm = LayerNorm(4, dtype=jnp.float32)

        def __call__(self, x):
            return super().__call__(self.norm(x))

    task = Reverse()
    task.networks = Networks(lambda rngs: {"net": Normed(rngs)})
    config = dataclasses.replace(CONFIG, strategy="fsdp", fsdp=4)
    mesh, optimizer = make_mesh(config), make_optimizer(config)
    state = create_state(task.networks, optimizer, config, mesh)
    batch, key = jnp.zeros(16, jnp.int32), jax.random.key(0)
    with jax.set_mesh(mesh):
        lowered = make_step(task, optimizer, config).lower(
            state, task.constants, batch, key
        )
    made, _ = lowered.compile().output_shardings
    for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(made), strict=True):
        assert place.is_equivalent_to(x.sharding, x.ndim)


def test_parts_of_a_batch_add_up(tmp_path):
    """Without noise the parts' mean gradient is the batch's."""
    whole = run(tmp_path / "whole", Reverse(noise=0), data=4, tensor=2)
    parts = run(tmp_path / "parts", Reverse(noise=0), data=4, tensor=2, accumulate=4)
    assert losses(tmp_path / "parts")[5][0] == "5"
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5)


def test_without_an_average_the_weights_are_exported(tmp_path):
    """Those of a run whose average forgets at once; resumed, too."""
    run(tmp_path / "none", ema_decay=0.0, stop_after_minutes=1e-9)
    found = run(tmp_path / "none", ema_decay=0.0)
    for name, weights in run(tmp_path / "short", ema_decay=1e-9).items():
        np.testing.assert_allclose(found[name], weights, atol=1e-6)
    saved = [
        (tmp_path / name / "checkpoints" / "12" / "state" / "_METADATA").read_text()
        for name in ("none", "short")
    ]
    assert ["'ema', 'net." in text for text in saved] == [False, True]


def test_resuming_on_another_mesh(tmp_path, on_one_device):
    run(tmp_path, stop_after_minutes=1e-9, strategy="fsdp_tp", fsdp=2)
    run(tmp_path, stop_after_minutes=1e-9, strategy="tp")
    parts = run(tmp_path, strategy="dp")
    for name, weights in on_one_device.items():
        np.testing.assert_allclose(parts[name], weights, atol=1e-5)


# Orbax leaves the errors of its other threads to the interpreter.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path):
    whole = run(tmp_path)
    newest = tmp_path / "checkpoints" / "12"
    files = [p for p in newest.rglob("*") if p.is_file() and p.parent.name == "d"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = io.StringIO()
    again = run(tmp_path, console=Console(file=said, width=300))
    assert "checkpoint 12 cannot be read, moved to" in said.getvalue()
    assert "resumed at step 8" in said.getvalue()
    assert (tmp_path / "damaged" / "12").is_dir()
    for name in whole:
        np.testing.assert_array_equal(again[name], whole[name])
    for number in (8, 12):
        shutil.rmtree(tmp_path / "checkpoints" / str(number) / "state")
    with pytest.raises(InputError, match="no checkpoint"):
        run(tmp_path)


def test_checkpoints_kept(tmp_path):
    run(tmp_path, save_every=2, keep=2, keep_every=4)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 10, 12]


def test_termination_saves_and_ends(tmp_path):
    class Terminated(Reverse):
        def sheet(self, params, constants):  # in the middle of the run
            os.kill(os.getpid(), signal.SIGTERM)
            return super().sheet(params, constants)

    whole = run(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path / "parts", Terminated(), sample_every=5) is None
    assert signal.getsignal(signal.SIGTERM) == before
    saved = (tmp_path / "parts" / "checkpoints").iterdir()
    assert sorted(int(p.name) for p in saved) == [4, 6]
    parts = run(tmp_path / "parts")
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])


@pytest.mark.parametrize("size,on_gpu", [(0.1, False), (100, False), (100, True)])
def test_clips_as_optax_does(size, on_gpu):
    """By one norm for all gradients, of which some share a shape."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (5,), "c": (3, 4), "d": (), "e": (3, 4)}
    gradients = {
        name: jnp.asarray(size * rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }
    norm = global_norm(gradients)
    np.testing.assert_allclose(norm, optax.tree.norm(gradients), rtol=1e-6)
    clip = make_optimizer(CONFIG)
    plain = optax.chain(
        optax.clip_by_global_norm(CONFIG.clip_norm), optax.scale_by_adam(b2=0.99)
    )
    gpu = compat.compiling_for("gpu") if on_gpu else contextlib.nullcontext()
    with jax.numpy_dtype_promotion("standard"), gpu:
        _, state = clip.update(gradients, clip.init(gradients), gradients, norm=norm)
        _, wanted = plain.update(gradients, plain.init(gradients))
    for name, moment in wanted[1].mu.items():
        np.testing.assert_allclose(state[1][0].mu[name], moment, rtol=1e-5)


def test_spikes_are_skipped_and_counted():
    config = dataclasses.replace(CONFIG, spike_factor=3.0)
    optimizer = make_optimizer(config)
    task, mesh = Reverse(), make_mesh(config)
    state = create_state(task.networks, optimizer, config, mesh)
    ones = jax.tree.map(jnp.ones_like, state.params)

    @jax.jit
    def update(state, loss):
        return apply_gradients(state, loss, jnp.float32(1), ones, optimizer, config)

    def moved(state, loss):
        new = update(state, jnp.float32(loss))
        same = jax.tree.map(np.array_equal, new.params, state.params)
        return new, not all(same.values())

    state, _ = moved(state, 2.0)  # its learning rate is 0
    for _ in range(99):  # while the mean forms, nothing is a spike
        state, any_moved = moved(state, 2.0)
    spiked, any_moved = moved(state, 6.1)
    assert not any_moved
    assert (int(spiked.health.skipped), int(spiked.step)) == (1, 101)
    assert int(spiked.opt_state[1][0].count) == 100  # the moments know nothing of it
    state, any_moved = moved(spiked, 5.9)
    assert int(state.health.skipped) == 1
    # A loss that stays high is a new normal after a while.
    for _ in range(300):
        state, _ = moved(state, 20.0)
    assert 10 < int(state.health.skipped) < 100
    state, any_moved = moved(state, np.nan)
    assert not any_moved and int(state.health.broken) == int(state.step)


def test_a_loss_that_breaks_between_logs(tmp_path):
    """What is saved last is from before; the step is named."""
    with pytest.raises(FloatingPointError, match="step 6"):
        run(tmp_path, Reverse(broken_at=6), log_every=100, save_every=4)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]


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
