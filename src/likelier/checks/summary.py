"""What was found in preference data: counted by code, and written as JSON, as lines, as a page."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from likelier.base.findings import Finding
from likelier.base.foreign import visible
from likelier.base.terminal import console
from likelier.checks.rules import cure, why
from likelier.checks.shortcuts import Clue, Estimate, Lengths, Probe
from likelier.data.records import Pair
from likelier.data.shapes import NEEDED, Format
from likelier.pages.texts import text, text_or

SHOWN_CHARACTERS = 90  # of each side of the example
MAX_LOCATIONS = 20  # of each code that are kept
SHOWN_LOCATIONS = 5  # of each code that the terminal shows
_SOURCE = re.compile(r"(?P<file>.*[:\[])(?P<row>\d+)\]?(#\d+)??(#(?P<pair>\d+))?", re.DOTALL)
_FIRST = re.compile(r"a first '(.+)'")
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}  # of the severities, gravest first


@dataclass(frozen=True)
class Kind:
    """How often one code was found, and the first findings of it."""

    code: str
    severity: str
    count: int
    first: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """What the pairs are like together.

    ``sampled`` of them were looked at for lengths, languages and the probe; ``compared`` for near
    copies. ``scripts`` counts answers by the letters that they are written in.
    """

    pairs: int
    prompts: int
    most_pairs_of_a_prompt: int
    sampled: int
    compared: int
    lengths: Lengths | None
    scripts: Mapping[str, int]
    probe: Probe | None
    origins: Mapping[str, int]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class ModelView:
    """Scores of a sample of pairs under a model, in nats a token.

    ``prefers_chosen`` is how often the model finds the chosen answer likelier, by the mean of its
    tokens; ``own`` is that mean for answers which the model sampled itself: what is far below it
    is off-policy. ``suspects`` counts by source the pairs whose label may be wrong.
    """

    pairs: int
    prefers_chosen: Estimate
    chosen: float
    rejected: float
    own: float | None
    suspects: Mapping[str, int]


@dataclass(frozen=True)
class Examination:
    """Everything found: of ``rows`` rows ``usable`` can be used.

    ``kinds`` come gravest and most frequent first. ``example`` is the first pair, None where no row
    can be read. ``model_view`` is None where no pair was scored.
    """

    rows: int
    usable: int
    kinds: tuple[Kind, ...]
    form: Format
    statistics: Statistics
    example: Pair | None = None
    model_view: ModelView | None = None

    def count(self, severity: str) -> int:
        """How many findings are so grave."""
        return sum(kind.count for kind in self.kinds if kind.severity == severity)


class Tally:
    """Findings counted by code; of each code the first `MAX_LOCATIONS` are kept, or all of them."""

    def __init__(self, keep_all: bool = False) -> None:
        self._most = sys.maxsize if keep_all else MAX_LOCATIONS
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], list[Finding]] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Count more findings, in the order of the file."""
        for finding in findings:
            key = (finding.code, finding.severity)
            self._counts[key] += 1
            first = self._first.setdefault(key, [])
            if len(first) < self._most:
                first.append(finding)

    def kinds(self) -> tuple[Kind, ...]:
        """What was counted, errors first, and then the most frequent first."""
        kinds = [
            Kind(code, severity, count, tuple(self._first[code, severity]))
            for (code, severity), count in self._counts.items()
        ]
        return tuple(sorted(kinds, key=lambda kind: (_rank(kind), -kind.count, kind.code)))


def first_findings(kinds: Iterable[Kind]) -> list[Finding]:
    """The first `MAX_LOCATIONS` findings of all kinds in the order of the file, errors first."""
    every = in_file_order(finding for kind in kinds for finding in kind.first)
    return sorted(every, key=_rank)[:MAX_LOCATIONS]


def in_file_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by file, row and pair; those of no row come last."""
    files: dict[str, int] = {}

    def location(finding: Finding) -> tuple[int, int, int]:
        found = _SOURCE.fullmatch(finding.source)
        if found is None:
            return (2**62, 0, 0)
        number = files.setdefault(found["file"], len(files))
        return number, int(found["row"]), int(found["pair"] or 0)

    return sorted(findings, key=location)


def _rank(found: Kind | Finding) -> int:
    return list(COLOURS).index(found.severity)


def kind_as_data(kind: Kind, most: int | None = MAX_LOCATIONS) -> dict[str, Any]:
    """A kind as plain data: at most ``most`` places (None: all), why it matters and what to do."""
    return {
        "code": kind.code,
        "severity": kind.severity,
        "count": kind.count,
        "places": [asdict(finding) for finding in kind.first[:most]],
        "why": why(kind.code),
        "cure": cure(kind.code),
    }


def as_data(found: Examination) -> dict[str, Any]:
    """An examination as plain data, every kind with why it matters and what to do."""
    return {
        "rows": found.rows,
        "usable": found.usable,
        "kinds": [kind_as_data(kind, None) for kind in found.kinds],
        "places": [asdict(finding) for finding in first_findings(found.kinds)],
        "format": {
            **{key: getattr(found.form, key) for key in ("shape", "columns", "chat", "style")},
            "description": found.form.describe(),
            "example": describe_example(found.example, found.form)[1:],
        },
        "statistics": asdict(found.statistics),
        "reference": asdict(found.model_view) if found.model_view else None,
    }


def describe(found: Examination) -> list[str]:
    """The statistics and the view of the model in words, one figure a line."""
    view = _describe_view(found.model_view) if found.model_view else []
    return [*_describe_statistics(found.statistics), *view]


def describe_example(pair: Pair | None, form: Format) -> list[str]:
    """The format, and one pair in short lines, each side behind the columns that it comes from: so
    a person sees whether the columns were understood.
    """
    if pair is None:
        return [form.describe()]
    answers = [form.columns[name] for name in NEEDED[form.shape] if name in form.columns]
    asks = [form.columns[name] for name in ("system", "history", "prompt", "input")
            if name in form.columns]  # fmt: skip
    lines = [form.describe(), text("check.example", source=pair.source)]
    for name, side in pair.sides.items():
        said = side if isinstance(side, str) else " | ".join(map(_in_short, side))
        columns = form.columns.get(name) or " or ".join(answers[:2])
        if name == "prompt":
            columns = " + ".join(asks) or answers[0]
        lines.append(f"  {name} ({columns}): {_shortened(said)}")
    return lines


def _in_short(turn: Mapping[str, Any]) -> str:
    content = turn.get("content") or ("(calls a tool)" if turn.get("tool_calls") else "")
    return f"{turn['role']}: {content if isinstance(content, str) else '(…)'}"


def _shortened(said: str) -> str:
    """The beginning and the end of a long text, in one line."""
    if len(said) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        said = f"{said[:half]} … {said[-half:]}"
    return " ".join(said.split())


def _describe_statistics(statistics: Statistics) -> list[str]:
    lines = []
    pairs, prompts = statistics.pairs, text("check.counted_prompts", n=statistics.prompts)
    if statistics.labels:
        labels = ", ".join(
            text(f"check.labels.{name}", n=count) for name, count in statistics.labels.items()
        )
        answers = text("check.counted_answers", n=pairs)
        lines.append(
            text("check.answers_to_prompts", answers=answers, prompts=prompts, labels=labels)
        )
    elif pairs:
        counted = text("check.counted_pairs", n=pairs)
        lines.append(text("check.pairs_of_prompts", pairs=counted, prompts=prompts))
    if (skew := statistics.lengths) and pairs > 1:
        medians = {"chosen": skew.median_chosen, "rejected": skew.median_rejected}
        longer = _interval(skew.chosen_longer)
        unit = text_or(f"check.units.{skew.unit}", skew.unit)
        lines.append(text("check.lengths", share=longer, **medians, unit=unit))
    if len(statistics.scripts) > 1:
        total = sum(statistics.scripts.values())
        shares = (
            f"{text_or(f'check.scripts_named.{name}', name)} {count / total:.0%}"
            for name, count in statistics.scripts.items()
        )
        lines.append(text("check.scripts", shares=", ".join(shares)))
    if probe := statistics.probe:
        lines.append(text("check.probe", share=_interval(probe.accuracy)))
        strong = [clue for clue in probe.clues[:3] if clue.right.low > 0.55]
        lines += [f"  {_describe_clue(clue)}" for clue in strong]
    if len(statistics.origins) > 1:
        lines.append(text("check.sources", counts=_listed(statistics.origins)))
    return lines


def _describe_clue(clue: Clue) -> str:
    right, differ = _interval(clue.right), clue.differ
    feature, says = describe_feature(clue)
    return text("check.clue", feature=feature, says=says, share=right, n=differ)


def describe_feature(clue: Clue) -> tuple[str, str]:
    """The feature of a clue and its direction, in the language that is set."""
    feature = clue.feature
    if first := _FIRST.fullmatch(feature):
        feature = text("check.first_character", letter=first[1])
    elif (script := feature.removesuffix(" letters")) != feature:
        feature = text("check.letters", script=text_or(f"check.scripts_named.{script}", script))
    else:
        feature = text_or(f"check.traits.{feature}", feature)
    return feature, text(f"check.says.{clue.says}")


def tells_apart(statistics: Statistics) -> dict[str, str]:
    """What trivial features say about the sides of the pairs, by the kind of finding it may be."""
    said = {}
    if found := statistics.probe:
        share = _interval(found.accuracy)
        if found.clues:
            feature = describe_feature(found.clues[0])[0]
            said["shortcut"] = text("check.shortcut_most", share=share, feature=feature)
        else:
            said["shortcut"] = text("check.shortcut", share=share)
    if skew := statistics.lengths:
        chosen = skew.chosen_longer.value
        side = "chosen" if chosen > 0.5 else "rejected"
        said["length"] = text(
            f"check.{side}_longer",
            share=max(chosen, 1 - chosen),
            chosen=skew.median_chosen,
            rejected=skew.median_rejected,
            unit=text_or(f"check.units.{skew.unit}", skew.unit),
        )
    return said


def _describe_view(view: ModelView) -> list[str]:
    lines = [text("check.prefers", share=_interval(view.prefers_chosen), n=view.pairs)]
    if view.own is None:
        lines.append(text("check.log_probs", chosen=view.chosen, rejected=view.rejected))
    else:
        means = {"chosen": view.chosen, "rejected": view.rejected, "own": view.own}
        lines.append(text("check.log_probs_own", **means))
    if view.suspects:
        lines.append(text("check.suspects", counts=_listed(view.suspects)))
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _interval(figure: Estimate) -> str:
    """A share with its interval."""
    return text("check.share", value=figure.value, low=figure.low, high=figure.high)


def print_kinds(
    kinds: Sequence[Kind], rows: int, usable: int, most: int | None = SHOWN_LOCATIONS
) -> None:
    """Print a table of the kinds of findings, the first ``most`` findings of each (None: all that
    are kept), and how many rows are usable.
    """
    terminal = console()
    if kinds:
        table = Table("code", "severity", "count", "why it matters", title_justify="left")
        table.columns[2].justify = "right"
        for kind in kinds:
            table.add_row(visible(kind.code), kind.severity, str(kind.count), why(kind.code))
        terminal.print(table)
    for kind in kinds:
        shown = kind.first[:most]
        for number, finding in enumerate(shown):
            # Not wrapped: a location must stay one piece, for editors and grep.
            colour = COLOURS[finding.severity]
            terminal.print(finding.severity, style=colour, end=" ", soft_wrap=True)
            terminal.print(visible(f"{finding.where}: {finding.message}"), soft_wrap=True)
            following = shown[number + 1 : number + 2]
            if finding.hint and all(other.hint != finding.hint for other in following):
                terminal.print(visible(f"  {finding.hint}"), style="dim", soft_wrap=True)
        if hidden := kind.count - len(shown):
            rest = "" if most is None else "; --all shows them"
            terminal.print(f"  and {hidden} more {visible(kind.code)}{rest}", soft_wrap=True)
    terminal.print(text("check.usable", usable=usable, rows=rows))
