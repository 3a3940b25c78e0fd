"""The losses as text: a table, one card, and the page of the documentation."""

from likelier.losses.declare import LOSSES, Loss

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
    """One line a loss: its name, what it needs and when to use it."""
    rows = [(loss.name, ", ".join(loss.needs) or "nothing", loss.use) for loss in LOSSES.values()]
    name, needs = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{a:{name}}  {b:{needs}}  {c}" for a, b, c in [("name", "needs", "when"), *rows]]
    return "\n".join(lines) + "\n"


def card(loss: Loss) -> str:
    """Everything that is known of one loss."""
    lines = [loss.title, f"  {loss.paper}", "", *(f"  {line}" for line in loss.formulas), ""]
    lines += [f"  needs    {', '.join(loss.needs) or 'nothing but the policy'}"]
    if loss.aliases:
        lines += [f"  also     {', '.join(loss.aliases)}"]
    if loss.score:
        lines += [f"  scores   {loss.score}"]
    lines += [f"  when     {loss.use}", f"  trap     {loss.trap}"]
    for hyper in loss.hypers:
        lines += ["", f"  {hyper.name} = {hyper.default}: {hyper.meaning}"]
        lines += [f"    {hyper.range}; begin with {hyper.start}"]
    return "\n".join(lines) + "\n"


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
