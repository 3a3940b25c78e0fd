"""Pages that show what was typed and printed: their commands are run in a real shell, and compared.

In a block ``console`` a line behind ``$`` is a command, lines behind ``>`` continue it, and the
others are what it printed, both streams together; ``…`` stands for lines that are left out.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?(?: (?:B|KiB|MiB|GiB|ms|s)\b)?")
_ANSWER = re.compile(r"  (?:before|after): .+")


def commands_of(page: str) -> Iterator[tuple[str, list[str]]]:
    """Every command that a page shows, with the lines that it shows below."""
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            first, *others = entry.splitlines()
            typed = [line[2:] for line in others if line.startswith("> ")]
            yield "\n".join([first, *typed]), [x for x in others if not x.startswith("> ")]


class Shell:
    """A shell in a folder, with the command of this environment; what was run once is known."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._printed: dict[tuple[str, int], str] = {}

    def run(self, command: str, time: int = 0) -> str:
        """What a command prints on either stream; ``time`` counts how often it was run before.

        It must end well, unless what it prints is one of our errors.
        """
        if (command, time) not in self._printed:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            settings = {
                "LIKELIER_CACHE": str(self.folder / "cache"),
                "COLUMNS": "100",
                "PATH": path,
            }
            ended = subprocess.run(
                ["bash", "-c", f"exec 2>&1; {command}"],
                cwd=self.folder, env=os.environ | settings, stdin=subprocess.DEVNULL,
                capture_output=True, text=True,
            )  # fmt: skip
            said = ended.stdout
            assert (ended.returncode == 0) != bool(re.search("^error", said, re.MULTILINE)), said
            self._printed[command, time] = said
        return self._printed[command, time]


def not_printed(shown: list[str], printed: str) -> list[str]:
    """Lines that a page shows and that were not printed, in this order.

    Numbers may be others: they hang on the machine, and so do a model's own words.
    """
    lines = [_form(line) for line in printed.splitlines()]
    lost, at = [], 0
    for line in shown:
        if line == "…":
            continue
        if _form(line) in lines[at:]:
            at = lines.index(_form(line), at) + 1
        else:
            lost.append(line)
    return lost


def shows_all(shown: list[str], printed: str) -> bool:
    """Whether a page shows every line that was printed, or ``…`` in its place."""
    lines = ["(?:.*\n)*" if line == "…" else re.escape(_form(line)) + "\n" for line in shown]
    text = "".join(_form(line) + "\n" for line in printed.splitlines())
    return re.fullmatch("".join(lines), text) is not None


def _form(line: str) -> str:
    """A line as it is compared."""
    if _ANSWER.fullmatch(line):
        return line[: line.index(":")]
    return re.sub(r"\s+", " ", _NUMBER.sub("#", line)).strip()
