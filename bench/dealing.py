"""How evenly the pairs of a step are dealt to ranks, beside two simpler ways.

    python bench/dealing.py            prints a table, writes bench/results/dealing.json
    python bench/dealing.py --smoke    one case of one step; leaves no file

Nothing is trained: operations are counted, by the costs of EXAONE-4.0-1.2B's shape. Three figures
are the slowest rank's as a multiple of what no dealing can beat: the longest pair alone, or the
mean of all ranks with every prompt computed once. `dealt` is `likelier.training.dealing.deal`,
`in_turn` gives pair i to rank i modulo ranks, `by_count` gives neighbours, equally many a rank.
`of_units` is the slowest rank of `dealt` over the longest unit that it kept together or the mean of
what the ranks compute, `computed` what they compute in all over every prompt once.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import record
import torch
import workloads
from transformers import AutoModelForCausalLM, Exaone4Config

from likelier.batching.batch import completions_of, tree_batch
from likelier.data.records import Completion, TokenPair
from likelier.training.dealing import deal
from likelier.training.memory import Costs, costs_of

STEPS = 8  # of each case
CASES = ((2, 256), (8, 256), (64, 256), (512, 4096))  # ranks, pairs a step
BEST_OF = "best of 2 to 9"  # answers to a prompt: one pair with each of the others
WORKLOADS = {**workloads.WORKLOADS, BEST_OF: workloads.WORKLOADS["chat"]}


def costs_of_shape(shape: dict[str, Any]) -> Costs:
    """What a model of a shape computes; it has no weights."""
    kinds = ["full_attention"] * shape["num_hidden_layers"]
    with torch.device("meta"):
        config = Exaone4Config(**workloads._EXAONE, **shape, layer_types=kinds)
        return costs_of(AutoModelForCausalLM.from_config(config))


def drawn(name: str, pairs: int, rng: np.random.Generator) -> list[TokenPair]:
    """The pairs of a step, random tokens of a workload's lengths."""
    workload, found = WORKLOADS[name], []

    def tokens(lengths: workloads.Lengths) -> tuple[int, ...]:
        return tuple(rng.integers(4, 32768, lengths.draw(rng, 1)).tolist())

    def answer() -> Completion:
        made = tokens(workload.answer)
        return Completion(made, (True,) * len(made))

    while len(found) < pairs:
        prompt = tokens(workload.prompt)
        best_of = name == BEST_OF
        answers = [answer() for _ in range(rng.integers(2, 10) if best_of else workload.answers)]
        of_best = ((answers[0], other) for other in answers[1:])
        for chosen, rejected in of_best if best_of else combinations(answers, 2):
            found.append(TokenPair(prompt, chosen, rejected, ""))
    return found[:pairs]


def units(pairs: Sequence[TokenPair], part: Sequence[int], costs: Costs) -> Iterator[int]:
    """Operations of each prompt of a rank's pairs, counted from its batch."""
    prompts: dict[tuple[int, ...], list[TokenPair]] = {}
    for index in part:
        prompts.setdefault(pairs[index].prompt, []).append(pairs[index])
    for group in prompts.values():
        batch = tree_batch([*dict.fromkeys(one for pair in group for one in completions_of(pair))])
        yield costs.of_batch(batch)


def one_step(pairs: Sequence[TokenPair], ranks: int, costs: Costs) -> dict[str, float]:
    """The figures of one step, and the milliseconds of dealing it."""
    began = time.perf_counter()
    dealt = deal(pairs, ranks, costs, "segments")
    took = time.perf_counter() - began
    whole = sum(units(pairs, range(len(pairs)), costs))
    longest = max(next(units(pairs, [index], costs)) for index in range(len(pairs)))
    least = max(longest, whole / ranks)
    parts = [[*units(pairs, part, costs)] for part in dealt]
    loads = [sum(part) for part in parts]
    longest_unit = max(max(part, default=0) for part in parts)

    def beside(found: Sequence[Sequence[int]]) -> float:
        return max(sum(units(pairs, part, costs)) for part in found) / least

    return {
        "dealt": max(loads) / least,
        "in_turn": beside([range(rank, len(pairs), ranks) for rank in range(ranks)]),
        "by_count": beside([part.tolist() for part in np.array_split(range(len(pairs)), ranks)]),
        "of_units": max(loads) / max(longest_unit, sum(loads) / ranks),
        "computed": sum(loads) / whole,
        "milliseconds": 1000 * took,
    }


def main() -> None:
    """Every workload on every number of ranks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one case of one step; no file")
    smoke = parser.parse_args().smoke
    costs = costs_of_shape(workloads.SHAPES["smoke" if smoke else "gpu"])
    rows: list[dict[str, Any]] = []
    for name in WORKLOADS:
        for ranks, pairs in CASES[1:2] if smoke else CASES:
            rng = np.random.default_rng(0)
            found = [
                one_step(drawn(name, pairs, rng), ranks, costs)
                for _ in range(1 if smoke else STEPS)
            ]
            figures = {key: record.spread([one[key] for one in found]) for key in found[0]}
            rows.append({"workload": name, "ranks": ranks, "pairs": pairs, **figures})
            print(name, ranks, {key: round(one["most"], 3) for key, one in figures.items()})
    if not smoke:
        record.write("dealing", {"steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()
