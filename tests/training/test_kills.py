"""Runs that are killed at random moments: they go on as if nothing had been."""

import time

import numpy as np
import pytest
from small_run import finish, launch, losses, run

STEPS = {"steps": 400, "save_every": 10, "log_every": 1}
WORDS = [f"{name}={value}" for name, value in STEPS.items()]


def newest(folder) -> int:
    names = [p.name for p in (folder / "checkpoints").glob("*")]
    return max([int(name) for name in names if name.isdigit()], default=0)


def one_life(folder, rng) -> int:
    """Starts the run, kills it, and returns how far its checkpoints had come.

    Half of the moments count from the start, the others from the first new checkpoint.
    """
    before = newest(folder)
    (process,) = launch(folder, 1, *WORDS)
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, 12))
    else:
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
    process.kill()
    process.communicate()
    return newest(folder)


def assert_equal_runs(folder, whole, weights, wanted):
    # Every loss and the sum of the objects' numbers, of every step.
    assert losses(folder) == losses(whole)
    assert len(losses(folder)) == 1 + STEPS["steps"]
    for name in wanted:
        np.testing.assert_array_equal(weights[name], wanted[name])


def test_a_killed_run_goes_on_bit_by_bit(tmp_path):
    wanted = run(tmp_path / "whole", **STEPS)
    rng = np.random.default_rng(0)
    folder = tmp_path / "killed"
    (process,) = launch(folder, 1, *WORDS)
    while newest(folder) < 40:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    assert newest(folder) < STEPS["steps"]
    assert_equal_runs(folder, tmp_path / "whole", run(folder, **STEPS), wanted)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    wanted = run(tmp_path / "whole", **STEPS)
    seed = time.time_ns() % 2**32
    print("seed", seed)
    rng, folder = np.random.default_rng(seed), tmp_path / "killed"
    reached = [one_life(folder, rng) for _ in range(20)]
    print("checkpoints when killed:", reached)
    assert sorted(reached) == reached and len(set(reached)) > 3
    codes, texts = finish(launch(folder, 1, *WORDS))
    assert codes == [0], texts
    weights = np.load(folder / "weights-0.npz")
    assert_equal_runs(folder, tmp_path / "whole", weights, wanted)
