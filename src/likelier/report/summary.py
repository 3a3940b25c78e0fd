"""What a run did, in words: the key figures, and what the run was."""

import math
from collections.abc import Iterable
from typing import Any

from likelier.pages.texts import duration, percent, points, short, signed, text, text_or
from likelier.report.read import (
    Proportion,
    RunFiles,
    count,
    held_out_accuracy,
    newcombe,
    number,
    progress,
    section,
)

ROWS = ("rows", "used", "dropped", "trimmed")  # counts of run.json, in reading order
Card = tuple[str, str, str]  # a key figure: what it is, its value, what stands beside it


def reads_reference(run: RunFiles) -> bool:
    """Whether rewards are against a reference; otherwise they are beta times the log-prob."""
    return section(run.record, "loss").get("reads_reference") is not False


def starts_at_ln2(run: RunFiles) -> bool:
    """Whether a policy that is its reference has a loss of ln 2: plain DPO alone."""
    return section(run.record, "loss").get("starts_at_ln2") is True


def log_ratio(run: RunFiles, rewards: list[float]) -> float | None:
    """The last reward over beta: the change of log-prob from the reference, nats an answer."""
    scale = number(section(run.record, "loss").get("reward_scale"))
    if not rewards or not scale or not reads_reference(run):
        return None
    return number(rewards[-1] / scale)


def describe_status(run: RunFiles) -> str:
    """Whether the run has ended, and at which step, in a sentence."""
    done, planned = progress(run)
    status = run.record.get("status")
    status = status if status in ("finished", "stopped") else "running"
    if done is None:
        key = "none_logged" if status == "running" else status
        return text(f"report.status.{key}", progress="")
    at = "at_step_of" if planned else "at_step"
    at_step = text(f"report.status.{at}", done=done, planned=planned)
    return text(f"report.status.{status}", progress=at_step)


def interval_in_words(share: Proportion) -> str:
    """``44 to 58%, n = 200``."""
    low, high = percent(share.low).removesuffix("%"), percent(share.high)
    return text("numbers.interval", low=low, high=high, n=share.n)


def key_figures(run: RunFiles) -> list[Card]:
    """The figures worth a glance, those that the folder holds and no others."""
    cards = [_before_after(run, "preferred"), _before_after(run, "named")]
    accuracy = run.outcome.get("heldout_accuracy")
    if accuracy is None and run.held_out:
        accuracy = held_out_accuracy(run.held_out[-1])
    cards += [_share("stopped", run.outcome.get("stopped_after")), _share("accuracy", accuracy)]
    cards += [_loss(run), _chosen(run), _time(run), _saved(run)]
    return [card for card in cards if card is not None]


def _card(name: str, value: str, detail: str) -> Card:
    return (text(f"report.figures.labels.{name}"), value, detail)


def _share(name: str, found: Proportion | None) -> Card | None:
    return _card(name, percent(found.value), interval_in_words(found)) if found else None


def _before_after(run: RunFiles, name: str) -> Card | None:
    before, after = run.outcome.get(f"{name}_before"), run.outcome.get(f"{name}_after")
    if before is None or after is None:
        return None
    change, low, high = map(points, newcombe(before, after))
    detail = text("report.figures.change", change=change, low=low, high=high, n=after.n)
    shares = {"before": percent(before.value), "after": percent(after.value)}
    return _card(name, text("report.figures.before_after", **shares), detail)


def _loss(run: RunFiles) -> Card | None:
    name, rows, key = "training_loss", run.train, "loss"
    if run.held_out:
        name, rows, key = "held_out_loss", run.held_out, "eval_loss"
    losses = [(row["step"], row[key]) for row in rows if key in row]
    if not losses:
        return None
    step, loss = losses[0]
    first = text("report.figures.first_loss", loss=short(loss), step=step)
    return _card(name, short(losses[-1][1]), first if len(losses) > 1 else "")


def _chosen(run: RunFiles) -> Card | None:
    """How much likelier the chosen answers are than under the reference: the displacement."""
    rows, key, where = run.held_out, "eval_rewards/chosen", "held_out"
    if not any(key in row for row in rows):
        rows, key, where = run.train, "rewards/chosen", "training"
    change = log_ratio(run, [row[key] for row in rows if key in row])
    if change is None:
        return None
    value = text("report.figures.nats", change=signed(change))
    return _card("chosen", value, text(f"report.figures.against_{where}"))


def _time(run: RunFiles) -> Card | None:
    seconds = sum(row.get("seconds", 0) for row in run.timing)
    if seconds <= 0:
        return None
    pairs = sum(row.get("pairs", 0) for row in run.timing)
    speed = text("report.figures.pairs_a_second", pairs=short(pairs / seconds)) if pairs else ""
    return _card("time", duration(seconds), speed)


def _tokens(run: RunFiles) -> tuple[int, int] | None:
    """Tokens without and with sharing common beginnings, where both are known."""
    tokens = section(run.record, "tokens")
    plain, tree = count(tokens.get("plain")), count(tokens.get("tree"))
    return (plain, tree) if plain and tree else None


def _saved(run: RunFiles) -> Card | None:
    tokens = _tokens(run)
    if tokens is None:
        return None
    plain, tree = tokens
    detail = text("report.figures.saved", tree=tree, plain=plain)
    return _card("saved", percent(1 - tree / plain), detail)


def run_facts(run: RunFiles) -> list[tuple[str, str]]:
    """What the run was, as labels and values: those that the folder holds, in reading order."""
    record, data = run.record, section(run.record, "data")
    reference = section(record, "reference")
    held_out, train = section(data, "eval"), section(run.config, "train")
    adapter, loss = section(run.config, "adapter"), section(run.config, "loss")
    pairs = {"train": record.get("pairs"), "held_out": record.get("eval_pairs")}
    answers, threads = count(reference.get("answers")), count(record.get("threads"))
    facts = {
        "command": in_a_line(record.get("command")),
        "model": in_a_line(section(run.config, "model").get("path")),
        "size": _size(run),
        "steps": _steps(run),
        # The settings that most decide a run; config.yaml, shown below them, has all.
        "adapter": _options(adapter, "kind", adapter),
        "loss": _options(loss, "name", loss),
        "learning_rate": _options(section(run.config, "optim"), "lr", ("schedule", "warmup")),
        "length": _options(train, "", ("epochs", "steps", "pairs_per_step", "seed")),
        "rows": _counted({kind: data.get(kind) for kind in ROWS}),
        "rows_held_out": _counted({kind: held_out.get(kind) for kind in ROWS}),
        "pairs": _counted(pairs),
        "findings": _listed(section(data, "findings"), ": "),
        "findings_held_out": _listed(section(held_out, "findings"), ": "),
        "reference": text("report.run.reference", n=answers) if answers is not None else "",
        "reference_weights": in_a_line(reference.get("identity")),
        "reference_log_probs": in_a_line(reference.get("column")),
        "tokens": _sharing(run),
        "backend": _backend(run),
        "preflight": _preflight(run),
        "initial_policy": _initial_policy(run),
        "device": in_a_line(record.get("device")),
        "threads": f"{threads}" if threads else "",
        "versions": _versions(run),
    }
    return [(text(f"report.run.labels.{name}"), value) for name, value in facts.items() if value]


def _size(run: RunFiles) -> str:
    trainable, parameters = count(run.record.get("trainable")), count(run.record.get("parameters"))
    if not trainable or not parameters:
        return ""
    share = percent(trainable / parameters)
    return text("report.run.size", trainable=trainable, parameters=parameters, share=share)


def _steps(run: RunFiles) -> str:
    done, planned = progress(run)
    if done is None:
        return ""
    key = "steps_of" if planned else "steps"
    return text(f"report.run.{key}", done=done, planned=planned)


def _options(options: dict[str, Any], bare: str, named: Iterable[str]) -> str:
    """``lora, r 16, alpha 32``: the value of ``bare``, then each key with its value."""
    first = [in_a_line(options[bare])] if options.get(bare) is not None else []
    rest = {key: options[key] for key in named if key in options and key != bare}
    return ", ".join([*first, _listed(rest, " ")] if rest else first)


def _counted(counts: dict[str, Any]) -> str:
    known = [(kind, n) for kind, value in counts.items() if (n := count(value)) is not None]
    return ", ".join(text(f"report.run.counts.{kind}", n=n) for kind, n in known)


def _listed(values: dict[str, Any], between: str) -> str:
    return ", ".join(f"{name}{between}{in_a_line(value)}" for name, value in values.items())


def _sharing(run: RunFiles) -> str:
    tokens = _tokens(run)
    if tokens is None:
        return ""
    plain, tree = tokens
    return text("report.run.tokens", tree=tree, plain=plain, times=plain / tree)


def _backend(run: RunFiles) -> str:
    backend, reason = (in_a_line(run.record.get(key)) for key in ("backend", "backend_reason"))
    if not backend or not reason:
        return backend
    return text("report.run.backend", backend=backend, reason=reason)


def _checked(run: RunFiles) -> dict[str, Any]:
    """The preflight check, which runs of version 0.1 called the gate."""
    return section(run.record, "preflight") or section(run.record, "gate")


def _preflight(run: RunFiles) -> str:
    found = _checked(run)
    pairs, apart = count(found.get("pairs")), number(found.get("difference"))
    tolerance = number(found.get("tolerance"))
    if pairs is None or apart is None:
        return ""
    unit = in_a_line(found.get("unit")) or "an answer"
    unit = text_or(f"report.run.units.{unit}", unit)
    key, allowed = ("paths", "") if tolerance is None else ("paths_allowed", short(tolerance))
    values = {"difference": short(apart), "unit": unit, "tolerance": allowed}
    return text(f"report.run.{key}", n=pairs, **values)


def _initial_policy(run: RunFiles) -> str:
    found = _checked(run)
    loss, reward = number(found.get("loss")), number(found.get("largest_reward"))
    if loss is None:
        return ""
    key = "initial_ln2" if starts_at_ln2(run) else "initial"
    initial = text(f"report.run.{key}", loss=loss, ln2=math.log(2))  # six digits show ln 2
    if reward is None:
        return initial
    return f"{initial}, {text('report.run.largest_reward', reward=short(reward))}"


def _versions(run: RunFiles) -> str:
    likelier = {"likelier": run.record["likelier"]} if run.record.get("likelier") else {}
    return _listed({**likelier, **section(run.record, "versions")}, " ")


def in_a_line(value: Any) -> str:
    """Any value of a config or record in a line; None and empty ones are left out."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(in_a_line(item) for item in value)
    return str(value)
