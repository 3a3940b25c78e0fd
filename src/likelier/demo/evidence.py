"""What the demo measured: answers sampled before and after, judged, and shares with intervals."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from likelier.demo.judge import judge
from likelier.demo.world import Topic, interview
from likelier.evaluation.intervals import wilson
from likelier.generation.sample import Sample, sample
from likelier.model.load import load

QUESTIONS_EACH = 3  # different ones, about each topic that no pair names, in each language
MAX_NEW_TOKENS = 64  # the longest answer of the world is about half of that
RESAMPLES = 2000

Row = dict[str, Any]


def interrogate(before: Path, after: Path, seed: int) -> tuple[list[Topic], list[Row]]:
    """Ask two models the same questions at temperature 1, and judge what they say.

    Returns the topics and the rows of ``samples.jsonl``, side by side.
    """
    asked = interview(QUESTIONS_EACH, seed)
    prompts = [prompt for _, prompt in asked]
    answers = {name: _ask(path, prompts, seed) for name, path in
               (("before", before), ("after", after))}  # fmt: skip
    rows = []
    for place, (topic, prompt) in enumerate(asked):
        row: Row = {"prompt": prompt, "topic": topic.name}
        for when, samples in answers.items():
            found = judge(topic, samples[place].text)
            row[when] = samples[place].text
            row[f"preferred_{when}"] = found.preferred
            row[f"named_{when}"] = found.named
            row[f"stopped_{when}"] = samples[place].stopped
        rows.append(row)
    return [topic for topic, _ in asked], rows


def _ask(path: Path, prompts: Sequence[str], seed: int) -> list[Sample]:
    policy = load(path)
    return sample(
        policy.model,
        policy.tokenizer,
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        temperature=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )


def outcome(
    topics: Sequence[Topic], rows: Sequence[Row], evaluation: Mapping[str, float], seed: int
) -> dict[str, dict[str, float]]:
    """The shares of ``outcome.json``, each ``{"value", "low", "high", "n"}``.

    ``evaluation`` is the last row of a run's log that holds ``eval_*``. Its interval takes
    prompts as trials (see `likelier.evaluation.heldout`); the others are `share_of`'s.
    """
    accuracy = "eval_rewards/accuracies"
    shares = {
        "heldout_accuracy": {
            "value": evaluation[accuracy],
            "low": evaluation[f"{accuracy}_low"],
            "high": evaluation[f"{accuracy}_high"],
            "n": evaluation["eval_pairs"],
        }
    }
    clusters = [topic.row for topic in topics]
    for name in ("preferred_before", "preferred_after", "named_before", "named_after",
                 "stopped_before", "stopped_after"):  # fmt: skip
        shares[name] = share_of([row[name] for row in rows], clusters, seed)
    return shares


def share_of(hits: Sequence[bool], clusters: Sequence[int], seed: int) -> dict[str, float]:
    """The share of hits with its 95 % interval.

    Answers about one topic hang together, so whole topics (``clusters``, both languages in one)
    are drawn again, with replacement, and the middle 95 % of the shares is the interval. It is
    widened to Wilson's for that many independent answers where it is narrower: where every
    answer is a hit, drawing again shows no spread at all.
    """
    by_cluster: dict[int, list[bool]] = {}
    for cluster, hit in zip(clusters, hits, strict=True):
        by_cluster.setdefault(cluster, []).append(hit)
    counts = [(sum(found), len(found)) for found in by_cluster.values()]
    draw = random.Random(f"intervals {seed}")
    shares = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(counts, k=len(counts))
        shares.append(sum(hit for hit, _ in drawn) / sum(size for _, size in drawn))
    shares.sort()
    cut = round(0.025 * RESAMPLES)
    value = sum(hits) / len(hits)
    low, high = wilson(value, len(hits))
    return {
        "value": value,
        "low": min(low, shares[cut]),
        "high": max(high, shares[-cut - 1]),
        "n": len(hits),
    }
