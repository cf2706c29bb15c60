"""`videomv generate`: its folders, its messages, what a failure leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import av
import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from videomv_jax.cli.main import app
from videomv_jax.pipeline import VideoMV
from videomv_jax.splat.files import read_ply

PROMPT = "a red chair with blue legs"
SLUG = "a-red-chair-with-blue-legs"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The command turns on JAX's compilation cache: here, and for this test only."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
        )
    }
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def run(small_folder, small_model, tmp_path, monkeypatch):
    """Run the command in this process on the small model, compiled already."""
    load = VideoMV.from_pretrained

    def from_pretrained(name):
        return small_model if name == str(small_folder) else load(name)

    monkeypatch.setattr(VideoMV, "from_pretrained", from_pretrained)

    def command(*arguments):
        return CliRunner().invoke(
            app,
            ["generate", "--model", str(small_folder), "--out", str(tmp_path / "out")]
            + list(arguments),
        )

    return command


def frames(path):
    with av.open(str(path)) as film:
        return sum(1 for _ in film.decode(film.streams.video[0]))


def test_the_folder(run, tmp_path):
    result = run(PROMPT, "--seed", "3")
    assert result.exit_code == 0, result.output
    assert not result.stderr
    folder = tmp_path / "out" / SLUG
    assert f"{folder}/" in result.stdout
    assert sorted(path.name for path in folder.iterdir()) == [
        "asset.ply",
        "meta.json",
        "turntable.mp4",
        "views",
        "views.gif",
        "views.mp4",
        "views.png",
    ]
    names = [f"{number:02d}.png" for number in range(8)]
    assert sorted(path.name for path in (folder / "views").iterdir()) == names
    assert frames(folder / "views.mp4") == 8
    assert frames(folder / "turntable.mp4") == 72
    sheet = np.asarray(Image.open(folder / "views.png"))
    assert sheet.shape == (128, 64, 3)
    third = np.asarray(Image.open(folder / "views" / "03.png"))
    np.testing.assert_array_equal(sheet[32:64, 32:], third)
    assert read_ply(folder / "asset.ply").means.shape == (1024, 3)
    assert os.listdir(tmp_path / "out") == [SLUG]


def test_meta(run, tmp_path):
    assert run(PROMPT, "--seed", "3", "--steps", "2").exit_code == 0
    meta = json.loads((tmp_path / "out" / SLUG / "meta.json").read_text())
    assert meta["prompt"] == PROMPT and meta["model"] == "small"
    assert meta["seed"] == 3
    config = meta["config"]
    assert (config["steps"], config["sampler"], config["guidance"]) == (2, "dpmpp", 2.0)
    assert config["mode"] == "guided" and config["cameras"]["views"] == 8
    assert meta["overflow"] == {"sampling": 0, "turntable": 0}
    stages = {"loading", "denoising", "reconstructing", "rendering", "writing"}
    assert stages <= set(meta["timings"])
    assert all(seconds >= 0 for seconds in meta["timings"].values())
    assert meta["versions"]["jax"] == jax.__version__


def test_several_prompts_and_no_overwriting(run, tmp_path):
    assert run(PROMPT, "A green boat!").exit_code == 0
    assert run(PROMPT).exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == [
        "a-green-boat",
        SLUG,
        f"{SLUG}-2",
    ]


def test_without_3d(run, tmp_path):
    assert run(PROMPT, "--no-3d").exit_code == 0
    meta = json.loads((tmp_path / "out" / SLUG / "meta.json").read_text())
    assert meta["config"]["steps_3d"] == []


def test_what_the_model_does_not_know_is_told(run):
    result = run("a red chiar")
    assert result.exit_code == 0
    assert "did you mean 'chair'" in result.stderr


def test_long_prompts_are_cut_with_a_warning(run):
    result = run(f"{PROMPT} " * 8 + "and a green boat")
    assert result.exit_code == 0
    assert "warning: the prompt is too long; cut before" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "error: prompt: it is empty; say what to make"),
        ([PROMPT, "--steps", "0"], "error: steps: got 0, want 1 to 1000"),
        ([PROMPT, "--seed", "-1"], "error: seed: got -1, want 0 to 4294967295"),
        ([PROMPT, "--sampler", "ddmi"], "did you mean 'ddim'"),
        ([PROMPT, "--mode", "refrence"], "did you mean 'reference'"),
        ([PROMPT, "--model", "[tiny"], "error: unknown model"),
    ],
)
def test_bad_input(run, tmp_path, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_found_first(run, tmp_path, monkeypatch):
    monkeypatch.setattr(VideoMV, "generate", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "out").write_text("a file, not a folder")
    result = run(PROMPT)
    assert result.exit_code == 2
    assert "error: cannot write to" in result.stderr


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError, 1)])
def test_a_failure_leaves_nothing(run, tmp_path, monkeypatch, error, code):
    def fail(*_, **__):
        assert len(os.listdir(tmp_path / "out")) == 1  # the hidden folder in work
        raise error("disk full")

    monkeypatch.setattr("videomv_jax.outputs.write_asset", fail)
    result = run(PROMPT)
    assert result.exit_code == code
    assert not os.listdir(tmp_path / "out")


def test_ctrl_c_is_quiet(small_folder, tmp_path):
    """In a process of its own, interrupted while it compiles."""
    arguments = ["generate", PROMPT, "--model", str(small_folder), "--out", "out"]
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-m", "videomv_jax.cli.main", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (out.is_dir() and os.listdir(out)):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)  # on a busy machine
    assert process.returncode == 130
    assert errors == ""
    assert not os.listdir(out)
