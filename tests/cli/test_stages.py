"""Progress of a command: seconds per stage, and Ctrl-C that nothing swallows."""

import io
import signal

import pytest
from rich.console import Console

from videomv_jax.cli.stages import Stages


@pytest.fixture
def stages():
    return Stages(Console(file=io.StringIO()))


def test_each_stage_is_timed(stages):
    with stages:
        stages("loading", 0, 1)
        stages("writing", 0, 2)
        stages("writing", 1, 2)
    assert list(stages.seconds) == ["loading", "writing"]


def test_a_swallowed_interrupt_comes_again(stages):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stages:
        stages("compiling", 0, 1)
        try:
            signal.raise_signal(signal.SIGINT)
        except:  # noqa: E722 - as JAX does
            pass
        stages("compiling", 1, 1)
        pytest.fail("not interrupted")
    assert signal.getsignal(signal.SIGINT) is before
