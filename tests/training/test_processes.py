"""Runs of several processes: the same result as one, and no one waits for ever."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("small_run.py")
RUN = ["strategy=fsdp", "fsdp=4", "log_every=4"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(folder: Path, count: int, *changes: str, prints=None):
    """Processes with eight devices together."""
    port = free_port()
    started = []
    for i in range(count):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}",
        }
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(i),
            }
        command = [sys.executable, str(PROGRAM), str(folder), *RUN, *changes]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    return started


def finish(processes, timeout=150):
    texts = [p.communicate(timeout=timeout)[0] for p in processes]
    return [p.returncode for p in processes], texts


def test_two_processes_learn_what_one_does(tmp_path):
    """The first run stops half way and resumes; the other is of one process."""
    two = tmp_path / "two"
    codes, texts = finish(launch(two, 2, "stop_after_minutes=1e-9"))
    assert codes == [0, 0], texts
    saved = [int(p.name) for p in (two / "checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] < 12  # stopped, and both at the same step
    assert "step" in texts[0] and "step" not in texts[1]  # one of them speaks
    both, one = launch(two, 2), launch(tmp_path / "one", 1)
    for codes, texts in (finish(both), finish(one)):
        assert set(codes) == {0}, texts
    found, wanted = (np.load(tmp_path / n / "weights-0.npz") for n in ("two", "one"))
    for name in wanted.files:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)
    assert not (two / "weights-1.npz").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_other(tmp_path):
    processes = launch(tmp_path, 2, "steps=100000", "save_every=20")
    folder = tmp_path / "checkpoints"
    while not any(p.name.isdigit() for p in folder.glob("*")):  # not half-written ones
        assert all(p.poll() is None for p in processes)
        time.sleep(0.5)
    processes[1].send_signal(signal.SIGKILL)
    codes, texts = finish(processes)
    assert codes[0] != 0 and texts[0]
    codes, texts = finish(launch(tmp_path, 1, "steps=100000", "stop_after_minutes=0.1"))
    assert codes == [0] and "resumed at step" in texts[0]
