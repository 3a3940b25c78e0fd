"""What a run promises, tried out: faults are made on purpose, and what then happens is counted.

``python -m faults`` tries every section, ``python -m faults kills --stride 10`` one of them. Each
writes ``faults/results/SECTION.json``, and `faults.page` puts them into docs/reliability.md.

A section is a module of this folder, named in ``SECTIONS``, with one function::

    def run(options: Options) -> list[Row]

``options.stride`` tries every so-many-th case, so that a test can run a bounded part;
``options.seed`` makes what is drawn repeatable; ``options.workers`` cases may run at once;
``options.folder`` is empty and is deleted afterwards. A row counts the cases of one kind: those
tried, those that held, and one line for each that did not, without paths of this machine. Its
``of`` is the number of cases there are; None says that they were drawn from more than can be tried.
A section prints nothing but the seeds that repeat it, and never stops at a case that fails.
"""

from dataclasses import dataclass
from pathlib import Path

# The title of each section, by the name of its module.
SECTIONS = {
    "kills": "Killed at every file call",
    "errors": "An error at every file call",
    "random_kills": "Killed at random instants",
    "corrupt": "Files damaged, and folders shared",
    "power_loss": "Power lost",
    "hostile": "Hostile inputs",
    "signals": "Signals at random instants",
    "ranks": "One of two processes lost",
    "planted": "Planted bugs",
}


@dataclass(frozen=True)
class Options:
    """How much of a section is tried, and where."""

    folder: Path
    stride: int = 1
    seed: int = 1
    workers: int = 2
