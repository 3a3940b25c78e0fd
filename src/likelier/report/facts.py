"""What the run was, as label and value: command, model, data, sharing, the checks at step 0."""

import math
from typing import Any

from likelier.report.loss import starts_at_ln2
from likelier.report.read import RunFolder, count, number, section
from likelier.report.verdict import progress
from likelier.report.words import percent, short

Fact = tuple[str, str]


def run_facts(run: RunFolder) -> list[Fact]:
    """The facts that the folder holds, in reading order."""
    groups = (_what, _settings, _data, _reference, _sharing, _gate, _where)
    return [(label, value) for group in groups for label, value in group(run) if value]


def _what(run: RunFolder) -> list[Fact]:
    trainable, parameters = count(run.record.get("trainable")), count(run.record.get("parameters"))
    size = ""
    if trainable and parameters:
        share = percent(trainable / parameters)
        size = f"{trainable:,} of {parameters:,} parameters trained ({share})"
    done, planned = progress(run)
    steps = f"{done:,}" if done is not None else ""
    return [
        ("Command", _text(run.record.get("command"))),
        ("Model", _text(section(run.config, "model").get("path"))),
        ("Size", size),
        ("Steps", f"{steps} of {planned:,}" if steps and planned else steps),
    ]


def _settings(run: RunFolder) -> list[Fact]:
    """The settings that most decide a run; config.yaml, shown below them, has all."""
    adapter, loss = section(run.config, "adapter"), section(run.config, "loss")
    optim, train = section(run.config, "optim"), section(run.config, "train")
    return [
        ("Adapter", _options(adapter, "kind", *(key for key in adapter if key != "kind"))),
        ("Loss", _options(loss, "name", *(key for key in loss if key != "name"))),
        ("Learning rate", _options(optim, "lr", "schedule", "warmup")),
        ("Length", _options(train, "", "epochs", "steps", "pairs_per_step", "seed")),
    ]


def _options(options: dict[str, Any], bare: str, *named: str) -> str:
    """``lora, r 16, alpha 32``: the value of ``bare``, then each key with its value."""
    first = [_text(options[bare])] if options.get(bare) is not None else []
    return ", ".join(first + [f"{key} {_text(options[key])}" for key in named if key in options])


def _data(run: RunFolder) -> list[Fact]:
    data = section(run.record, "data")
    held_out = section(data, "eval")
    pairs = [
        (count(run.record.get("pairs")), "to train on"),
        (count(run.record.get("eval_pairs")), "held out"),
    ]
    return [
        ("Rows", _rows(data)),
        ("Rows held out", _rows(held_out)),
        ("Pairs", _counted(pairs)),
        ("Noticed in the data", _findings(data)),
        ("Noticed in the held-out data", _findings(held_out)),
    ]


def _rows(counts: dict[str, Any]) -> str:
    words = {"rows": "read", "used": "used", "dropped": "dropped", "trimmed": "trimmed"}
    return _counted([(count(counts.get(key)), word) for key, word in words.items()])


def _findings(counts: dict[str, Any]) -> str:
    return ", ".join(f"{code}: {_text(n)}" for code, n in section(counts, "findings").items())


def _counted(counts: list[tuple[int | None, str]]) -> str:
    return ", ".join(f"{n:,} {what}" for n, what in counts if n is not None)


def _reference(run: RunFolder) -> list[Fact]:
    reference = section(run.record, "reference")
    answers = count(reference.get("answers"))
    scored = f"{answers:,} answers scored once, before training" if answers is not None else ""
    return [
        ("Reference", scored),
        ("Reference weights", _text(reference.get("identity"))),
        ("Reference column", _text(reference.get("column"))),
    ]


def _sharing(run: RunFolder) -> list[Fact]:
    tokens = section(run.record, "tokens")
    plain, tree = count(tokens.get("plain")), count(tokens.get("tree"))
    shared = ""
    if plain and tree:
        shared = (
            f"{tree:,} computed; without sharing common beginnings "
            f"{plain:,}, which is {plain / tree:.2f} times as many"
        )
    reason = _text(run.record.get("backend_reason"))
    backend = _text(run.record.get("backend"))
    return [
        ("Tokens", shared),
        ("Backend", f"{backend} ({reason})" if backend and reason else backend),
    ]


def _gate(run: RunFolder) -> list[Fact]:
    gate = section(run.record, "gate")
    pairs, apart = count(gate.get("pairs")), number(gate.get("difference"))
    tolerance, loss = number(gate.get("tolerance")), number(gate.get("loss"))
    reward = number(gate.get("largest_reward"))
    same = start = ""
    if pairs is not None and apart is not None:
        allowed = f"; {short(tolerance)} is allowed" if tolerance is not None else ""
        same = (
            f"{pairs:,} pairs scored by the fast and by the plain path differ by "
            f"{short(apart)} nats {_text(gate.get('unit')) or 'an answer'}{allowed}"
        )
    if loss is not None:
        # Six digits: that it is ln 2 is the point.
        start = f"loss {loss:.6f}"
        if starts_at_ln2(run):
            start += f" (ln 2 is {math.log(2):.6f})"
        start += f", largest reward {short(reward)}" if reward is not None else ""
    return [("Checked before step 1", same), ("At the start", start)]


def _where(run: RunFolder) -> list[Fact]:
    versions = section(run.record, "versions")
    likelier = {"likelier": run.record["likelier"]} if run.record.get("likelier") else {}
    named = [f"{name} {_text(version)}" for name, version in {**likelier, **versions}.items()]
    threads = count(run.record.get("threads"))
    return [
        ("Device", _text(run.record.get("device"))),
        ("Threads", f"{threads}" if threads else ""),
        ("Versions", ", ".join(named)),
    ]


def _text(value: Any) -> str:
    """Any value of a config or record in a line; None and empty ones are left out."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return str(value)
