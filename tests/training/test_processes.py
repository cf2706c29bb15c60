"""Runs of several processes: the same result as one, and no one waits for ever."""

import csv
import signal
import time

import numpy as np
import pytest
from small_run import finish, launch

from videomv_jax.sharding import STRATEGIES

RUN = ["strategy=fsdp", "fsdp=4", "log_every=4"]


def test_two_processes_learn_what_one_does(tmp_path):
    """The first run stops half way and resumes; the other is of one process.

    The first reads its objects from the hosts, each process a half.
    """
    two, host = tmp_path / "two", "task=host"
    codes, texts = finish(launch(two, 2, *RUN, host, "stop_after_minutes=1e-9"))
    assert codes == [0, 0], texts
    saved = [int(p.name) for p in (two / "checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] < 12  # stopped, and both at the same step
    assert "step" in texts[0] and "step" not in texts[1]  # one of them speaks
    both, one = launch(two, 2, *RUN, host), launch(tmp_path / "one", 1, *RUN)
    for codes, texts in (finish(both), finish(one)):
        assert set(codes) == {0}, texts
    found, wanted = (np.load(tmp_path / n / "weights-0.npz") for n in ("two", "one"))
    for name in wanted.files:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)
    assert not (two / "weights-1.npz").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_other(tmp_path):
    processes = launch(tmp_path, 2, *RUN, "steps=100000", "save_every=20")
    folder = tmp_path / "checkpoints"
    while not any(p.name.isdigit() for p in folder.glob("*")):  # not half-written ones
        assert all(p.poll() is None for p in processes)
        time.sleep(0.5)
    processes[1].send_signal(signal.SIGKILL)
    codes, texts = finish(processes)
    assert codes[0] != 0 and "another task died" in texts[0]
    codes, texts = finish(
        launch(tmp_path, 1, *RUN, "steps=100000", "stop_after_minutes=0.1")
    )
    assert codes == [0] and "resumed at step" in texts[0]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["small", "tiny"])
def test_fifty_steps_are_equal(tmp_path, task):
    """UNets in float32: one device, eight under every strategy, and two processes of
    four.

    Rounding differs between programs and every update carries it on: 1e-4 of the loss.
    """

    def losses(name: str, count: int, *changes: str, devices: int = 8) -> np.ndarray:
        changes = (f"task={task}", *changes)
        run = launch(tmp_path / name, count, *changes, devices=devices)
        codes, texts = finish(run, timeout=3600)
        assert set(codes) == {0}, texts
        rows = (tmp_path / name / "metrics.csv").read_text().splitlines()
        return np.array([float(row["loss"]) for row in csv.DictReader(rows)])

    wanted = losses("one", 1, "strategy=dp", devices=1)
    assert len(wanted) == 50 and len(set(wanted)) > 45
    found = {name: losses(name, 1, f"strategy={name}") for name in STRATEGIES}
    found["two processes"] = losses("two", 2, "strategy=fsdp_view")
    for name, curve in found.items():
        print(name, np.abs(curve / wanted - 1).max())  # pytest -s shows it
    for name, curve in found.items():
        np.testing.assert_allclose(curve, wanted, rtol=1e-4, err_msg=name)
