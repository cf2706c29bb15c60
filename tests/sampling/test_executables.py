"""Programs compiled ahead of time, saved and loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.sampling import executables
from videomv_jax.sampling.executables import Program
from videomv_jax.types import InputError

WEIGHTS = [np.float32(3)]


def scaled(weights, x, *, times=1):
    return weights[0] * x["x"] * times


def programs():
    return {"scaled": Program(scaled, static=("times",))}


def shaped(*shape):
    return {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}


@pytest.fixture
def made():
    """Two executables of one program."""
    made, heard = programs(), []
    program = made["scaled"]
    wanted = []
    for args, static in (
        ((WEIGHTS, shaped(2)), {"times": 2}),
        ((WEIGHTS, shaped()), {}),
    ):
        wanted.append((program, program.trace(*args, **static).lower(), args, static))
    executables.compile_all(wanted, lambda *event: heard.append(event))
    assert heard == [(0, 1), (0, 1), (1, 2), (2, 2)]
    return made


@pytest.fixture
def compilations():
    """Names of what compiles while the test runs."""
    seen = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_saved_programs_run_without_compiling(made, tmp_path, compilations):
    executables.save(tmp_path / "saved", made, "a model")
    loaded = programs()
    executables.load(tmp_path / "saved", loaded, "a model")
    compilations.clear()
    for one in (made["scaled"], loaded["scaled"]):
        x = {"x": np.array([1, 2], np.float32)}
        np.testing.assert_array_equal(one(WEIGHTS, x, times=2), [6, 12])
        assert float(one(WEIGHTS, {"x": np.float32(2)})) == 6
    assert not compilations
    # Of another shape, or with another static argument, it compiles as usual.
    x = {"x": np.array([1, 2], np.float32)}
    np.testing.assert_array_equal(loaded["scaled"](WEIGHTS, x, times=3), [9, 18])
    assert compilations


def test_what_was_made_for_something_else_is_refused(made, tmp_path, monkeypatch):
    executables.save(tmp_path / "saved", made, "a model")
    with pytest.raises(InputError, match="something else: model a model, here another"):
        executables.load(tmp_path / "saved", programs(), "another")
    monkeypatch.setattr(jax, "__version__", "0.1")
    with pytest.raises(InputError, match="jax .*, here 0.1"):
        executables.load(tmp_path / "saved", programs(), "a model")
    with pytest.raises(InputError, match="none holds no compiled programs"):
        executables.load(tmp_path / "none", programs(), "a model")


def test_nothing_compiled_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="nothing is compiled yet"):
        executables.save(tmp_path / "saved", programs(), "a model")
    assert not (tmp_path / "saved").exists()


def test_what_xla_cannot_save_is_told(made, tmp_path, monkeypatch):
    def serialize(_):
        raise jax.errors.JaxRuntimeError("`LessThan` is not serializable")

    monkeypatch.setattr(executables.serialize_executable, "serialize", serialize)
    with pytest.raises(InputError, match="XLA cannot save 'scaled': `LessThan`"):
        executables.save(tmp_path / "saved", made, "a model")
    assert not (tmp_path / "saved").exists()
