"""`likelier eval`: held-out figures of a model, or of base and tuned, with paired differences."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from likelier.base.errors import ConfigError
from likelier.base.files import must_be_apart, write_lines
from likelier.base.foreign import visible
from likelier.base.model_files import base_of_adapter, in_one_line, place_of
from likelier.base.terminal import console, say
from likelier.batching.batch import completions_of
from likelier.commands.judge import (
    Answered,
    Contest,
    JudgeOptions,
    answered_by,
    check_judging,
    judged,
    prepared,
    prompts_to_judge,
    show_judged,
)
from likelier.commands.score import logps_of, pairs_to_score
from likelier.config import Config
from likelier.data.load import read_pairs
from likelier.data.records import Pair, TokenPair
from likelier.data.shapes import format_with
from likelier.evaluation.compare import trained_prompts
from likelier.evaluation.held_out import (
    PERCENTILES,
    PairLogps,
    columns_of,
    differences,
    figures_of,
    longer_wins,
    percentiles,
)
from likelier.evaluation.judges.endpoint import Budget
from likelier.generation.sides import ModelSide, ask_in_turn, run_config, template_of
from likelier.training.pair_log import prompt_name

_ABOVE_LENGTH = "reward_accuracy_above_longer_wins"
_NAMES = {  # in the order of the rows
    "ranking_accuracy": "ranking accuracy, summed",
    "ranking_accuracy_per_token": "ranking accuracy, per token",
    "reward_accuracy": "reward accuracy",
    "margin": "log-ratio margin (nats)",
    "chosen_drift": "chosen drift (nats a token)",
    "rejected_drift": "rejected drift (nats a token)",
    **{
        f"{accuracy}_accuracy_{which}": f"{accuracy} accuracy, {words}"
        for accuracy in ("ranking", "reward")
        for which, words in (
            ("chosen_longer", "chosen longer"),
            ("rejected_longer", "rejected longer"),
            ("same_length", "same length"),
        )
    },
    "longer_wins": 'accuracy of "the longer one wins"',
    _ABOVE_LENGTH: 'reward accuracy above "the longer one wins"',
}


class Evaluated(NamedTuple):
    """What was found of pairs: ``logps`` of each model by its name, base and tuned first.

    ``prompts`` tells the prompt of each pair.
    """

    pairs: Sequence[Pair]
    prompts: Sequence[str]
    logps: Mapping[str, PairLogps]


def evaluate(
    target: str,
    data: Path,
    also: Sequence[str],
    out: Path | None,
    as_json: bool,
    columns: Mapping[str, str | None],
    chat: bool,
    template: Mapping[str, Any],
    options: JudgeOptions,
) -> None:
    """Print held-out figures of a model, or of base and tuned, on the pairs of ``data``.

    ``also`` are further models. ``out`` gets one row a pair, and is replaced whole. By ``options``
    two models answer the prompts, and judges say which answers are better.

    Raises DataError where a row cannot be used, before any model is loaded where it can be seen
    then, and what loading, answering and judging raise.
    """
    if out is not None:
        must_be_apart(out, f"--out {out}", [data, target, *also])
    if len({target, *also}) <= len(also):
        raise ConfigError("names a model twice", where="--also", hint="name each once")
    check_judging(options, [data, target, *also], out)
    config = run_config(target)
    if options.judges and config is None and len(also) != 1:
        _must_have_two_sides(target)
    pairs = read_pairs(
        data, format_with(columns, chat or (config is not None and config.data.chat))
    )
    template = template_of(config, template)
    budget = Budget(options.cap)
    judges = prepared(options, budget)
    asked = prompts_to_judge(pairs, options) if judges else []
    words = {"template": template, "data": str(data)}

    def answer(side: ModelSide) -> Answered | None:
        return answered_by(side, asked, options, words) if asked else None

    found, answers = _scored(target, config, template, also, pairs, answer)
    figures, rows = figures_to_show(found), _rows(found)
    if judges:
        ours, theirs = ("tuned", "base") if "base" in answers else list(answers)[:2]
        contest = Contest((ours, theirs), asked, answers[ours], answers[theirs])
        figures["judged"], of_prompts = judged(contest, judges, options, budget)
        by_source = {row.pop("source"): row for row in of_prompts}
        rows = [row | by_source.get(row["source"], {}) for row in rows]
    if out is not None:
        write_lines(out, rows)
        say(f"{len(pairs)} rows in {out}")
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    _show(figures)
    if judges:
        show_judged(figures["judged"])


def _must_have_two_sides(target: str) -> None:
    """Raise ConfigError where a judge would have one model's answers only."""
    where = place_of(target)
    with in_one_line(where):
        if base_of_adapter(where, None) is not None:
            return
    what = f"{target} is one model, and a judge compares the answers of two"
    raise ConfigError(what, where="--judge", hint="give a run or an adapter, or one --also MODEL")


def _say_what_was_trained_on(run: Path, pairs: Sequence[TokenPair]) -> None:
    seen, asked = trained_prompts(run.expanduser()), {prompt_name(pair.prompt) for pair in pairs}
    if both := len(seen & asked):
        what = f"{both} of {len(asked)} prompts were trained on"
        say(f"{what}: figures of them say little about prompts that are new")


def _scored(
    target: str,
    config: Config | None,
    template: Mapping[str, Any],
    also: Sequence[str],
    pairs: Sequence[Pair],
    answer: Callable[[ModelSide], Answered | None],
) -> tuple[Evaluated, dict[str, Answered]]:
    """The log-probs of all models, one model in memory at a time, and the answers of two."""

    def ask(side: ModelSide) -> tuple[PairLogps, Answered | None]:
        encoder = side.encoder
        if config is not None:  # as the run was trained
            data = config.data
            encoder = replace(encoder, boundary=data.boundary, turns=data.turns)
        tokens = pairs_to_score(side.policy, encoder, pairs)
        if side.name == "tuned" and config is not None:
            _say_what_was_trained_on(Path(target), tokens)
        say(f"scoring {len(pairs)} pairs by {side.name}")
        scored = logps_of(side.policy, tokens, side.name == "base" and side.policy.has_adapter)
        both = [completions_of(pair) for pair in tokens]
        logps = [[scored.completion_logp(one) for one in two] for two in both]
        counts = [[one.num_scored for one in two] for two in both]
        return PairLogps(*np.array(logps).T, *np.array(counts).T), (
            answer(side) if len(answers) < 2 else None
        )

    logps: dict[str, PairLogps] = {}
    answers: dict[str, Answered] = {}

    def keep(name: str, said: tuple[PairLogps, Answered | None]) -> None:
        name = name if name not in logps else f"--also {name}"
        logps[name] = said[0]
        if said[1] is not None:
            answers[name] = said[1]

    for name, said in ask_in_turn(target, config, template, ask).items():
        keep(name, said)
    for path in also:
        (said,) = ask_in_turn(path, run_config(path), template, ask, ("tuned",)).values()
        keep(path, said)
    prompts = [json.dumps([pair.prompt, pair.tools], sort_keys=True) for pair in pairs]
    return Evaluated(pairs, prompts, logps), answers


# ---- figures -----------------------------------------------------------------------------------


def figures_to_show(found: Evaluated) -> dict[str, Any]:
    """All figures, as the JSON object that is printed."""
    base = found.logps.get("base")
    columns: dict[str, dict[str, np.ndarray]] = {}
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for name, logps in found.logps.items():
        is_beside = base is not None and logps.reads_as(base)
        if base is not None and not is_beside:
            say(f"{name} cuts texts into other tokens than base: no rewards are compared")
        columns[name] = columns_of(logps, base if is_beside else None)
        own = columns_of(logps, None) if name == "base" else columns[name]
        models[name] = {key: asdict(one) for key, one in figures_of(own, found.prompts).items()}
        if "margin" in own:
            models[name]["margin"] |= percentiles(own["margin"])
    length = {"accuracy": longer_wins(next(iter(found.logps.values())))}
    return {
        "pairs": len(found.pairs),
        "prompts": len(set(found.prompts)),
        "models": models,
        "longer_wins": asdict(figures_of(length, found.prompts)["accuracy"]),
        "differences": [
            {
                "of": name,
                "less": less,
                "figures": {
                    key: {**asdict(one), "distinguishable": one.is_clear}
                    for key, one in figures_of(apart, found.prompts, least=-1.0).items()
                },
            }
            for name, less, apart in _differences(columns, length["accuracy"])
        ],
    }


def _differences(
    columns: Mapping[str, Mapping[str, np.ndarray]], length_P: np.ndarray
) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Every model less base, every other less tuned, and rewards less what length alone gives."""
    names = list(columns)
    for less in names[:2] if "base" in columns else names[:1]:
        for name in names[names.index(less) + 1 :]:
            apart = differences(columns[name], columns[less])
            if less == "base" and "reward_accuracy" in apart:
                apart[_ABOVE_LENGTH] = columns[name]["reward_accuracy"] - length_P
            yield name, less, apart


def _rows(found: Evaluated) -> list[dict[str, Any]]:
    """One row a pair: where it stands, and what every model says of it."""
    base = found.logps.get("base")
    rows = []
    for at, pair in enumerate(found.pairs):
        models = {}
        for name, logps in found.logps.items():
            models[name] = {
                "chosen_logp": float(logps.chosen_P[at]),
                "rejected_logp": float(logps.rejected_P[at]),
                "chosen_tokens": int(logps.chosen_tokens_P[at]),
                "rejected_tokens": int(logps.rejected_tokens_P[at]),
            }
            if base is not None and name != "base" and logps.reads_as(base):
                models[name]["margin"] = float(columns_of(logps, base)["margin"][at])
        rows.append({"source": pair.source, "models": models})
    return rows


# ---- the terminal ------------------------------------------------------------------------------


def _show(figures: Mapping[str, Any]) -> None:
    """Tables of the figures of every model, and of all differences."""
    terminal = console()
    models = figures["models"]
    counted = f"{figures['pairs']} pairs ({figures['prompts']} prompts)"
    title = f"{counted}, 95 % intervals by prompts"
    table = Table("", *map(visible, models), title=title, title_justify="left")
    for key, words in _NAMES.items():
        if any(key in model for model in models.values()):
            cells = (_in_words(key, model.get(key)) for model in models.values())
            table.add_row(words, *cells)
    baseline = _in_words("accuracy", figures["longer_wins"])
    table.add_row(_NAMES["longer_wins"], *[baseline] * len(models))
    terminal.print(table)
    for name, model in models.items():
        if margin := model.get("margin"):
            spread = ", ".join(f"p{at} {margin[f'p{at}']:+.3f}" for at in PERCENTILES)
            terminal.print(visible(f"margins of {name}, nats: {spread}"))
    wide = max(map(len, _NAMES.values()))
    for one in figures["differences"]:
        terminal.print(visible(f"\n{one['of']} less {one['less']}, pair by pair", keep="\n"))
        for key, words in _NAMES.items():
            if figure := one["figures"].get(key):
                verdict = f"not distinguishable on these {counted}"
                if figure["distinguishable"]:
                    verdict = "higher" if figure["mean"] > 0 else "lower"
                line = f"{words:<{wide}}  {_in_words(key, figure, signed=True):<27}  {verdict}"
                terminal.print(line, soft_wrap=True)


def _in_words(key: str, figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    if figure is None:
        return ""
    is_share = "accuracy" in key
    form = ("+" if signed or not is_share else "") + (".1f" if is_share else ".3f")
    values = [figure[name] * (100 if is_share else 1) for name in ("mean", "low", "high")]
    mean, low, high = (f"{value:{form}}" for value in values)
    return f"{mean}{' %' if is_share else ''} ({low} to {high})"
