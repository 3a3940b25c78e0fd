"""The demo: a small world, a base model that learned it, and one run of preference training."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from likelier.base.errors import OutputError
from likelier.base.files import read_json
from likelier.base.terminal import say

if TYPE_CHECKING:
    from likelier.demo.base import Recipe


def demo(out: Path, seed: int = 0, recipe: "Recipe | None" = None, lang: str | None = None) -> Path:
    """Make the demo in the run folder ``out``, or resume it; returns ``out``.

    ``seed`` decides everything random, ``recipe`` replaces the base model's; ``lang`` is the
    language of the report. A finished demo is left as it is, but for its report where a language
    is asked for.

    Raises OutputError where ``out`` holds another run, and the errors of `likelier.train`.
    """
    began = time.perf_counter()
    outcome = read_json(out / "outcome.json")
    if outcome is None:
        from likelier.demo.make import make  # imports torch, which takes seconds

        return make(out, seed, recipe, began, lang)
    if outcome.get("seed") != seed:
        raise OutputError(
            f"this folder holds the demo of seed {outcome.get('seed')}",
            where=f"out: {out}",
            hint="give another out folder, or that seed",
        )
    say(f"{out} is finished: nothing to do")
    if lang is not None:
        from likelier.report.page import write_report

        write_report(out, lang)
    say(f"report: {out / 'report.html'}")
    return out
