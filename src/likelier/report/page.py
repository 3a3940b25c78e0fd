"""The report of a run: everything read from its folder, put into one HTML file."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from likelier.base.files import write_text
from likelier.pages import render_page
from likelier.pages.charts import page_scripts
from likelier.pages.excerpts import excerpt
from likelier.pages.texts import choose_language, in_language, percent, text, text_or
from likelier.pages.token_map import largest_reward, token_map
from likelier.report.charts import draw_charts
from likelier.report.distributions import draw_distributions
from likelier.report.health import health
from likelier.report.read import (
    PAIR_TOKENS,
    FoundKind,
    RunFiles,
    configured_language,
    count,
    number,
    read_jsonl,
    read_run,
)
from likelier.report.summary import describe_status, key_figures, run_facts
from likelier.report.verdict import give_verdict

SHOWN_SAMPLES = 8  # the others are folded away
LONGEST_SIDE = 1000  # characters of a pair's prompt and of each of its completions
REPEATED = 0.2  # of an answer's runs of four tokens: what is less is ordinary writing
LONGEST_SAMPLE = 4000  # characters; a model that never stops should not fill the page


def write_report(run: Path, lang: str | None = None) -> Path:
    """Write ``run/report.html`` from the files of a run folder, and return its path.

    The page is one file that needs no network, and is replaced whole or not at all. ``lang`` is
    its language; None or auto is that of the run's config, or what `choose_language` finds.

    Raises:
        InputMissing: ``run`` is no folder, or holds no complete run.json.
        ConfigError: there are no texts in ``lang``.
        OutputError: the page cannot be written.
    """
    path = Path(run) / "report.html"
    write_text(path, make_report(Path(run), lang))
    return path


def make_report(run: Path, lang: str | None = None, live: str | None = None) -> str:
    """The page of `write_report` as text; ``live`` is its version where a server sends it."""
    with in_language(choose_language(lang, configured_language(run))):
        return render_report(read_run(run), live)


def render_report(run: RunFiles, live: str | None = None) -> str:
    """The page as text, in the language that is set: a function of the folder's files alone."""
    scripts, drawn = page_scripts(draw_charts(run))
    samples = [_sample(row) for row in run.samples]
    checks = health(run)
    distributions, by_length = draw_distributions(run)
    maps, any_map = _token_maps(run)
    return render_page(
        "report.html",
        ["report.css", "charts.css", "tokens.css"],
        scripts,
        live=live,
        **drawn,
        maps=maps,
        any_map=any_map,
        distributions=distributions,
        by_length=by_length,
        name=run.path.resolve().name,
        verdict=give_verdict(run, checks),
        status=describe_status(run),
        cards=key_figures(run),
        samples=samples[:SHOWN_SAMPLES],
        more_samples=samples[SHOWN_SAMPLES:],
        checks=checks,
        pair_log=run.pair_log,
        most_changed=_most_changed(run),
        findings=[_in_our_words(kind) for kind in run.findings],
        texts={source: _pair(sides) for source, sides in run.texts.items()},
        facts=run_facts(run),
        config_text=run.config_text,
        gaps=run.gaps,
    )


def _token_maps(run: RunFiles) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """The pairs that are kept token by token, by their source, and one of them for the legend.

    They share one scale of colours, so that a pair which hardly moved looks pale.
    """
    rows = read_jsonl(run.path / PAIR_TOKENS, [])
    # One by one first: what is damaged must not take the scale of the others with it.
    whole = [row for row in rows if token_map(row) is not None]
    scale = largest_reward(whole) if whole else None
    maps = [found for row in whole if (found := token_map(row, scale)) is not None]
    return {found["source"]: found for found in maps}, maps[0] if maps else None


def _most_changed(run: RunFiles) -> list[dict[str, Any]]:
    """The pairs that changed most, less those that stand on the page for their margin."""
    log = run.pair_log
    shown = {row["source"] for row in (*log.smallest, *log.largest)} if log else set()
    return [row for row in log.most_changed if row["source"] not in shown] if log else []


def _in_our_words(kind: FoundKind) -> FoundKind:
    """A kind of finding in the page's language; one that is none of ours stays as it is."""
    why = text_or(f"findings.{kind.code}.why", kind.why)
    return replace(kind, why=why, cure=text_or(f"findings.{kind.code}.cure", kind.cure))


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
