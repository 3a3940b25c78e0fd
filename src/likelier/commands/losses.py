"""The losses as text: a table, one card, and the page of the documentation."""

from itertools import zip_longest
from textwrap import wrap

from likelier.losses.declare import LOSSES, Loss

COLUMNS = 80
NEEDS_COLUMNS = 17  # "reference, label,"

HEAD = """# Losses

This page is written by `python -m likelier.commands.losses > docs/losses.md`; `likelier losses` and
`likelier losses NAME` print the same from the command line.

A loss is chosen in the config, `loss: {name: sigmoid, beta: 0.1}`, or called as a plain function,
`likelier.preference_loss("sigmoid", pc, pr, rc, rr, beta=0.1)`. A key that a loss does not read is
an error. In the formulas `pc` and `pr` are the policy's log-probs of the chosen
and the rejected answer, `rc` and `rr` the reference's, `nc` and `nr` the lengths in tokens, stop
token included; `p` and `r` are policy and reference where there is a single answer. The loss of a
step is the mean over its pairs.

## What combines with any loss of pairs

| key | what it does | source |
|---|---|---|
| `nll` | adds so much of the chosen answer's negative log-likelihood; `nll_per: token` (the mean over all chosen tokens of the step, exact however it is cut), `answer` or `sum` | RPO 2405.16436 (sum, 0.005), Iterative RPO 2404.19733 (answer, 1), Llama 3 2407.21783 (0.2) |
| `pair_weights` | multiplies each pair's loss by the data's column `weight` | |
| `tokens: {kind: ld, alpha}` | tokens beyond the shorter answer's length count alpha, for policy and reference | LD-DPO 2409.06411 |
| `tokens: {kind: sampo}` | as many tokens of the longer answer as the shorter has, drawn once a pair | SamPO 2406.10957 |
| `tokens: {kind: decay, gamma}` | each token counts gamma times what the one before does | D2PO 2502.14340 |
| `wpo` | weighs a pair by how likely the policy would write it; at most 1, no gradient | WPO 2406.11827 |
| `dynamic_beta` | beta follows the mean margin of the step; the nearest share `keep` of the pairs is used | beta-DPO 2407.08639 |
| `stop_token: false` | leaves stop tokens out of every log-prob | Llama 3 2407.21783 |
| `name: mixture` | `parts: [{name, weight, ...}, ...]`; MPO 2411.10442 is 0.8 sigmoid, 0.2 bco and nll 1 | |
| `reference.update_every`, `update_mix` | TR-DPO: the reference moves after the policy; it is then scored live | 2404.09656 |

Leaving the stop token out makes length free: the model is no longer told when to end. It is here to
reproduce recipes.

Losses that need no reference build none. Their `rewards/*` are then beta times the policy's own
log-probs, as everyone logs them; what is optimised stands beside it as `scores/*`.

## The losses
"""  # noqa: E501 - a row of a table is one line


def table() -> str:
    """Every loss: its name, what it needs and when to use it, in columns that fit the terminal."""
    rows = [(loss.name, ", ".join(loss.needs) or "nothing", loss.use) for loss in LOSSES.values()]
    name = max(len(row[0]) for row in rows)
    widths = (name, NEEDS_COLUMNS, COLUMNS - name - NEEDS_COLUMNS - 4)
    lines = []
    for row in [("name", "needs", "when"), *rows]:
        cells = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for a, b, c in zip_longest(*cells, fillvalue=""):
            lines.append(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip())
    return "\n".join(lines) + "\n"


def card(loss: Loss) -> str:
    """Everything that is known of one loss, in lines that fit the terminal."""
    lines = [*wrap(loss.title, COLUMNS), *_indented(loss.paper, "  "), ""]
    lines += [line for formula in loss.formulas for line in _indented(formula, "  ")]
    about = {"needs": ", ".join(loss.needs) or "nothing but the policy"}
    about |= {"also": ", ".join(loss.aliases), "scores": loss.score or ""}
    about |= {"when": loss.use, "trap": loss.trap}
    lines += [""]
    for name, said in about.items():
        lines += _indented(said, f"  {name:7}  ") if said else []
    for hyper in loss.hypers:
        lines += ["", *_indented(f"{hyper.name} = {hyper.default}: {hyper.meaning}", "  ")]
        lines += _indented(f"{hyper.range}; begin with {hyper.start}", "    ")
    return "\n".join(lines) + "\n"


def _indented(said: str, before: str) -> list[str]:
    """A text in lines, the first behind ``before``, the others as far to the right."""
    return wrap(said, COLUMNS, initial_indent=before, subsequent_indent=" " * len(before))


def page() -> str:
    """The page of the documentation."""
    lines = [HEAD, "| name | needs | when |\n|---|---|---|"]
    lines += [
        f"| [{loss.name}](#{loss.name}) | {', '.join(loss.needs) or 'nothing'} | {loss.use} |"
        for loss in LOSSES.values()
    ]
    return "\n".join([*lines, *map(_section, LOSSES.values())]) + "\n"


def _section(loss: Loss) -> str:
    lines = [f"\n### {loss.name}", "", f"{loss.title}. {loss.paper}."]
    lines += ["", "```", *loss.formulas, "```"]
    if loss.aliases:
        lines += ["", f"Also called {', '.join(f'`{alias}`' for alias in loss.aliases)}."]
    lines += ["", f"*When:* {loss.use}", "", f"*Trap:* {loss.trap}"]
    if loss.score:
        lines += ["", f"*Scores:* {loss.score}."]
    if loss.hypers:
        lines += ["", "| parameter | default | range | begin with | |", "|---|---|---|---|---|"]
    lines += [
        f"| `{h.name}` | {h.default} | {h.range} | {h.start} | {h.meaning} |" for h in loss.hypers
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
