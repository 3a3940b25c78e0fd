"""`likelier eval --judge`: which of two models answers better, by one judge or two."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from likelier.base.errors import ConfigError, InputMissing, Interrupted
from likelier.base.files import cache_dir, must_be_apart, read_lines
from likelier.base.foreign import visible
from likelier.base.terminal import console, say
from likelier.commands.sample import Draws, answer_prompts
from likelier.data.records import Pair, PromptRow
from likelier.evaluation.held_out import FEWEST_PROMPTS, figures_of
from likelier.evaluation.judges.endpoint import KEY_VARIABLE, Budget, Endpoint, Patience, Price
from likelier.evaluation.judges.judge import (
    Judge,
    ask_all,
    endpoint_judge,
    is_rule,
    reward_judge,
    rule_judge,
    spent_on,
)
from likelier.evaluation.judges.verdicts import JudgeQuestion, JudgeVerdict, open_verdicts
from likelier.evaluation.judges.win_rate import agreement, length_controlled, outcome_of
from likelier.generation.sides import ModelSide

DEFAULT_PROMPTS, DEFAULT_NEW_TOKENS = 200, 512
MOST_REPLY_TOKENS = 1024  # of a verdict: models that reason think before they reply


@dataclass(frozen=True)
class JudgeOptions:
    """The words of the command; None and empty where they were not given."""

    judges: Sequence[str] = ()
    samples: int | None = None
    max_new_tokens: int | None = None
    models: Sequence[str] = ()
    prices: Sequence[str] = ()
    cap: float | None = None
    timeout: float | None = None
    verdicts: Path | None = None

    @property
    def endpoints(self) -> list[str]:
        """Those of the judges that are addresses."""
        return [name for name in self.judges if name.startswith(("http://", "https://"))]


class Answered(NamedTuple):
    """A side's greedy answers to the prompts, and how many were cut off by the limit."""

    answers: Sequence[str]
    cut: int


def check_judging(options: JudgeOptions, inputs: Sequence[str | Path], out: Path | None) -> None:
    """Refuse options that contradict each other, or would have no effect.

    Raises ConfigError that names the option, OutputError for a file that is read or written.
    """
    for_endpoints = {
        "--judge-model": options.models, "--judge-price": options.prices,
        "--judge-cost-cap": options.cap, "--judge-timeout": options.timeout,
    }  # fmt: skip
    for_any = {"--samples": options.samples, "--max-new-tokens": options.max_new_tokens,
               "--verdicts": options.verdicts}  # fmt: skip
    if not options.judges:
        for name, value in {**for_any, **for_endpoints}.items():
            if value not in (None, [], ()):
                raise ConfigError("has no effect without --judge", where=name, hint="leave it out")
        return
    if len(options.judges) > 2 or len(set(options.judges)) < len(options.judges):
        what = "is given more than twice" if len(options.judges) > 2 else "names a judge twice"
        raise ConfigError(what, where="--judge", hint="name one judge, or two that differ")
    number = len(options.endpoints)
    for name, value in for_endpoints.items():
        if value not in (None, [], ()) and not number:
            what = "has no effect: no judge is an address"
            raise ConfigError(what, where=name, hint="leave it out")
    for name, words in (("--judge-model", options.models), ("--judge-price", options.prices)):
        if words and len(words) != number:
            what = f"is given {len(words)} times for {number} addresses"
            raise ConfigError(what, where=name, hint="give it once for each, in the same order")
    if options.cap is not None and not options.prices:
        what, hint = "needs to know what tokens cost", "add --judge-price IN,OUT"
        raise ConfigError(what, where="--judge-cost-cap", hint=hint)
    if options.verdicts is not None:
        where = f"--verdicts {options.verdicts}"
        must_be_apart(options.verdicts, where, [*inputs, out])


def prepared(options: JudgeOptions, budget: Budget) -> list[Callable[[ExitStack], Judge]]:
    """What opens each judge. Addresses are asked and rules are read now, before any model answers;
    reward models are loaded when the models that answered are gone.
    """
    places = {name: at for at, name in enumerate(options.endpoints)}

    def of(name: str) -> Callable[[ExitStack], Judge]:
        if name in places:
            endpoint = _endpoint(name, places[name], options, budget)

            def opened_endpoint(stack: ExitStack) -> Judge:
                stack.callback(endpoint.close)
                return endpoint_judge(endpoint)

            return opened_endpoint
        if is_rule(name):
            rule = rule_judge(name)
            return lambda stack: rule
        if not Path(name).expanduser().is_dir():
            what = "is no address, no folder of a reward model, and no file.py:function"
            raise InputMissing(what, where=f"--judge {name}", hint="correct the name")

        def loaded(stack: ExitStack) -> Judge:
            say(f"loading the judge {name}")
            return reward_judge(name)

        return loaded

    return [of(name) for name in options.judges]


def _endpoint(name: str, at: int, options: JudgeOptions, budget: Budget) -> Endpoint:
    address = name.partition("://")[2]
    if "@" in address.partition("/")[0] or "?" in address:
        what, hint = "the address holds more than a place", f"put the key into ${KEY_VARIABLE}"
        raise ConfigError(what, where="--judge", hint=hint)
    # A key is for one owner: the second judge has a variable of its own.
    variable = KEY_VARIABLE if at == 0 else KEY_VARIABLE.replace("JUDGE", f"JUDGE{at + 1}")
    price = _price(options.prices[at]) if options.prices else Price()
    patience = Patience(timeout=options.timeout or Patience().timeout)
    model = options.models[at] if options.models else None
    key = os.environ.get(variable) or None
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("holds a character that no key has", where=variable, hint="set it again")
    return Endpoint(name, model, key, price, budget, patience, MOST_REPLY_TOKENS)


def _price(word: str) -> Price:
    try:
        both = [float(part) for part in word.split(",")]
        if len(both) == 2 and all(0 <= one < 1e6 for one in both):
            return Price(*both)
    except ValueError:
        pass
    what, hint = f"{word!r} is not IN,OUT", "dollars for a million tokens, such as 0.15,0.60"
    raise ConfigError(what, where="--judge-price", hint=hint)


def prompts_to_judge(pairs: Sequence[Pair], options: JudgeOptions) -> list[PromptRow]:
    """The first different prompts of the pairs, as many as are asked for."""
    different: dict[str, PromptRow] = {}
    for pair in pairs:
        different.setdefault(repr((pair.prompt, pair.tools)),
                             PromptRow(pair.source, pair.prompt, pair.tools))  # fmt: skip
    found = list(different.values())
    most = options.samples or DEFAULT_PROMPTS
    if len(found) > most:
        say(f"the first {most} of {len(found)} prompts are answered and judged (--samples)")
    return found[:most]


def answered_by(
    side: ModelSide, prompts: Sequence[PromptRow], options: JudgeOptions, words: Mapping[str, Any]
) -> Answered:
    """A side's greedy answers, which are kept: a command begun again finds them."""
    say(f"answering {len(prompts)} prompts by {side.name}, greedy")
    tokens = options.max_new_tokens or DEFAULT_NEW_TOKENS
    rows = read_lines(answer_prompts(side, prompts, Draws(1, 0.0, tokens, 0, None), words))
    cut = sum(not row["stopped"] for row in rows)
    return Answered([row["answer"] for row in rows], cut)


# ---- asking and counting -----------------------------------------------------------------------


class Contest(NamedTuple):
    """Two models' answers to prompts; ``names`` are (ours, theirs)."""

    names: tuple[str, str]
    prompts: Sequence[PromptRow]
    ours: Answered
    theirs: Answered


def judged(
    contest: Contest,
    judges: Sequence[Callable[[ExitStack], Judge]],
    options: JudgeOptions,
    budget: Budget,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask every judge; the figures, and a row a prompt with answers and verdicts.

    Raises Interrupted on Ctrl-C, and what judges raise.
    """
    both = zip(contest.prompts, contest.theirs.answers, contest.ours.answers, strict=True)
    questions = {
        at: JudgeQuestion(prompt.content, theirs, ours)
        for at, (prompt, theirs, ours) in enumerate(both)
        if theirs != ours  # equal answers are a tie, which nobody need be paid to say
    }
    figures: list[dict[str, Any]] = []
    outcomes: list[np.ndarray] = []
    rows: list[dict[str, Any]] = [
        {"source": one.source, "answers": dict(zip(contest.names, (ours, theirs), strict=True)),
         "verdicts": {}}
        for one, theirs, ours in zip(
            contest.prompts, contest.theirs.answers, contest.ours.answers, strict=True)
    ]  # fmt: skip
    for make in judges:
        with ExitStack() as stack:
            judge = make(stack)
            said = _asked(judge, list(questions.values()), options, budget)
        found = dict(zip(questions, said, strict=True))
        figure, outcome_N = _figures(contest, judge.name, found)
        figures.append(figure)
        outcomes.append(outcome_N)
        for at, row in enumerate(rows):
            row["verdicts"][judge.name] = _in_words(contest.names, found.get(at))
    all_of: dict[str, Any] = {
        "of": contest.names[0],
        "against": contest.names[1],
        "judges": figures,
    }
    if len(outcomes) == 2:
        all_of["agreement"] = asdict(agreement(outcomes[0].tolist(), outcomes[1].tolist()))
    return all_of, rows


def _asked(
    judge: Judge, questions: Sequence[JudgeQuestion], options: JudgeOptions, budget: Budget
) -> list[tuple[JudgeVerdict, JudgeVerdict]]:
    where = "the cache of verdicts"
    path = cache_dir() / "verdicts" / f"{JudgeQuestion('', '', '').key(judge.identity)[:32]}.jsonl"
    if options.verdicts is not None:
        path, where = options.verdicts, f"--verdicts {options.verdicts}"
    with open_verdicts(path, where) as file:
        budget.spent += spent_on(judge, questions, file)
        try:
            return ask_all(judge, questions, file)
        except KeyboardInterrupt as error:
            what, hint = "stopped", "the same command continues; verdicts so far are kept"
            raise Interrupted(what, where=str(path), hint=hint) from error


def _in_words(names: tuple[str, str], said: tuple[JudgeVerdict, JudgeVerdict] | None) -> Any:
    """Who was better, when theirs stood first and when ours did; None of equal answers."""
    if said is None:
        return None
    sides = ({"first": names[1], "second": names[0]}, {"first": names[0], "second": names[1]})
    both = zip(said, sides, strict=True)
    return [one.better and side.get(one.better, one.better) for one, side in both]


def _figures(
    contest: Contest, name: str, said: Mapping[int, tuple[JudgeVerdict, JudgeVerdict]]
) -> tuple[dict[str, Any], np.ndarray]:
    """All figures of a judge, and the outcome of every prompt."""
    outcomes = np.full(len(contest.prompts), 0.5)
    turned = 0
    for at, two in said.items():
        outcomes[at], same = outcome_of(*two)
        turned += not same
    kept = ~np.isnan(outcomes)
    verdicts = [one for two in said.values() for one in two]
    sides = [one.better for one in verdicts if one.better in ("first", "second")]
    counts = {"wins": 1.0, "ties": 0.5, "losses": 0.0}
    sides_of = dict(zip(contest.names, (contest.ours, contest.theirs), strict=True))
    lengths = {who: np.array([len(t) for t in one.answers]) for who, one in sides_of.items()}
    found: dict[str, Any] = {
        "judge": name,
        "prompts": len(outcomes),
        **{word: int((outcomes[kept] == value).sum()) for word, value in counts.items()},
        "no_verdict": int((~kept).sum()),
        "equal_answers": len(outcomes) - len(said),
        "order_inconsistent": turned,
        "first_preferred": sides.count("first") / len(sides) if sides else None,
        "mean_characters": {who: float(length.mean()) for who, length in lengths.items()},
        "cut_answers": dict(
            zip(contest.names, (contest.ours.cut, contest.theirs.cut), strict=True)
        ),
        "input_tokens": sum(one.input_tokens for one in verdicts),
        "output_tokens": sum(one.output_tokens for one in verdicts),
        "cost": sum(one.cost for one in verdicts),
        "win_rate": None,
        "length_controlled": None,
    }
    if kept.any():
        figure = figures_of({"accuracy": outcomes[kept]}, np.flatnonzero(kept).tolist())["accuracy"]
        found["win_rate"] = {"mean": figure.mean, "low": figure.low, "high": figure.high}
        ours, theirs = (length[kept] for length in lengths.values())
        controlled = length_controlled(outcomes[kept], ours, theirs)
        found["length_controlled"] = controlled and asdict(controlled)
    return found, outcomes


# ---- the terminal ------------------------------------------------------------------------------


def show_judged(found: Mapping[str, Any]) -> None:
    """Print what the judges said."""
    terminal = console()
    for figures in found["judges"]:
        for line in _lines(found, figures):
            terminal.print(visible(line), soft_wrap=True)
    if both := found.get("agreement"):
        line = f"\nboth judges agree on {_percent(*both['share'])} of {both['prompts']} prompts"
        if both["kappa"]:
            line += "; Cohen's kappa {:.2f} ({:.2f} to {:.2f})".format(*both["kappa"])
        terminal.print(line, soft_wrap=True)


def _lines(found: Mapping[str, Any], one: Mapping[str, Any]) -> Iterator[str]:
    ours, theirs = found["of"], found["against"]
    yield ""
    yield f"{ours} against {theirs}, by {one['judge']}, {one['prompts']} prompts in both orders"
    for key, words in (("win_rate", "win rate"), ("length_controlled", "length-controlled")):
        if rate := one[key]:
            judged_prompts = one["prompts"] - one["no_verdict"]
            clear = not rate["low"] <= 0.5 <= rate["high"] and judged_prompts >= FEWEST_PROMPTS
            verdict = (ours if rate["mean"] > 0.5 else theirs) + " is better"
            if not clear:
                verdict = f"not distinguishable from 50 % on these {judged_prompts} prompts"
            rates = _percent(rate["mean"], rate["low"], rate["high"])
            yield f"{words:<18} {rates:<24} {verdict}"
        elif key == "length_controlled":
            yield f"{words:<18} not fitted: too few prompts, or all outcomes are the same"
    yield (
        f"{one['wins']} wins, {one['ties']} ties, {one['losses']} losses; {one['no_verdict']} "
        f"without a verdict; {one['equal_answers']} equal answers, which are ties"
    )
    yield f"{one['order_inconsistent']} verdicts changed with the order, which makes them ties"
    if one["first_preferred"] is not None:
        yield f"the first answer was preferred in {one['first_preferred']:.0%} of verdicts"
    for who, cut in one["cut_answers"].items():
        ends = f", {cut} cut off at --max-new-tokens" if cut else ""
        yield f"answers of {who}: {one['mean_characters'][who]:.0f} characters on average{ends}"
    if one["input_tokens"] or one["cost"]:
        cost = f", ${one['cost']:.4f}" if one["cost"] else ""
        yield f"{one['input_tokens']} tokens read and {one['output_tokens']} written{cost}"


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
