"""`videomv` itself, `info`, and the compilation cache."""

import os
import shutil
import subprocess
import sys

import jax
import pytest
from rich.console import Console
from typer.testing import CliRunner

from videomv_jax import __version__
from videomv_jax.cli.environment import use_compilation_cache
from videomv_jax.cli.main import app


def test_version_and_help():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"videomv {__version__}\n")
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(
        name in result.stdout for name in ("generate", "train", "convert", "info")
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from videomv_jax.cli.main import app; "
        "print([m for m in ('flax', 'orbax', 'transformers', 'grain', 'av') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert result.stdout.decode().strip() == "[]", result.stderr


def test_info_of_a_model(small_folder):
    result = CliRunner().invoke(app, ["info", str(small_folder)])
    assert result.exit_code == 0, result.output
    for words in ("Apache-2.0", "8 views of 32 x 32", "predicts v", "float16"):
        assert words in result.stdout


def test_info_verifies(small_folder, tmp_path):
    result = CliRunner().invoke(app, ["info", str(small_folder), "--verify"])
    assert result.exit_code == 0 and "as it was written" in result.stdout
    copy = shutil.copytree(small_folder, tmp_path / "copy")
    with (copy / "config.json").open("a") as file:
        file.write(" ")
    result = CliRunner().invoke(app, ["info", str(copy), "--verify"])
    assert result.exit_code == 2 and "config.json has changed" in result.stderr
    result = CliRunner().invoke(app, ["info", "--verify"])
    assert result.exit_code == 2 and "say which model" in result.stderr


def test_info_of_the_installation():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    assert jax.__version__ in result.stdout


def test_info_of_nothing(tmp_path):
    result = CliRunner().invoke(app, ["info", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: unknown model")
    result = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a model folder" in result.stderr


@pytest.fixture
def no_cache(monkeypatch):
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_cache_goes_to_the_users_folder(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache(Console(stderr=True))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "videomv" / "jax")


def test_a_chosen_cache_is_kept(no_cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")  # which JAX read
    use_compilation_cache(Console(stderr=True))
    assert jax.config.jax_compilation_cache_dir is None


def test_an_unwritable_cache_is_a_note(no_cache, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compilation_cache(Console(stderr=True))
    assert jax.config.jax_compilation_cache_dir is None
    assert "note: no compilation cache" in capsys.readouterr().err


def test_launch_runs_a_command():
    root = os.path.join(os.path.dirname(__file__), "..", "..")
    launch = os.path.join(root, "launch.sh")
    done = subprocess.run(
        [launch, "local", "--", "--version"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )
    assert (done.returncode, done.stdout) == (0, f"videomv {__version__}\n")
    wrong = subprocess.run([launch, "moon", "train"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("usage:")
