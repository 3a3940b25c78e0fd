"""How well trivial features alone tell chosen from rejected: shortcuts that training would take."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from likelier.base.findings import Finding
from likelier.checks.pairs import SCRIPTS, script_of
from likelier.checks.rules import finding
from likelier.evaluation.intervals import wilson

FOLDS = 5
MIN_PROMPTS = 30  # distinct ones; with fewer nothing is estimated
MAX_BINS = 24  # of a histogram
NUM_FIRST_CHARACTERS = 12  # that get a feature of their own
RIDGE = 3.0
SHORTCUT_ACCURACY = 0.65  # accuracy over which even the lower end of the interval is a shortcut
LONGER_SHARE = 0.65  # of the pairs; where one side is longer in more, length is what is learned

_REFUSAL = re.compile(
    r"\b(I'm sorry|I am sorry|I cannot|I can't|I can’t|I'm unable|I won't)\b"
    r"|죄송|할 수 없습니다|도와드릴 수 없|申し訳|很抱歉|对不起",
    re.IGNORECASE,
)
_AS_AN_AI = re.compile(
    r"\bas an? (AI|artificial|language model)|인공지능으로서|AI로서", re.IGNORECASE
)
_PATTERNS = {
    "a bullet list": re.compile(r"^\s*[-*•] ", re.MULTILINE),
    "a numbered list": re.compile(r"^\s*\d+[.)] ", re.MULTILINE),
    "a heading": re.compile(r"^#{1,6} ", re.MULTILINE),
    "bold text": re.compile(r"\*\*[^*\n]+\*\*"),
    "a code block": re.compile(r"```"),
    "a table": re.compile(r"^\|.*\|\s*$", re.MULTILINE),
    "a link": re.compile(r"https?://"),
    "a refusal": _REFUSAL,
    "“as an AI”": _AS_AN_AI,
    "thinking": re.compile(r"</?think>"),
    "an emoji": re.compile("[\U0001f300-\U0001faff]"),
    "a digit": re.compile(r"\d"),
    "an exclamation mark": re.compile(r"!"),
    "a question mark": re.compile(r"[?？]"),
}
_ENDS = {
    "a first space": lambda text: text[:1].isspace(),
    "a last space": lambda text: text[-1:].isspace(),
    "a last full stop": lambda text: text.rstrip()[-1:] in (".", "!", "?", "。", "…"),
    "a first capital": lambda text: text.lstrip()[:1].isupper(),
    "a first lower-case letter": lambda text: text.lstrip()[:1].islower(),
}
_SCRIPTS = tuple(f"{script} letters" for script in SCRIPTS if script != "other")
SAYS = {  # where it is there or not, and where it is a number
    "chosen": ("chosen has it", "chosen has more of it"),
    "rejected": ("rejected has it", "rejected has more of it"),
}
FEATURES = ("length", "lines", *_PATTERNS, *_ENDS, *_SCRIPTS, "first character")
LENGTH, FIRST = FEATURES.index("length"), FEATURES.index("first character")


def features(text: str) -> np.ndarray:
    """(len(FEATURES),) float32: 0 or 1, but log lengths and the code of the first character."""
    script = script_of(text)
    values = [
        np.log1p(len(text)),
        np.log1p(text.count("\n")),
        *(pattern.search(text) is not None for pattern in _PATTERNS.values()),
        *(ends(text) for ends in _ENDS.values()),
        *(name == f"{script} letters" for name in _SCRIPTS),
        ord(text[0]) if text else 0,
    ]
    return np.array(values, dtype=np.float32)


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % interval; pairs of one prompt count as one observation."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Clue:
    """One trivial feature: how often its side is chosen, of the pairs that differ in it."""

    feature: str
    says: str
    differ: int
    right: Estimate


@dataclass(frozen=True)
class Probe:
    """How well all trivial features together tell the sides apart, on prompts held out; and the
    strongest of them, each alone.
    """

    pairs: int
    prompts: int
    accuracy: Estimate
    clues: tuple[Clue, ...]

    @property
    def is_shortcut(self) -> bool:
        """Whether the lower end of the interval is over the limit."""
        return self.accuracy.low > SHORTCUT_ACCURACY


def probe(chosen: np.ndarray, rejected: np.ndarray, prompts: np.ndarray) -> Probe | None:
    """Tell chosen from rejected by a linear rule on the differences of trivial features.

    Args:
        chosen, rejected: (n, len(FEATURES)) of each answer.
        prompts: (n,) a key for each prompt; a prompt is wholly in one fold.

    Returns:
        None where there are fewer than `MIN_PROMPTS` distinct prompts.
    """
    names, groups = np.unique(prompts, return_inverse=True)
    if len(names) < MIN_PROMPTS:
        return None
    labels, differences = _differences(chosen, rejected)
    # Folds by the prompts' own hashes, so that neither order nor position decides.
    fold = (names % np.uint64(FOLDS)).astype(np.int64)[groups]
    right = np.full(len(differences), 0.5)
    for number in range(FOLDS):
        held = fold == number
        if held.any() and not held.all():
            score = differences[held] @ _fit(differences[~held])
            right[held] = np.where(score == 0, 0.5, score > 0)
    clues = [
        _clue(label, column, groups) for label, column in zip(labels, differences.T, strict=True)
    ]
    strongest = sorted((clue for clue in clues if clue), key=lambda clue: -clue.right.low)
    return Probe(len(differences), len(names), estimate(right, groups), tuple(strongest[:8]))


def _differences(chosen: np.ndarray, rejected: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Features of chosen less those of rejected, with the commonest first characters apart."""
    plain = [number for number in range(len(FEATURES)) if number != FIRST]
    firsts = np.concatenate([chosen[:, FIRST], rejected[:, FIRST]]).astype(np.int64)
    codes, counts = np.unique(firsts[firsts > 0], return_counts=True)
    common = codes[np.argsort(-counts, kind="stable")][:NUM_FIRST_CHARACTERS]
    letters = [
        (chosen[:, FIRST] == code).astype(np.float64) - (rejected[:, FIRST] == code)
        for code in common
    ]
    labels = [FEATURES[number] for number in plain]
    labels += [f"a first {chr(int(code))!r}" for code in common]
    values = (chosen[:, plain] - rejected[:, plain]).astype(np.float64)
    return labels, np.column_stack([values, *letters])


def _fit(differences: np.ndarray) -> np.ndarray:
    """Weights of a logistic rule without intercept, by Newton's method with a small ridge."""
    scale = np.sqrt((differences**2).mean(axis=0)) + 1e-12
    data = differences / scale
    weights = np.zeros(data.shape[1])
    for _ in range(20):
        chance = 1 / (1 + np.exp(-np.clip(data @ weights, -30, 30)))
        gradient = data.T @ (1 - chance) - RIDGE * weights
        curvature = (data * (chance * (1 - chance))[:, None]).T @ data
        step = np.linalg.solve(curvature + RIDGE * np.eye(len(weights)), gradient)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return weights / scale


def _clue(label: str, column: np.ndarray, groups: np.ndarray) -> Clue | None:
    differ = column != 0
    if differ.sum() < MIN_PROMPTS:
        return None
    right = estimate((column[differ] > 0).astype(np.float64), groups[differ])
    side = "chosen"
    if right.value < 0.5:
        side, right = "rejected", Estimate(1 - right.value, 1 - right.high, 1 - right.low)
    says = SAYS[side][label in ("length", "lines")]
    return Clue(label, says, int(differ.sum()), right)


def estimate(right: np.ndarray, groups: np.ndarray) -> Estimate:
    """The mean of ``right`` with a 95 % interval: Wilson's, for as many observations as the
    spread between prompts leaves (pairs of one prompt are not independent).
    """
    mean = float(right.mean())
    _, place = np.unique(groups, return_inverse=True)
    place = place.ravel()
    sums = np.bincount(place, weights=right - mean)
    clusters = len(sums)
    variance = float((sums**2).sum()) / len(right) ** 2 * clusters / max(clusters - 1, 1)
    free = mean * (1 - mean)
    count = min(float(len(right)), free / variance) if variance > 0 else float(clusters)
    return Estimate(mean, *wilson(mean, count))


@dataclass(frozen=True)
class Histogram:
    """How many lengths lie in each bin, by what is long: bins from 0 on, each ``width`` wide.

    The last bin also counts all that are longer, up to ``longest``.
    """

    width: int
    counts: Mapping[str, tuple[int, ...]]
    longest: int


def histogram(lengths: Mapping[str, np.ndarray]) -> Histogram:
    """At most `MAX_BINS` bins of a round width, up to the longest that is not far from the rest."""
    every = np.concatenate(list(lengths.values()))
    longest = int(every.max())
    usual = int(np.quantile(every, 0.99))
    covered = longest if longest <= 2 * usual else usual
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(width for width in widths if covered < MAX_BINS * width)
    bins = 4 * (covered // (4 * width) + 1)  # so that marks at its quarters are round, too
    places = {name: np.minimum(found // width, bins - 1) for name, found in lengths.items()}
    counts = {
        name: tuple(np.bincount(found.astype(np.int64), minlength=bins).tolist())
        for name, found in places.items()
    }
    return Histogram(width, counts, longest)


@dataclass(frozen=True)
class Lengths:
    """How the lengths of the two answers differ; characters, or tokens where there is a model.

    ``pairs`` is the histogram of prompts with their longer answers, in tokens, before any pair
    was left out or trimmed for ``data.max_length``.
    """

    unit: str
    chosen_longer: Estimate
    log_ratio: float
    p80_difference: float
    median_chosen: float
    median_rejected: float
    answers: Histogram
    pairs: Histogram | None


def lengths(
    chosen: np.ndarray,
    rejected: np.ndarray,
    prompts: np.ndarray,
    unit: str,
    whole: np.ndarray | None = None,
) -> Lengths | None:
    """The length skew of pairs, (n,) lengths each; None without any.

    ``prompts`` are a key for each, and ``whole`` the lengths of prompts with their longer answers.
    """
    if not len(chosen):
        return None
    longer = np.where(chosen == rejected, 0.5, chosen > rejected)
    ratio = np.log(np.maximum(chosen, 1) / np.maximum(rejected, 1))
    return Lengths(
        unit,
        estimate(longer.astype(np.float64), prompts),
        float(ratio.mean()),
        float(np.quantile(chosen - rejected, 0.8)),
        float(np.median(chosen)),
        float(np.median(rejected)),
        histogram({"chosen": chosen, "rejected": rejected}),
        None if whole is None else histogram({"pair": whole}),
    )


def characters(table: np.ndarray) -> np.ndarray:
    """(n,) lengths in characters out of (n, len(FEATURES)) features."""
    return np.rint(np.expm1(table[:, LENGTH].astype(np.float64)))


def shortcuts(found: Probe | None, skew: Lengths | None, name: str) -> Iterator[Finding]:
    """Warnings about the data as a whole: trivial features tell the sides apart, or length does."""
    if found and found.is_shortcut:
        best = f", {found.clues[0].feature} most of all" if found.clues else ""
        low, high = found.accuracy.low, found.accuracy.high
        message = (
            f"trivial features alone tell chosen from rejected for {found.accuracy.value:.0%} of "
            f"the pairs ({low:.0%} to {high:.0%}){best}"
        )
        yield finding("shortcut", name, message)
    share = skew.chosen_longer if skew else None
    if found and skew and share and (share.low > LONGER_SHARE or share.high < 1 - LONGER_SHARE):
        side = "chosen" if share.value > 0.5 else "rejected"
        message = (
            f"{side} is longer in {max(share.value, 1 - share.value):.0%} of the pairs (median "
            f"{skew.median_chosen:.0f} and {skew.median_rejected:.0f} {skew.unit})"
        )
        yield finding("length", name, message)
