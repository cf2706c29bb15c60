"""launch.sh: what a dry run prints, and restarts."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch.sh"


def launch(*words, code=0, **environment):
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        env={"PATH": os.environ["PATH"], "PYTHON": "python"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


COMMAND = ["--", "train", "--config", "configs/a b.py"]


def test_local_quotes_what_it_prints():
    line = launch("local", "--dry-run", "--devices", "cpu:8", *COMMAND)
    assert (
        "JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8" in line
    )
    assert line.rstrip().endswith("main train --config configs/a\\ b.py")
    assert "CUDA_VISIBLE_DEVICES=0\\,1" in launch(
        "local", "--dry-run", "--devices", "0,1", *COMMAND
    )
    lines = launch("local", "--dry-run", "--processes", "2", *COMMAND).splitlines()
    assert [f"JAX_PROCESS_ID={i} JAX_COORDINATOR_ADDRESS=" in lines[i] for i in (0, 1)]


def test_clusters():
    slurm = launch("slurm", "--dry-run", "--nodes", "4", "--time", "1:00", *COMMAND)
    assert "--nodes=4 --ntasks-per-node=8" in slurm and "--time=1:00" in slurm
    assert "VIDEOMV_DISTRIBUTED=1" in slurm and "configs/a\\ b.py" in slurm
    options = ["--name", "run", "--zone", "us-west4-a", "--dry-run"]
    tpu = launch("tpu-vm", *options, *COMMAND)
    assert "ssh run --zone=us-west4-a --worker=all" in tpu
    options = ["--name", "run", "--image", "i", "--topology", "v5p:4x4x8", "--dry-run"]
    gke = launch("gke", *options, *COMMAND)
    assert (
        "parallelism: 32" in gke and "cloud.google.com/gke-tpu-topology: 4x4x8" in gke
    )
    assert '"--config", "configs/a b.py"]' in gke


@pytest.mark.parametrize(
    "words, said",
    [
        (["moon", *COMMAND], "./launch.sh local"),
        (["local", "--dry-run"], "no videomv command"),
        (["local", "--device", "cpu", *COMMAND], "unknown option --device"),
        (["local", "--restarts", "x", *COMMAND], "want a number"),
        (["tpu-vm", *COMMAND], "wants --name and --zone"),
    ],
)
def test_mistakes(words, said):
    assert said in launch(*words, code=2)


def test_restarts(tmp_path):
    """A program that fails twice, and one whose input is bad."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho run >> {tmp_path}/log\nexit $CODE\n")
    program.chmod(0o755)
    sleep = tmp_path / "sleep"
    sleep.write_text(f'#!/bin/sh\necho "sleep $1" >> {tmp_path}/log\n')
    sleep.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = launch("local", "--restarts", "2", *COMMAND, code=7, PATH=path, CODE="7")
    assert "exit code 7; again in 20 s, 0 more after that" in said
    wanted = ["run", "sleep 10", "run", "sleep 20", "run"]
    assert (tmp_path / "log").read_text().splitlines() == wanted
    (tmp_path / "log").unlink()
    launch("local", "--restarts", "2", *COMMAND, code=2, PATH=path, CODE="2")
    assert (tmp_path / "log").read_text().splitlines() == ["run"]
