"""Children of a process: what must not be lost around a fork."""

import os
import signal
import subprocess
import sys

import pytest

from likelier.base.child import in_child
from likelier.base.errors import DataError, LikelierError, NotFinite

# A hook after the fork stands for the instant in which Python runs hooks of its own.
INTERRUPTED_FORK = """
import os, signal
from likelier.base.child import in_child
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.{name}))
signal.signal(signal.SIGTERM, signal.default_int_handler)
before = signal.getsignal(signal.{name})
try:
    in_child(len, "abc")
except KeyboardInterrupt:
    print("heard", signal.getsignal(signal.{name}) is before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_a_fork_is_not_lost(name: str) -> None:
    assert signal.Signals[name]
    code = INTERRUPTED_FORK.format(name=name)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr, run.returncode) == ("heard True\n", "", 0)


@pytest.mark.parametrize(
    "error",
    [
        DataError("it is too long", where="a.jsonl:3 chosen", hint="shorten it"),
        NotFinite("loss is NaN", hint="look there", positions=[1, 2]),
    ],
)
def test_an_error_of_a_child_says_what_it_said_there(error: LikelierError) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as found:
        in_child(fail)
    assert str(found.value) == str(error)
    assert vars(found.value) == vars(error)
