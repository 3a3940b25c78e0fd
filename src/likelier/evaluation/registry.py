"""What every metric that a run logs means: unit, healthy range, trap. Made into docs/metrics.md.

The page is written by `python -m likelier.evaluation.registry > docs/metrics.md`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

INTRODUCTION = """# Metrics

This page is written by `python -m likelier.evaluation.registry > docs/metrics.md`.

A run writes `metrics.jsonl`, one row a step. A row with `eval_` before its names is about the
held-out pairs, which no step sees: it is the one to trust. Figures are sums and counts over all
pairs, so that they do not depend on how pairs were cut into batches. Names are those that TRL logs
where the meaning is the same. *Log-ratio* is the policy's log-prob of an answer less the
reference's, in nats; *reward* is beta times that.

Of a loss that reads no reference there are no `drift/*` and `weights/*`, and its `rewards/*` are
beta times the policy's own log-probs.
"""
_WHERE = {
    "both": "steps, and held-out pairs as `eval_{}`",
    "only": "held-out pairs, as `eval_{}`",
    "no": "steps",
    "answers": "the answers drawn at temperature 1, in `samples.jsonl`",
}


@dataclass(frozen=True)
class Metric:
    """A metric: its ``unit``, where it is logged (``eval``), what it means, what is ``healthy`` and
    what to beware of (``trap``).
    """

    name: str
    unit: str
    eval: Literal["both", "only", "no", "answers"]
    meaning: str
    healthy: str
    trap: str

    @property
    def keys(self) -> list[str]:
        """What it is called in the rows of `metrics.jsonl`."""
        of_steps = [self.name] if self.eval in ("both", "no") else []
        return of_steps + ([f"eval_{self.name}"] if self.eval in ("both", "only") else [])


@cache
def metrics_known() -> dict[str, Metric]:
    """Every metric by its name, in reading order."""
    written = yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text("utf-8"))
    return {name: Metric(name, **about) for name, about in written.items()}


def metrics_page() -> str:
    """The page of the documentation."""
    return INTRODUCTION + "".join(map(_section, metrics_known().values()))


def _section(metric: Metric) -> str:
    where = _WHERE[metric.eval].format(metric.name)
    about = f"*Unit:* {metric.unit}. *Logged for:* {where}."
    said = (f"## {metric.name}", metric.meaning, about, f"*Healthy:* {metric.healthy}")
    return "\n" + "\n\n".join((*said, f"*Trap:* {metric.trap}")) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
