"""A pair token by token as a page or a terminal shows it: levels of colour, numbers, sentences.

It reads rows of ``pair_tokens.jsonl``, which `likelier.evaluation.pair_tokens` makes; the macros
that write the result stand in ``templates/tokens.html``, and their colours in ``tokens.css``.
"""

from collections.abc import Iterator, Sequence
from math import exp
from typing import Any

from likelier.base.foreign import visible
from likelier.pages import script_language
from likelier.pages.texts import percent, short, signed, text

LEVELS = (0.02, 0.1, 0.3, 0.6)  # shares of the largest token: beyond each one colour is stronger
MOST_OF_IT = 0.5  # of all movement: a group of tokens with more of it carries the margin
CONCENTRATED = 2  # times its share of the tokens, or a group with most of the tokens would, too
NAMED_TOKENS = 3  # in a sentence
LARGEST_EXPONENT = 700.0  # of exp in float64
NAMES = ("chosen", "rejected", "completion")


def token_map(row: dict[str, Any], scale: float | None = None) -> dict[str, Any] | None:
    """A row as the macros of ``tokens.html`` want it; None where it is damaged.

    Colours are levels of a token's reward, `LEVELS` of ``scale``: the largest of the pair, unless
    several maps are to share one (`largest_reward`).
    """
    try:
        scale = scale or largest_reward([row])
        sides = [
            _side(name, row["sides"][name], row, scale) for name in NAMES if name in row["sides"]
        ]
        return {
            "source": visible(str(row["source"])),
            "tone": "warn" if row["is_tie"] else "good" if _is_right(row) else "bad",
            "paired": len(sides) > 1,
            "reads_reference": bool(row["reads_reference"]),
            "sentences": [*sentences(row)],
            "sides": sides,
            "legend": [
                {
                    "level": level,
                    "from": signed(scale * share, 3),
                    "below": signed(-scale * share, 3),
                }
                for level, share in enumerate(LEVELS, 1)
            ],
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _is_right(row: dict[str, Any]) -> bool:
    return bool(row["margin"] > 0) == (row["label"] is None or bool(row["label"]))


def largest_reward(rows: Sequence[dict[str, Any]]) -> float:
    """The largest reward of a token of these rows, without its sign; 1 where there is none."""
    units = (unit for row in rows for side in row["sides"].values() for unit in _units(side, row))
    return max((abs(one["reward"]) for one in units if one["scored"]), default=0.0) or 1.0


def _side(name: str, side: dict[str, Any], row: dict[str, Any], scale: float) -> dict[str, Any]:
    units = []
    for unit in _units(side, row):
        if unit["first"] == side["left_out_at"]:
            units.append({"gap": text("explain.left_out", n=side["left_out"])})
        units.append(_shown(unit, scale))
    policy, reference = side["logp"], side["reference_logp"]
    reward = row["beta"] * (policy - (reference or 0.0))
    return {
        "name": name,
        "title": text(f"explain.sides.{name}"),
        "counted": text("explain.tokens", n=side["tokens"]),
        "policy": signed(policy, 3),
        "reference": None if reference is None else signed(reference, 3),
        "reward": signed(reward, 3),
        "lang": script_language("".join(side["texts"])),
        "tokens": units,
    }


def _units(side: dict[str, Any], row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Tokens; those that only together make a character are one, with the sum of their numbers."""
    logps, weights = side["logps"], side.get("weights")
    references = side.get("reference_logps")
    shared, ends = set(side["shared"]), set(side["ends"])
    first = 0
    for at, piece in enumerate(side["texts"]):
        if piece == "" and at + 1 not in (side["left_out_at"], len(side["texts"])):
            continue
        places = range(first, at + 1)
        scored = [place for place in places if logps[place] is not None]
        policy = sum(logps[place] for place in scored)
        reference = sum(references[place] for place in scored) if references else None
        rewards = (
            row["beta"] * (weights[place] if weights else 1.0)
            * (logps[place] - (references[place] if references else 0.0))
            for place in scored
        )  # fmt: skip
        yield {
            "first": first,
            "text": str(piece),
            "tokens": len(places),
            "scored": bool(scored),
            "policy": policy,
            "reference": reference,
            "reward": sum(rewards),
            "shared": shared.issuperset(places),
            "end": at in ends,
        }
        first = at + 1


def _shown(unit: dict[str, Any], scale: float) -> dict[str, Any]:
    share = abs(unit["reward"]) / scale
    level = sum(share >= least for least in LEVELS) if unit["scored"] else 0
    return unit | {
        "gap": None,
        "level": level if unit["reward"] > 0 else -level,
        "shown": visible(unit["text"], keep="\n").replace("\n", "⏎\n") or "·",
        "cell": visible(unit["text"].replace("\n", "⏎").replace(" ", "␣")) or "·",
        "policy": signed(unit["policy"], 3) if unit["scored"] else "",
        "reference": ""
        if unit["reference"] is None or not unit["scored"]
        else signed(unit["reference"], 3),
        "reward": signed(unit["reward"], 3) if unit["scored"] else "",
    }


# ---- the loss in steps -----------------------------------------------------------------------


def steps_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """How the numbers of a pair become its loss: what each is called, and how it is made."""
    beta, ratio, objective = row["beta"], row["log_ratio_margin"], row["objective"]
    steps = [
        (text("explain.steps.formula"), str(objective["formula"])),
        (text("explain.steps.numbers"), str(objective["with_numbers"])),
    ]
    changes = []
    for name, side in row["sides"].items():
        policy, reference = side["logp"], side["reference_logp"]
        changes.append(policy - (reference or 0.0))
        figures = {"policy": signed(policy, 4)}
        key = "log_prob"
        if reference is not None:
            key = "log_ratio"
            figures |= {"reference": signed(reference, 4), "ratio": signed(changes[-1], 4)}
        steps.append((text(f"explain.sides.{name}"), text(f"explain.steps.{key}", **figures)))
    key = "margin" if len(changes) > 1 else "reward"
    figures = {"ratio": signed(ratio, 4), "beta": short(beta), "margin": signed(beta * ratio, 4)}
    if len(changes) > 1:
        figures |= {"chosen": signed(changes[0], 4), "rejected": _in_brackets(changes[1])}
    steps.append((text(f"explain.steps.{key}"), text(f"explain.steps.{key}_is", **figures)))
    if objective["scores"] is not None:
        chosen, rejected = objective["scores"]
        scores = {"chosen": short(chosen), "rejected": short(rejected)}
        words = text("explain.steps.score_is", score=objective["score"] or "", **scores)
        steps.append((text("explain.steps.score"), words))
    loss = short(row["loss"])
    if objective["is_logistic"]:
        margin = beta * ratio
        chance = 1 / (1 + exp(-margin)) if margin > -LARGEST_EXPONENT else 0.0
        values = {"margin": signed(margin, 4), "chance": f"{chance:.4f}"}
        steps.append((text("explain.steps.chance"), text("explain.steps.chance_is", **values)))
        loss = text("explain.steps.minus_log", chance=f"{chance:.4f}", loss=f"{row['loss']:.4f}")
    steps.append((text("explain.steps.loss"), text("explain.steps.loss_is", loss=loss)))
    return steps


def _in_brackets(value: float) -> str:
    return f"({signed(value, 4)})" if value < 0 else signed(value, 4)


# ---- in words --------------------------------------------------------------------------------


def sentences(row: dict[str, Any]) -> Iterator[str]:
    """What a reader is told of a pair: which way it went, and where that comes from."""
    paired = len(row["sides"]) > 1
    shares = row["shares"]
    if row["is_tie"] or not shares["total"]:
        yield text("explain.tie" if paired else "explain.tie_one")
        return
    if paired:
        key = "positive" if row["margin"] > 0 else "negative"
        yield text(f"explain.{key}" if row["reads_reference"] else f"explain.{key}_alone")
    else:
        key = "likelier" if row["margin"] > 0 else "less_likely"
        wanted = text("explain.label_true" if row["label"] else "explain.label_false")
        yield text(f"explain.{key}", wanted=wanted)
    what = text("explain.of_margin" if paired else "explain.of_reward")
    yield text(
        "explain.shares", what=what, first=percent(shares["first"]["share"]),
        end=percent(shares["end"]["share"]), top=percent(shares["top"]["share"]),
        n=shares["top"]["tokens"],
    )  # fmt: skip
    yield _verdict(row, what)


def _verdict(row: dict[str, Any], what: str) -> str:
    """Where most of the margin comes from, in a sentence."""
    shares = row["shares"]
    if _carries(shares["end"], shares):
        return text("explain.from_end", what=what)
    if _carries(shares["begin"], shares):
        return text("explain.from_begin", what=what)
    if _carries(shares["manner"], shares):
        return text("explain.from_manner", what=what)
    if _carries(shares["top"], shares):
        return text("explain.from_few", what=what, named=_named(row))
    return text("explain.from_many", what=what)


def _carries(group: dict[str, Any], shares: dict[str, Any]) -> bool:
    evenly = group["tokens"] / shares["tokens"]
    return bool(group["share"] > max(MOST_OF_IT, CONCENTRATED * evenly))


def _named(row: dict[str, Any]) -> str:
    """The tokens that move most, in quotation marks; those that both answers begin with cancel."""
    units = (one for side in row["sides"].values() for one in _units(side, row))
    apart = [one for one in units if one["scored"] and one["first"] >= row["common"]]
    most = sorted(apart, key=lambda one: -abs(one["reward"]))[:NAMED_TOKENS]
    quoted = (
        text("explain.quoted", token=visible(one["text"].strip() or one["text"])) for one in most
    )
    return ", ".join(dict.fromkeys(quoted))
