"""`likelier explain`: one pair of a finished run, its loss in numbers and its margin by tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likelier.base.child import in_child
from likelier.base.errors import ConfigError, InputMissing
from likelier.base.files import must_be_apart, read_lines, write_text
from likelier.base.foreign import harmless
from likelier.base.terminal import say
from likelier.batching.batch import completions_of
from likelier.commands.explain_terminal import print_map
from likelier.commands.show import is_at
from likelier.commands.verify import Trained, trained_by
from likelier.config import live
from likelier.config.schema import IN_MEMORY
from likelier.data.encode import decode
from likelier.data.load import Dataset
from likelier.data.load import load as load_data
from likelier.data.records import TokenPair, content_hash
from likelier.evaluation.pair_tokens import pair_rows, scored_pairs
from likelier.generation.divergence import initial_again
from likelier.generation.sides import open_sides
from likelier.losses.registry import BoundLoss, bind
from likelier.model.load import load_encoder
from likelier.model.policy import Policy, score_sequences
from likelier.pages import render_page
from likelier.pages.excerpts import excerpt
from likelier.pages.texts import choose_language, in_language, text
from likelier.pages.token_map import steps_of, token_map
from likelier.reference.cache import (
    NoReference,
    StoredReference,
    completion_key,
    load_reference,
)
from likelier.report.read import (
    PAIR_TOKENS,
    RunFiles,
    configured_language,
    read_run,
    section,
)

NAMED = {"best": "largest", "worst": "smallest", "most-changed": "most_changed"}
ALL_TOKENS = 1_000_000  # of a side: nothing is left out
LONGEST_PROMPT = 4000  # characters of it on the page


def explain_pair(
    run: Path,
    pair: str,
    html: Path | None,
    as_json: bool,
    no_color: bool = False,
    lang: str | None = None,
) -> None:
    """Explain one pair of a run: in the terminal, or as JSON, or as a page where ``html`` says so.

    ``lang`` is the language; None is that of the run's config, or what `choose_language` finds.

    Raises InputMissing where there is no such run, pair, model or data, ConfigError where model or
    data were in memory and the run kept no tokens of this pair, and what loading raises.
    """
    if html is not None:
        must_be_apart(html, f"--html {html}", [run])
    if no_color and (html is not None or as_json):
        what = "has no effect together with --html or --json"
        raise ConfigError(what, where="--no-color", hint="leave it out")
    files = read_run(run)
    with in_language(choose_language(lang, configured_language(files.path))):
        row = _row(files, pair)
        shown = token_map(row)
        assert shown is not None  # made here, or looked at
        notes = [text(f"explain.notes.{name}") for name in row["notes"]]
        steps = steps_of(row)
        if html is not None:
            page = render_page(
                "explain.html", ["page.css", "tokens.css"], map=shown, steps=steps, notes=notes,
                where=_where(row), prompt=row["prompt"] and excerpt(row["prompt"], LONGEST_PROMPT),
            )  # fmt: skip
            write_text(html, page)
            say(f"page: {html}")
        if as_json:
            print(json.dumps(row, ensure_ascii=False))
        elif html is None:
            print_map(shown, row, steps, [_where(row), *notes], no_color)


def _row(files: RunFiles, pair: str) -> dict[str, Any]:
    """The pair token by token, with where it stands and what is to be noted of it."""
    run, asked = files.path, section(files.record, "asked")
    pair = _named(files, pair) if pair in NAMED else harmless(pair)
    given = [section(asked, "model").get("path")]
    given += [section(asked, "data").get(side) for side in ("train", "eval")]
    if IN_MEMORY in given:
        return _kept(run, pair) | {"run": str(run)}
    trained = trained_by(run)
    loss = bind(live(trained.config)["loss"], seed=trained.config.train.seed)
    if section(files.record, "inputs").get("loss") != loss.name:  # a Python function
        return _kept(run, pair) | {"run": str(run)}
    loss.state.update(section(files.record, "figures"))
    return _computed(trained, files.record, loss, pair) | {"run": str(run)}


def _where(row: Mapping[str, Any]) -> str:
    """Where the pair stands in the run, in words."""
    if row["held_out"] is None:
        return text("explain.where", run=row["run"])
    key = "held_out" if row["held_out"] else "trained"
    return text(f"explain.where_{key}", run=row["run"])


def _named(files: RunFiles, name: str) -> str:
    """The place of a pair that is asked for by its kind."""
    log = files.pair_log
    rows = getattr(log, NAMED[name]) if log else ()
    if not rows:
        what = f"its pair log names no {name} pair"
        raise InputMissing(what, where=f"--pair {name}", hint="give a row: its number, FILE:NUMBER")
    return str(rows[0]["source"])


def _kept(run: Path, pair: str) -> dict[str, Any]:
    """A pair of which the run kept the tokens: all that is left of one that was in memory."""
    rows = read_lines(run / PAIR_TOKENS)
    found = next((row for row in rows if is_at(str(row.get("source")), pair)), None)
    if found is None or token_map(found) is None:
        known = ", ".join(str(row.get("source")) for row in rows[:4])
        what = f"this run had model, data or loss in memory, and kept no tokens of {pair}"
        hint = f"it kept those of {known}, …" if known else "train it from files"
        raise ConfigError(what, where=str(run), hint=hint)
    return {**found, "held_out": None, "prompt": None, "notes": ["kept"]}


def _computed(
    trained: Trained, record: dict[str, Any], loss: BoundLoss, pair: str
) -> dict[str, Any]:
    """A pair of the run's data, scored by what was trained."""
    config = trained.config
    template, today = config.data.template, config.data.today
    encoder = load_encoder(str(trained.weights), None, template, today)
    data = load_data(config.data, encoder, config.loss, config.train.seed)
    found, held_out = _found(data, pair)
    notes = []
    if section(record, "inputs").get("data") != content_hash(data.pairs):
        notes.append("other_data")
    (side,) = open_sides(str(trained.folder), config, template, "tuned")
    reference = _reference(trained, loss, side.policy, found)
    (scored,) = scored_pairs(side.policy, [found], loss, reference)
    (row,) = pair_rows([scored], loss, side.encoder, ALL_TOKENS)
    if row["objective"]["needs_whole_step"]:
        notes.append("whole_step")
    if loss.held_out is not None:
        notes.append("own_beta")
    if config.reference.update_every is not None:
        notes.append("moved")
    prompt = in_child(decode, side.encoder.tokenizer, found.prompt)
    return {**row, "held_out": held_out, "prompt": prompt, "notes": notes}


def _found(data: Dataset, pair: str) -> tuple[TokenPair, bool]:
    """The pair of a place, and whether it was held out."""
    found = [
        (number, held_out)
        for held_out, pairs in ((False, data.train), (True, data.eval))
        for number, one in enumerate(getattr(pairs, "places", None) or [p.source for p in pairs])
        if is_at(one, pair)
    ]
    if not found:
        hint = "rows count from 1 in their file; one that could not be used shows `likelier show`"
        raise InputMissing(f"no pair of this run stands there: {pair}", where="--pair", hint=hint)
    pairs = [(data.eval if held_out else data.train)[number] for number, held_out in found]
    if len(found) > 1:
        places = ", ".join(one.source for one in pairs[:3])
        what = f"{pair} names {len(found)} pairs: {places}"
        raise ConfigError(what, where="--pair", hint="give one of them with its file")
    return pairs[0], found[0][1]


def _reference(
    trained: Trained, loss: BoundLoss, policy: Policy, pair: TokenPair
) -> StoredReference | NoReference:
    """The reference log-probs of a pair: those that the run kept, else computed again."""
    if not loss.needs("reference"):
        return NoReference()
    sequences = completions_of(pair)
    kept = load_reference(trained.folder / "reference.safetensors")
    if kept is not None and all(completion_key(one) in kept.values for one in sequences):
        return kept
    say("the run's reference.safetensors lacks this pair: its reference is computed again")
    config, other = trained.config, trained.config.reference.path
    if other is not None:
        as_it_is = {"path": other, "revision": None, "quantise": "none"}
        model = config.model.model_copy(update=as_it_is)
        config = config.model_copy(update={"model": model})
    continued = (Path(config.model.path).expanduser() / "adapter_config.json").is_file()
    with initial_again(policy, config, trained.is_adapter and not (other or continued)) as first:
        if first is None:
            raise InputMissing("what the run began with was in memory only", where="model.path")
        logps = dict(score_sequences(first, sequences))
    values = {completion_key(one): logps[i] for i, one in enumerate(sequences)}
    return StoredReference("computed", values)
