"""Whether an artefact is the model that was trained: what both say of the same held-out pairs.

The measure is what training changed. An artefact whose log-probs are off by more than a tenth of
that has lost a part of it: to rounding, to a scale, to weights that were left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from likelier.batching.batch import Scored, completions_of
from likelier.data.records import TokenPair, common_length
from likelier.evaluation.intervals import mean_of_clusters, wilson
from likelier.export.artefact import Artefact, Prompt
from likelier.generation.sample import Sample
from likelier.model.policy import Policy
from likelier.model.running import without_dropout

MOST_LOST = 0.1  # of what training changed, on average
ROUNDING = 1e-5  # nats a token: where training changed next to nothing
MOST_TURNED = 0.05  # of the pairs, for certain: what rounding turns are pairs of no margin
CLOSE = 0.1  # nats that a token may lie below the one that the trained model likes best
MOST_ANSWERS, MOST_NEW_TOKENS = 4, 48


@dataclass(frozen=True)
class Questions:
    """What is asked of both: ``pairs``, their ``prompts`` as they were read (None: not known), and
    the token that ends the trained model's answers."""

    pairs: Sequence[TokenPair]
    prompts: Sequence[Prompt | None]
    stop: int


@dataclass(frozen=True)
class Replies:
    """What a model said; None is what it could not be asked.

    ``logps`` are those of the scored tokens of every completion, in nats.
    """

    kind: str
    logps: Mapping[Scored, np.ndarray] | None
    prompt_ids: Sequence[tuple[int, ...] | None] | None
    ends: bool | None
    answers: Sequence[Sample] | None


@dataclass(frozen=True)
class Compared:
    """One comparison: whether the artefact is the same there, in a sentence, and its figures."""

    name: str
    state: Literal["same", "differs", "unknown"]
    says: str
    figures: Mapping[str, Any]


def ask(artefact: Artefact, questions: Questions) -> Replies:
    """Ask a model all that it can be asked."""
    logps = prompt_ids = ends = answers = None
    if artefact.logps is not None:
        wanted = _affordable(questions.pairs, artefact.most_tokens)
        sequences = list(dict.fromkeys(one for pair in wanted for one in completions_of(pair)))
        logps = dict(zip(sequences, artefact.logps(sequences), strict=True))
    if artefact.prompt_ids is not None:
        known = iter(artefact.prompt_ids([one for one in questions.prompts if one is not None]))
        prompt_ids = [None if prompt is None else next(known) for prompt in questions.prompts]
    if artefact.ends_at is not None:
        ends = artefact.ends_at(questions.stop)
    if artefact.answers is not None:
        as_read = {p.prompt: one for p, one in zip(questions.pairs, questions.prompts, strict=True)}
        ids, prompts = list(as_read)[:MOST_ANSWERS], list(as_read.values())[:MOST_ANSWERS]
        answers = artefact.answers(prompts, ids, MOST_NEW_TOKENS)
    return Replies(artefact.kind, logps, prompt_ids, ends, answers)


def _affordable(pairs: Sequence[TokenPair], most: int | None) -> Sequence[TokenPair]:
    """The first pairs of so many scored tokens, and at least one."""
    sizes = np.cumsum([sum(one.num_scored for one in completions_of(pair)) for pair in pairs])
    return pairs if most is None else pairs[: max(1, int((sizes <= most).sum()))]


def compare(
    said: Replies,
    trained: Replies,
    initial: Replies,
    questions: Questions,
    gaps: Sequence[float] | None,
) -> list[Compared]:
    """Every comparison of an artefact with the trained model, those that differ first.

    ``gaps`` are those of the artefact's answers, see `gap_of`.
    """
    found = [
        *_compare_logps(said, trained, initial, questions.pairs),
        _compare_prompts(said, trained),
        _compare_end(said, questions.stop),
        _compare_answers(said, trained, gaps),
    ]
    return sorted(found, key=lambda one: ("differs", "same", "unknown").index(one.state))


def _unknown(name: str, why: str) -> Compared:
    return Compared(name, "unknown", f"not compared: {why}", {})


def _compare_logps(
    said: Replies, trained: Replies, initial: Replies, pairs: Sequence[TokenPair]
) -> list[Compared]:
    if said.logps is None:
        return [_unknown("log-probs", "it gives no log-probs of a text")]
    assert trained.logps is not None and initial.logps is not None
    theirs, ours, before = said.logps, trained.logps, initial.logps
    pairs = [pair for pair in pairs if all(one in theirs for one in completions_of(pair))]
    prompt_of = {one: pair.prompt for pair in pairs for one in completions_of(pair)}
    clusters = [prompt for one, prompt in prompt_of.items() for _ in range(one.num_scored)]
    off = np.concatenate([np.abs(theirs[one] - ours[one]) for one in prompt_of])
    moved = np.concatenate([np.abs(ours[one] - before[one]) for one in prompt_of])
    mean, low, high = mean_of_clusters(off, clusters)
    changed, *changed_interval = mean_of_clusters(moved, clusters)
    same = mean <= max(MOST_LOST * changed, ROUNDING)  # False for NaN, too
    share = f", of which {mean / changed:.0%} is lost" if changed and not same else ""
    logps = Compared(
        "log-probs",
        "same" if same else "differs",
        f"{mean:.2g} nats a token off on average ({low:.2g} to {high:.2g}), {off.max():.2g} at "
        f"most, on {len(off)} tokens of {len(pairs)} pairs; training changed {changed:.2g}{share}",
        {"pairs": len(pairs), "tokens": len(off), "mean": mean, "low": low, "high": high,
         "largest": float(off.max()), "changed": changed, "changed_interval": changed_interval},
    )  # fmt: skip
    return [logps, _compare_order(theirs, ours, pairs)]


def _compare_order(
    theirs: Mapping[Scored, np.ndarray],
    ours: Mapping[Scored, np.ndarray],
    pairs: Sequence[TokenPair],
) -> Compared:
    def prefers(logps: Mapping[Scored, np.ndarray], pair: TokenPair) -> bool:
        chosen, rejected = (float(logps[one].sum()) for one in completions_of(pair))
        return chosen > rejected

    pairs = [pair for pair in pairs if pair.label is None]
    if not pairs:
        return _unknown("order", "the data are no pairs")
    turned = sum(prefers(ours, pair) != prefers(theirs, pair) for pair in pairs)
    low, high = wilson(turned / len(pairs), len(pairs))
    return Compared(
        "order",
        "differs" if low > MOST_TURNED else "same",
        f"{turned} of {len(pairs)} pairs prefer the other answer ({low:.0%} to {high:.0%})",
        {"pairs": len(pairs), "turned": turned, "low": low, "high": high},
    )


def _compare_prompts(said: Replies, trained: Replies) -> Compared:
    if said.prompt_ids is None:
        return _unknown("prompts", "it does not show how it writes a prompt")
    assert trained.prompt_ids is not None
    both = zip(said.prompt_ids, trained.prompt_ids, strict=True)
    known = [(theirs, ours) for theirs, ours in both if theirs is not None and ours is not None]
    if not known:
        return _unknown("prompts", "the prompts as they were read are not known")
    other = [(theirs, ours) for theirs, ours in known if theirs != ours]
    says = f"{len(known) - len(other)} of {len(known)} prompts have the same token ids"
    if other:
        theirs, ours = other[0]
        at = common_length(theirs, ours)
        says += f"; from token {at + 1} of one on {_few(ours[at:])} became {_few(theirs[at:])}"
    figures = {"prompts": len(known), "other": len(other)}
    return Compared("prompts", "differs" if other else "same", says, figures)


def _few(ids: Sequence[int]) -> str:
    shown = " ".join(map(str, ids[:6])) or "nothing"
    return f"{shown} …" if len(ids) > 6 else shown


def _compare_end(said: Replies, stop: int) -> Compared:
    if said.ends is None:
        return _unknown("end", "it does not show what ends its answers")
    does = "ends its answers" if said.ends else "does not end its answers"
    state: Literal["same", "differs"] = "same" if said.ends else "differs"
    return Compared("end", state, f"token {stop}, the end of an answer, {does}", {"stop": stop})


def _compare_answers(said: Replies, trained: Replies, gaps: Sequence[float] | None) -> Compared:
    """Greedy answers side by side. They decide where nothing else tells the models apart: the
    rounding of a quantised artefact may well lead to another word.
    """
    if said.answers is None or gaps is None:
        return _unknown("answers", "it gives none")
    assert trained.answers is not None
    pairs = list(zip(said.answers, trained.answers, gaps, strict=True))
    rows = [{"trained": ours.text, "here": here.text, "gap": gap} for here, ours, gap in pairs]
    equal = sum(here.text == ours.text and here.stopped == ours.stopped for here, ours, _ in pairs)
    far = sum(not gap <= CLOSE for gap in gaps)
    says = f"{equal} of {len(rows)} greedy answers are the same"
    if far:
        says += f"; {far} hold a token {max(gaps):.2g} nats below the best of the trained model"
    state: Literal["same", "differs"] = "differs" if far and said.logps is None else "same"
    return Compared("answers", state, says, {"answers": rows, "far": far})


def gaps_of(
    said: Replies, trained: Replies, policy: Policy, questions: Questions
) -> list[float] | None:
    """For each of an artefact's answers, by how much its worst token lies below the one that the
    trained model likes best there, in nats; 0 where both said the same.
    """
    if said.answers is None or trained.answers is None:
        return None
    prompts = list(dict.fromkeys(pair.prompt for pair in questions.pairs))
    gaps = []
    for here, ours, prompt in zip(said.answers, trained.answers, prompts, strict=False):
        if here.text == ours.text and here.stopped == ours.stopped:
            gaps.append(0.0)
            continue
        ids = here.tokens
        if not ids:
            ids = tuple(policy.tokenizer(here.text, add_special_tokens=False)["input_ids"])
            ids = ids if here.stopped else ids[:-1]  # the limit may have cut a text's last token
        if here.stopped and ids[-1:] != (questions.stop,):
            ids = (*ids, questions.stop)
        gaps.append(_largest_gap(policy, prompt, ids) if ids else 0.0)
    return gaps


@torch.no_grad()
def _largest_gap(policy: Policy, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    inputs_1L = torch.tensor([prompt + ids], device=policy.device)
    with without_dropout(policy.model):
        logits_LV = policy.causal_lm(inputs_1L).logits[0, len(prompt) - 1 : -1].double()
    said_L = logits_LV.gather(1, torch.tensor(ids, device=logits_LV.device)[:, None])[:, 0]
    return float((logits_LV.max(1).values - said_L).max())
