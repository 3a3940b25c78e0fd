"""A real terminal for a program: tmux, in which keys are pressed and the screen is read."""

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HAS_TMUX = shutil.which("tmux") is not None
NO_TMUX = "tmux is not installed"
PATIENCE = 60  # seconds, on a machine that is busy with other work
COLUMNS, LINES = 100, 50


class Terminal:
    """The screen of a program, and its keyboard."""

    def __init__(self, socket: Path):
        self._socket = socket

    def tmux(self, *words: str) -> str:
        """What a command of tmux prints."""
        command = ["tmux", "-u", "-S", str(self._socket), "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        """Type a text, without Enter."""
        self.tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names, such as ``Enter``, ``BSpace`` and ``C-c``."""
        self.tmux("send-keys", *keys)

    @property
    def screen(self) -> list[str]:
        """The lines of the screen, and those that have left it above, without empty ones."""
        lines = self.tmux("capture-pane", "-p", "-S", "-").splitlines()
        return [line.rstrip() for line in lines if line.strip()]

    def wait_for(self, text: str, times: int = 1) -> list[str]:
        """Wait until so many lines hold a text; the screen then."""
        return self.wait_until(lambda screen: sum(text in line for line in screen) >= times)

    def wait_until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        """Wait until something holds of the screen; the screen then."""
        end = time.monotonic() + PATIENCE
        while not holds(screen := self.screen):
            assert time.monotonic() < end, "\n".join(screen)
            time.sleep(0.05)
        return screen


@contextmanager
def terminal(*command: str, **variables: str) -> Iterator[Terminal]:
    """A terminal in which a program runs. When it ends, ``code=`` and its exit code stand there."""
    with tempfile.TemporaryDirectory(prefix="tmux-", dir="/tmp") as folder:  # a short name
        one = Terminal(Path(folder) / "s")
        assigned = [f"{name}={value}" for name, value in variables.items()]
        words = shlex.join(["env", *assigned, *command])
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        one.tmux("new-session", "-d", *size, f"{words}; echo code=$?; sleep 1000")
        try:
            yield one
        finally:
            one.tmux("kill-server")
