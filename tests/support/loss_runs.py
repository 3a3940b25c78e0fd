"""A run of every loss and every option: the config section, and rows that it can read."""

from typing import Any

from tests.support.tiny import pair_rows

from likelier.losses.declare import LOSSES

# By a name of their own: losses with what combines with them.
OPTIONS: dict[str, dict[str, Any]] = {
    "forward_kl": {"name": "sigmoid", "divergence": "forward_kl"},
    "alpha": {"name": "sigmoid", "divergence": "alpha", "alpha": 0.3},
    "js": {"name": "sigmoid", "divergence": "js"},
    "nll": {"name": "sigmoid", "nll": 0.2},
    "nll answer": {"name": "sigmoid", "nll": 0.2, "nll_per": "answer"},
    "ld": {"name": "sigmoid", "tokens": {"kind": "ld", "alpha": 0.3}},
    "sampo": {"name": "sigmoid", "tokens": {"kind": "sampo"}},
    "decay": {"name": "sigmoid_mean", "tokens": {"kind": "decay", "gamma": 0.9}},
    "wpo": {"name": "sigmoid", "wpo": True},
    "dynamic beta": {"name": "sigmoid", "dynamic_beta": {"alpha": 0.6, "keep": 0.7}},
    "weights": {"name": "hinge", "pair_weights": True},
    "no stop": {"name": "sigmoid", "stop_token": False},
    "mixture": {
        "name": "mixture",
        "nll": 1.0,
        "parts": [{"name": "sigmoid", "weight": 0.8}, {"name": "bco", "weight": 0.2}],
    },
}
SECTIONS: dict[str, dict[str, Any]] = {name: {"name": name} for name in LOSSES} | OPTIONS


def rows_for(loss: str, count: int = 16) -> list[dict[str, Any]]:
    """Pairs with a margin and a weight, or unpaired examples with a binary label."""
    rows = pair_rows(count)
    if LOSSES.get(loss, LOSSES["sigmoid"]).paired:
        return [
            row | {"margin": 0.25 * (n % 5), "weight": 0.5 + n % 3} for n, row in enumerate(rows)
        ]
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen"] if n % 2 else row["rejected"],
            "label": bool(n % 2),
        }
        for n, row in enumerate(rows)
    ]
