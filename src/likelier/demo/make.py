"""The demo from end to end: a base model from nothing, preferences, an ordinary run, evidence."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likelier.base.files import make_folder, read_lines, write_json, write_lines
from likelier.base.terminal import say
from likelier.config import config_from
from likelier.demo.base import Recipe, base_folder, base_model
from likelier.demo.evidence import interrogate, outcome
from likelier.demo.world import PairText, Split, pairs
from likelier.report.page import write_report
from likelier.run import train
from likelier.training.run_folder import RunFolder

TRAIN_FILE, HELD_OUT_FILE = "train.jsonl", "heldout.jsonl"
PAIRS_EACH = 6  # about each topic that pairs name, in each language


def make(
    out: Path, seed: int, recipe: Recipe | None, began: float, lang: str | None = None
) -> Path:
    """Make the demo in ``out``, or resume it where it was stopped; returns ``out``.

    Its pairs are written to ``<out>-pairs``. Added to the files of an ordinary run are
    ``samples.jsonl`` (answers before and after, side by side) and ``outcome.json`` (shares with
    intervals; ``seconds`` since ``began``, on `time.perf_counter`'s clock), and the report shows
    them.
    """
    recipe = recipe or Recipe(seed=seed)
    files = out.with_name(f"{out.name}-pairs")
    config = config_from(settings(base_folder(recipe), files, out, seed, lang))
    RunFolder(config).finished()  # refuses a folder of something else at once
    base = base_model(recipe)
    make_folder(files)
    write_pairs(files / TRAIN_FILE, "train", seed)
    write_pairs(files / HELD_OUT_FILE, "eval", seed)
    run = train(config)
    say("sampling answers of the base model and of the trained model")
    topics, rows = interrogate(base, run.model, seed)
    evaluation = [row for row in read_lines(out / "metrics.jsonl") if "eval_pairs" in row][-1]
    shares = outcome(topics, rows, evaluation, seed)
    write_lines(out / "samples.jsonl", rows)
    seconds = round(time.perf_counter() - began, 1)
    write_json(out / "outcome.json", {**shares, "seconds": seconds, "seed": seed})
    for line in _describe(shares):
        say(line)
    say(f"report, after {seconds:.0f} seconds: {write_report(out)}")
    return out


def write_pairs(path: Path, split: Split, seed: int) -> None:
    """Write the preferences about the topics of one split as a JSONL file of chats."""
    write_lines(path, chat_rows(split, PAIRS_EACH, seed))


def chat_rows(split: Split, per_topic: int, seed: int) -> list[dict[str, Any]]:
    """Preferences about the topics of one split, as rows of messages."""
    return [_as_chat(pair) for pair in pairs(split, per_topic, seed)]


def _as_chat(pair: PairText) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": pair.prompt}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def settings(
    base: Path, files: Path, out: Path, seed: int, lang: str | None = None
) -> dict[str, Any]:
    """The config of the run, as a user would write it: full tuning.

    The learning rate is far above what large models take, because the model is far smaller.
    Pushed further (beta 0.1 at 5e-4), pairs stay perfect and the text of some seeds breaks.
    """
    return {
        "model": {"path": str(base)},
        "data": {"train": str(files / TRAIN_FILE), "eval": str(files / HELD_OUT_FILE)},
        "adapter": {"kind": "none"},
        "loss": {"name": "sigmoid", "beta": 0.3},
        "optim": {"lr": 4e-4},
        "train": {"epochs": 4, "pairs_per_step": 32, "eval_every": 18, "seed": seed},
        "eval": {"samples": 0},  # the demo asks questions of its own
        "out": str(out),
        **({"lang": lang} if lang else {}),
    }


def _describe(shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the demo found, in lines for the terminal; 95 % intervals in brackets."""

    def percent(name: str) -> str:
        share = shares[name]
        return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"

    what = {
        "preferred": "answers in the preferred manner",
        "named": "answers that name the right topic",
        "stopped": "answers that end by themselves",
    }
    return [
        *(
            f"{text}: {percent(f'{name}_before')} before, {percent(f'{name}_after')} after"
            for name, text in what.items()
        ),
        f"held-out pairs moved towards the chosen answer: {percent('heldout_accuracy')}",
    ]
