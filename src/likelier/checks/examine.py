"""Everything that `likelier check` finds in preference data, in one reading of their rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from likelier.base.child import in_child
from likelier.base.errors import ConfigError
from likelier.base.findings import Finding
from likelier.base.terminal import counting
from likelier.chat.tokenizer import Boundary, Encoder, Turns
from likelier.checks.across import Content, EvenSample, digest
from likelier.checks.inspector import PairInspector
from likelier.checks.pairs import SCRIPTS, template_finding, thinking_finding
from likelier.checks.shortcuts import FEATURES, characters, lengths, probe, shortcuts
from likelier.checks.summary import Examination, Statistics, Tally
from likelier.config import Config
from likelier.data.formats import first_pair
from likelier.data.load import format_of, no_row
from likelier.data.records import Pair
from likelier.data.shapes import Format, format_with, recognised
from likelier.data.sources import Data, read_data
from likelier.data.workers import Chunk, Task, chunks

MAX_SAMPLED = 20_000  # pairs whose features are kept for the statistics
PAIRINGS = ("best-worst", "best-rest", "all")


@dataclass(frozen=True)
class Question:
    """The data to examine, and how to read and encode them.

    Attributes:
        data: a file, folder or Hub id; or several with weights.
        format: what the user says of it: columns, chat and ranking.
        model: whose tokenizer and template are used; with None only the texts are examined.
        held_out: data whose prompts must not be trained on.
        max_length: tokens; pairs over it are found. None is what the model can take.
        trim: say what trimming would leave of them instead.
        template: further arguments of the chat template.
        today: the date that the chat template gets.
        revision: of the model.
        boundary: how an answer is put behind its prompt (`data.boundary`).
        turns: which turns of an answer are scored (`data.turns`).
        score: how many pairs, evenly out of all, the model scores; 0 loads no weights.
        all_places: keep the place of every finding, not only of the first of each kind.
    """

    data: Data
    format: Format = field(default_factory=Format)
    model: str | None = None
    held_out: str | None = None
    max_length: int | None = None
    trim: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)
    today: str | None = None
    revision: str | None = None
    boundary: Boundary = "auto"
    turns: Turns = "all"
    score: int = 0
    all_places: bool = False

    @property
    def name(self) -> str:
        """The name of the data, or those of several with commas between them."""
        return ", ".join(self.data) if isinstance(self.data, Mapping) else str(self.data)

    @cached_property
    def encoder(self) -> Encoder | None:
        """The encoder of the model asked about, if any; raises what loading and building raise."""
        if self.model is None:
            return None
        from likelier.model.load import load_encoder  # imports torch

        encoder = load_encoder(self.model, self.revision, self.template, self.today)
        return replace(encoder, boundary=self.boundary, turns=self.turns)

    def task(self, form: Format, **further: Any) -> Task:
        """How rows of this format are made into pairs, with ``further`` fields of the task."""
        limit = self.max_length or (self.encoder.positions if self.encoder else None)
        return Task(form, self.encoder, limit, self.trim, **further)


def question_of_options(
    data: Path,
    model: str | None,
    columns: Mapping[str, str | None],
    chat: bool,
    template: Mapping[str, Any],
    pairs: str | None,
    min_gap: float | None,
    held_out: str | None,
    max_length: int | None,
    score: int,
) -> Question:
    """The question of a command line.

    Raises ConfigError for a value that is no choice, or an option that nothing would read.
    """
    if pairs not in (None, *PAIRINGS):
        hint = f"use {', '.join(PAIRINGS)}"
        raise ConfigError(f"{pairs!r} is not a choice", where="--pairs", hint=hint)
    needing = {"--max-length": max_length, "--score": score, "--template": template}
    for option, given in needing.items():
        if given and model is None:
            raise ConfigError("has no effect without a model", where=option, hint="add --model")
    asked = replace(
        format_with(columns, chat),
        pairs=pairs or PAIRINGS[0],  # type: ignore[arg-type]  # checked above
        min_gap=min_gap or 0.0,
    )
    return Question(
        str(data), asked, model, held_out, max_length,
        template=template, score=score,
    )  # fmt: skip


def question_of_config(config: Config, score: int, options: Mapping[str, Any]) -> Question:
    """The training data of a config, mixtures too, as its model will see them.

    Raises ConfigError for an option given beside it that the config decides.
    """
    for option, given in options.items():
        if given is not None and given is not False:
            what = "has no effect: the config decides this"
            raise ConfigError(what, where=option, hint="remove the option, or change the config")
    data = config.data
    return Question(
        data.train, format_of(data), config.model.path, data.eval_path, data.max_length,
        trim=data.overlong == "trim", template=data.template, today=data.today,
        revision=config.model.revision, boundary=data.boundary, turns=data.turns, score=score,
    )  # fmt: skip


def examine(question: Question) -> Examination:
    """Read every row once, and with a model also put every pair through its template.

    Memory does not grow with the texts: what is kept of a pair are hashes, and features and
    signatures of a sample.

    Raises:
        InputMissing: the file or the model is not there.
        DataError: the file cannot be read at all, or the model's tokenizer or template cannot
            be used.
        ConfigError: an unknown key in ``columns``, or a setting of no effect.
    """
    encoder = question.encoder
    inspector = PairInspector(statistics=True)
    if question.held_out is not None:
        inspector = inspector.watching(_held_out(question.held_out, question.format))
    form, read = recognised(read_data(question.data), question.format)
    task = question.task(form, inspector=inspector)
    example, rows = first_pair(read, form)
    found = _Found(form, question.all_places)
    with counting("check", question.name) as advance:
        for chunk in chunks(rows, task):
            found.add(chunk)
            advance(chunk.rows)
    no_row(found.rows, question.name)
    if encoder is not None:
        found.tally.add(in_child(_of_template, encoder, example))
    found.tally.add(found.content.findings())
    if question.held_out is not None:
        found.tally.add(found.content.leaks(inspector.held_out))
    statistics = found.statistics()
    found.tally.add(shortcuts(statistics.probe, statistics.lengths, question.name))
    usable = found.rows - found.left_out
    return Examination(found.rows, usable, found.tally.kinds(), form, statistics, example)


def _of_template(encoder: Encoder, first: Pair | None) -> list[Finding]:
    """What is found about the template, from the first pair that can be read."""
    if first is None:
        return []
    found = [look(encoder, first) for look in (template_finding, thinking_finding)]
    return [finding for finding in found if finding]


def _held_out(data: str, asked: Format) -> list[Pair]:
    """The held-out pairs that can be read; rows that cannot are not reported here."""
    form, rows = recognised(read_data(data), asked)
    task = Task(form, keep_pairs=True)
    return [pair for chunk in chunks(rows, task) for pair in chunk.pairs]


class _Found:
    """What is kept of all rows: counts, hashes, and an even sample of features."""

    def __init__(self, form: Format, all_places: bool) -> None:
        self.labelled = form.shape == "labelled"
        self.tally = Tally(all_places)
        self.content = Content()
        self.rows = self.left_out = 0
        self._features, self._lengths = EvenSample(MAX_SAMPLED), EvenSample(MAX_SAMPLED)
        self._keys, self._whole = EvenSample(MAX_SAMPLED), EvenSample(MAX_SAMPLED)
        self._origins: Counter[str] = Counter()

    def add(self, chunk: Chunk) -> None:
        """Keep what matters of one more chunk."""
        self.rows += chunk.rows
        self.left_out += chunk.left_out
        self.tally.add(chunk.findings)
        self.content.add(chunk)
        arrays = chunk.arrays
        self._origins.update(origin for origin in arrays["origins"].tolist() if origin)
        pairs = len(arrays["features"])  # none of unpaired examples
        self._features.add(arrays["features"])
        self._lengths.add(arrays["lengths"][:pairs])
        self._keys.add(arrays["keys"][:pairs, 0])
        self._whole.add(arrays["before_fitting"])

    def statistics(self) -> Statistics:
        """The statistics of everything added."""
        keys = self.content.keys
        _, counts = np.unique(keys[:, 0], return_counts=True)
        table, prompts = self._features.rows, self._keys.rows
        chosen, rejected, unit = characters(table[:, 0]), characters(table[:, 1]), "characters"
        whole = None
        if len(self._lengths):
            _, chosen, rejected = self._lengths.rows.astype(np.float64).T
            unit, whole = "tokens", self._whole.rows
        columns = [(name, FEATURES.index(f"{name} letters")) for name in SCRIPTS if name != "other"]
        scripts = {name: int(table[:, :, column].sum()) for name, column in columns}
        good = int((keys[:, 2] == digest(True)).sum())
        return Statistics(
            pairs=len(keys),
            prompts=len(counts),
            most_pairs_of_a_prompt=int(counts.max()) if len(counts) else 0,
            sampled=len(table),
            compared=self.content.sampled,
            lengths=lengths(chosen, rejected, prompts, unit, whole),
            scripts={name: count for name, count in scripts.items() if count},
            probe=probe(table[:, 0], table[:, 1], prompts),
            origins=dict(self._origins.most_common(20)),
            labels={"good": good, "bad": len(keys) - good} if self.labelled else {},
        )
