"""The report of a run: everything read from its folder, put into one HTML file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from likelier.base.files import write_text
from likelier.pages import render_page
from likelier.pages.charts import page_scripts
from likelier.pages.excerpts import excerpt
from likelier.pages.texts import percent, text
from likelier.report.charts import draw_charts
from likelier.report.health import health
from likelier.report.read import RunFiles, count, number, read_run
from likelier.report.summary import describe_status, give_verdict, key_figures, run_facts

SHOWN_SAMPLES = 8  # the others are folded away
LONGEST_SIDE = 1000  # characters of a pair's prompt and of each of its completions
REPEATED = 0.2  # of an answer's runs of four tokens: what is less is ordinary writing
LONGEST_SAMPLE = 4000  # characters; a model that never stops should not fill the page


def write_report(run: Path) -> Path:
    """Write ``run/report.html`` from the files of a run folder, and return its path.

    The page is one file that needs no network, and is replaced whole or not at all.

    Raises:
        InputMissing: ``run`` is no folder, or holds no complete run.json.
        OutputError: the page cannot be written.
    """
    folder = read_run(Path(run))
    path = folder.path / "report.html"
    write_text(path, render_report(folder))
    return path


def render_report(run: RunFiles) -> str:
    """The page as text: a function of the folder's files alone, the same at any time."""
    scripts, drawn = page_scripts(draw_charts(run))
    samples = [_sample(row) for row in run.samples]
    tone, verdict = give_verdict(run)
    return render_page(
        "report.html",
        ["report.css", "charts.css"],
        scripts,
        **drawn,
        name=run.path.resolve().name,
        tone=tone,
        verdict=verdict,
        status=describe_status(run),
        cards=key_figures(run),
        samples=samples[:SHOWN_SAMPLES],
        more_samples=samples[SHOWN_SAMPLES:],
        checks=health(run),
        pair_log=run.pair_log,
        findings=run.findings,
        texts={source: _pair(sides) for source, sides in run.texts.items()},
        facts=run_facts(run),
        config_text=run.config_text,
        gaps=run.gaps,
    )


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt with the answers before and after training and what was judged of them."""
    temperature = number(row.get("temperature"))
    return {
        "prompt": excerpt(row.get("prompt"), LONGEST_SAMPLE),
        "decoding": temperature is not None and _decoding(temperature),
        "sides": [
            {
                "title": text(f"report.samples.{when}"),
                "answer": excerpt(row.get(when), LONGEST_SAMPLE),
                "preferred": _judged(row, f"preferred_{when}"),
                "named": _judged(row, f"named_{when}"),
                "counted": ", ".join(_counted(row, when)),
            }
            for when in ("before", "after")
            if when in row
        ],
    }


def _decoding(temperature: float) -> str:
    if temperature == 0:
        return text("report.samples.greedy")
    return text("report.samples.drawn", temperature=f"{temperature:g}")


def _counted(row: dict[str, Any], when: str) -> Iterator[str]:
    """How long an answer is, how it ended, and how much of it it had said before."""
    tokens, repetition = count(row.get(f"tokens_{when}")), number(row.get(f"repetition_{when}"))
    if tokens is None or repetition is None:
        return
    yield text("report.samples.tokens", n=tokens)
    stopped = row.get(f"stopped_{when}") is True
    yield text("report.samples.stopped" if stopped else "report.samples.cut")
    if repetition >= REPEATED:
        yield text("report.samples.repeated", share=percent(repetition))


def _pair(sides: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """What a pair says, side by side, each with the key of its name."""
    known = ("prompt", "chosen", "rejected", "completion")
    return [(name, excerpt(sides[name], LONGEST_SIDE)) for name in known if name in sides]


def _judged(row: dict[str, Any], key: str) -> bool | None:
    return bool(row[key]) if isinstance(row.get(key), (bool, int, float)) else None
