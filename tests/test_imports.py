"""The house rules that a machine can check: who imports whom, and file sizes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top of the house to its ground: a room imports only rooms further down.
ROOMS = (
    "cli",
    "scale",
    "evaluation",
    "training",
    "outputs",
    "pipeline",
    "sampling",
    "exchange",
    "presets",
    "model_folder",
    "embedded",
    "data",
    "convert",
    "diffusion",
    "models",
    "splat",
    "media",
    "weights",
    "atomic",
    "sharding",
    "types",
    "compat",
)
PACKAGE = sorted((ROOT / "videomv_jax").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
SOURCES = [*PACKAGE, *KERNELS]


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """The room a file of the package belongs to."""
    return path.relative_to(ROOT / "videomv_jax").parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_imports_only_go_down(path):
    if room(path) == "__init__":
        assert not imported(path)
        return
    assert room(path) in ROOMS, "a new room needs its place in the list"
    height = ROOMS.index(room(path))
    for module in imported(path):
        parts = module.split(".")
        if parts[0] != "videomv_jax":
            continue
        if parts[1] == "__version__":
            continue
        other = parts[1]
        assert other == room(path) or ROOMS.index(other) > height, module


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_kernels_have_one_caller_each(path):
    users = {
        "videomv_jax/splat/renderer.py",
        "videomv_jax/models/attention.py",
        "videomv_jax/models/blocks.py",
        "videomv_jax/cli/bench.py",
    }
    if any(module.startswith("videomv_kernels") for module in imported(path)):
        assert name(path) in users


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_stand_alone(path):
    assert not any(module.startswith("videomv_jax") for module in imported(path))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_torch_stays_in_convert(path):
    """And where a peer is measured that needs it."""
    foreign = {"torch", "diffusers"}
    if foreign & {module.split(".")[0] for module in imported(path)}:
        peer = "kernels/videomv_kernels/benchmark/peer.py"
        assert "convert" in path.parts or name(path) == peer


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_are_small_and_named_for_what_they_do(path):
    assert len(path.read_text().splitlines()) <= 500
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
