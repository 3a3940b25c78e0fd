"""Everything that can be told of preference data before a run, in one pass over its rows."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from likelier.base.terminal import counting
from likelier.checks.leaks import HeldOutPrompts
from likelier.checks.seen import Seen, Statistics
from likelier.checks.template import template_notes
from likelier.data.check import Data, Reading, Summary, Tally, no_row, open_data, open_rows
from likelier.data.encoder import Encoder
from likelier.data.formats import Format
from likelier.data.part import Counted, Task
from likelier.data.pool import parts
from likelier.data.records import Finding, Preference


@dataclass(frozen=True)
class Question:
    """What is to be looked at, and how.

    Attributes:
        data: a file, folder or Hub id; or several with weights.
        reading: columns, chat and ranking.
        model: whose tokenizer and template are used; None looks at the text alone.
        held_out: data whose prompts must not be trained on.
        max_length: tokens; pairs over it are found. None is any length.
        trim: find what trimming would leave instead.
        template: further arguments of the chat template; ``today`` is the date it gets.
        revision: of the model.
        score: how many pairs are scored with the model, an even sample; 0 loads no weights.
    """

    data: Data
    reading: Reading = field(default_factory=Reading)
    model: str | None = None
    held_out: str | None = None
    max_length: int | None = None
    trim: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)
    today: str | None = None
    revision: str | None = None
    score: int = 0


@dataclass(frozen=True)
class Examination:
    """What was found: the findings, the format recognised, and the statistics."""

    summary: Summary
    form: Format
    statistics: Statistics
    reference: Any = None  # a ReferenceView, where pairs were scored

    @property
    def has_errors(self) -> bool:
        """Whether a row cannot be used."""
        return any(kind.severity == "error" for kind in self.summary.kinds)

    def joined(self, reference: Any, notes: Iterable[Finding]) -> "Examination":
        """The same with what a model made of the pairs."""
        tally = Tally()
        tally.add(notes)
        more = tally.summary(self.summary.rows, self.summary.usable)
        summary = replace(self.summary, kinds=(*self.summary.kinds, *more.kinds))
        return replace(self, summary=summary, reference=reference)


def examine(question: Question) -> Examination:
    """Read every row once, and with a model also put every pair through its template.

    Memory does not grow with the texts: what is kept of a pair are hashes, and features and
    signatures of a sample.

    Raises:
        InputMissing: the file or the model is not there.
        DataError: the file cannot be read at all, or the model's tokenizer or template cannot
            be used.
        ConfigError: a key of ``columns`` that is none of ours, or a setting of no effect.
    """
    encoder = encoder_of(question)
    held = _held_out(question)
    form, rows = open_rows(open_data(question.data), question.reading)
    task = Task(
        form,
        question.reading.ranking,
        encoder,
        max_length=question.max_length,
        trim=question.trim,
        split_seed=0 if held else None,  # for the signatures of the prompts
        watch=held.watch if held else None,
        statistics=True,
    )
    seen = Seen(form)
    first, rows = _first(rows)
    with counting("check", name_of(question.data)) as advance:
        for part in parts(rows, task):
            seen.take(part)
            advance(part.rows)
    no_row(seen.rows, name_of(question.data))
    if encoder is not None:
        seen.tally.add(template_notes(encoder, form, first, question.reading.ranking))
    seen.tally.add(finding for _, finding in seen.content.findings())
    if held:
        sources = [seen.content.places[number] for number in seen.prompts.numbers]
        seen.tally.add(held.leaks(seen.hits, seen.prompts.rows, sources))
    statistics = seen.statistics()
    seen.tally.add(_of_the_whole(statistics, name_of(question.data)))
    usable = seen.rows - seen.left_out
    return Examination(seen.tally.summary(seen.rows, usable), form, statistics)


def encoder_of(question: Question) -> Encoder | None:
    """The encoder of the model asked about, if any."""
    if question.model is None:
        return None
    from likelier.data.encoder import build_encoder
    from likelier.model.load import load_tokenizer

    loaded = load_tokenizer(question.model, question.revision)
    return build_encoder(*loaded, question.template, question.today)


def _held_out(question: Question) -> HeldOutPrompts | None:
    """The pairs of ``held_out`` that can be read; what is wrong with it is its own check's."""
    if question.held_out is None:
        return None
    form, rows = open_rows(open_data(question.held_out), question.reading)
    task = Task(form, question.reading.ranking, keep_pairs=True)
    pairs: list[Preference] = []
    for part in parts(rows, task):
        pairs += part.pairs
    return HeldOutPrompts(tuple(pairs))


def _first(rows: Iterator[Counted]) -> tuple[list[Counted], Iterator[Counted]]:
    """The first few rows, and all of them again."""
    first = list(islice(rows, 20))
    return first, chain(first, rows)


def name_of(data: Data) -> str:
    """The name of the data, or those of several with commas between them."""
    return ", ".join(data) if isinstance(data, Mapping) else str(data)


def _of_the_whole(statistics: Statistics, name: str) -> Iterable[Finding]:
    """Findings that no single row has: a shortcut, a skew of lengths."""
    found, skew = statistics.probe, statistics.lengths
    if found and found.is_shortcut:
        best = f", {found.clues[0].feature} most of all" if found.clues else ""
        low, high = found.accuracy.low, found.accuracy.high
        message = (
            f"trivial features alone tell chosen from rejected for {found.accuracy.value:.0%} of "
            f"the pairs ({low:.0%} to {high:.0%}){best}"
        )
        hint = "balance the data in these features, or filter by them"
        yield Finding("shortcut", "warning", name, None, message, hint)
    share = skew.chosen_longer if skew else None
    if skew and share and found and (share.low > 0.65 or share.high < 0.35):
        side = "chosen" if share.value > 0.5 else "rejected"
        value = max(share.value, 1 - share.value)
        message = (
            f"{side} is longer in {value:.0%} of the pairs (median {skew.median_chosen:.0f} and "
            f"{skew.median_rejected:.0f} {skew.unit})"
        )
        hint = "match lengths, or use a length-normalised loss"
        yield Finding("length", "warning", name, None, message, hint)
