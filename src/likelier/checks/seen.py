"""What is kept of the rows that were examined: counts, hashes, and an even sample of features."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from likelier.checks.across import Content, EvenSample, digest
from likelier.checks.pairs import SCRIPTS
from likelier.checks.shortcuts import FEATURES, Lengths, Probe, characters, lengths, probe
from likelier.data.check import Tally
from likelier.data.formats import Format
from likelier.data.near_duplicates import MAX_COMPARED
from likelier.data.part import Part

SAMPLE = 20_000  # pairs whose features are kept for the statistics


@dataclass(frozen=True)
class Statistics:
    """What the pairs are like together.

    ``sampled`` of them were looked at for lengths, languages and the probe; ``compared`` for near
    copies. ``scripts`` counts answers by the letters that they are written in.
    """

    pairs: int
    prompts: int
    most_pairs_of_a_prompt: int
    sampled: int
    compared: int
    lengths: Lengths | None
    scripts: Mapping[str, int]
    probe: Probe | None
    origins: Mapping[str, int]
    labels: Mapping[str, int]


class Seen:
    """What is kept of all parts: counts, hashes, and an even sample of features."""

    def __init__(self, form: Format):
        self.form = form
        self.tally = Tally()
        self.content = Content(form.shape == "labelled")
        self.rows = self.left_out = 0
        self.hits: dict[int, str] = {}
        self.prompts = EvenSample(MAX_COMPARED)
        self._features, self._lengths, self._keys = (EvenSample(SAMPLE) for _ in range(3))
        self._origins: Counter[str] = Counter()

    def take(self, part: Part) -> None:
        """Take what came of one more batch."""
        self.rows += part.rows
        self.left_out += part.left_out
        self.tally.add(part.findings)
        self.content.add_part(part.sources, part.keys, part.nears)
        for hit, source in part.hits:
            self.hits.setdefault(hit, source)
        self.prompts.add(part.prompts)
        self._origins.update(origin for origin in part.origins if origin is not None)
        self._features.add(part.features)
        self._lengths.add(part.lengths[: len(part.features)])
        self._keys.add(part.keys[: len(part.features), 0])

    def statistics(self) -> Statistics:
        """The statistics of everything taken."""
        keys = self.content.keys
        _, counts = np.unique(keys[:, 0], return_counts=True)
        table, prompts = self._features.rows, self._keys.rows
        chosen, rejected, unit = characters(table[:, 0]), characters(table[:, 1]), "characters"
        if len(self._lengths):
            both = self._lengths.rows.astype(np.float64)
            chosen, rejected, unit = both[:, 1], both[:, 2], "tokens"
        columns = [(name, FEATURES.index(f"{name} letters")) for name in SCRIPTS if name != "other"]
        scripts = {name: int(table[:, :, at].sum()) for name, at in columns}
        labelled = self.form.shape == "labelled"
        return Statistics(
            pairs=len(keys),
            prompts=len(counts),
            most_pairs_of_a_prompt=int(counts.max()) if len(counts) else 0,
            sampled=len(table),
            compared=self.content.sampled,
            lengths=lengths(chosen, rejected, prompts, unit),
            scripts={name: count for name, count in scripts.items() if count},
            probe=probe(table[:, 0], table[:, 1], prompts),
            origins=dict(self._origins.most_common(20)),
            labels=self._labels(keys) if labelled else {},
        )

    def _labels(self, keys: np.ndarray) -> dict[str, int]:
        good = int((keys[:, 2] == digest(True)).sum())
        return {"good": good, "bad": len(keys) - good}
