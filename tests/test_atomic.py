"""Folders appear whole or not at all."""

import pytest

from videomv_jax import atomic
from videomv_jax.types import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_appears_at_the_end(tmp_path):
    target = tmp_path / "a" / "b"
    with atomic.replacing(target, "done") as fresh:
        (fresh / "done").touch()
        assert not target.exists()
    assert names(target) == ["done"]
    assert names(target.parent) == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_failure_keeps_the_old_one_and_leaves_nothing(tmp_path, error):
    target = tmp_path / "model"
    target.mkdir()
    (target / "done").write_text("old")
    with pytest.raises(error), atomic.replacing(target, "done") as fresh:
        (fresh / "done").write_text("new")
        raise error
    assert (target / "done").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_replaces_its_own_kind(tmp_path):
    target = tmp_path / "model"
    for text in ("old", "new"):
        with atomic.replacing(target, "done") as fresh:
            (fresh / "done").write_text(text)
            (fresh / text).touch()
    assert names(target) == ["done", "new"]
    assert names(tmp_path) == ["model"]


def test_never_replaces_a_foreign_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with (
        pytest.raises(InputError, match="photos exists and holds no done"),
        atomic.replacing(tmp_path / "photos", "done"),
    ):
        pytest.fail("must not start")
    assert names(tmp_path / "photos") == ["cat.jpg"]


def test_takes_an_empty_folder(tmp_path):
    with atomic.replacing(tmp_path, "done") as fresh:
        (fresh / "done").touch()
    assert names(tmp_path) == ["done"]


def test_unwritable_parent(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="cannot write"),
        atomic.replacing(tmp_path / "file" / "out", "done"),
    ):
        pytest.fail("must not start")
