"""A config of TRL, Axolotl or LLaMA-Factory in our words, with an answer for each of its keys."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from likelier.base.errors import ConfigError
from likelier.base.foreign import without_secrets
from likelier.config.other_trainers import MARKS, NEEDLESS, RENAMED, trainer_of
from likelier.config.recipe_data import SOURCE_KEYS, flat, put_data
from likelier.config.recipe_parts import NO_EFFECT, put_loss, put_run
from likelier.config.strict_yaml import flow, parse, plain

_TABLE = Path(__file__).with_suffix(".yaml")
FACTS = parse(_TABLE.read_text("utf-8"), _TABLE.name)
PROGRAMS: dict[str, Any] = {name: FACTS[name] for name in MARKS}

_HARMS = frozenset(FACTS["harms"].split())
_KNOWN = frozenset(
    {*RENAMED, *NEEDLESS, *_HARMS, *FACTS["called_alike"], *FACTS["others"].split()}
    | {name for notes in FACTS["notes"].values() for name in notes}
)
_OFF: tuple[Any, ...] = (None, False, 0, "", "none", [], {})
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False,
          "null": None}  # fmt: skip

_SECRET = re.compile(r"(^|hub_)token$|api_key$")

AnswerKind = Literal["taken", "converted", "different", "not there", "unknown"]


@dataclass(frozen=True)
class KeyAnswer:
    """What became of one key of theirs: ``ours`` is what was written for it, ``text`` says why.

    ``harms``: without it, other weights come out than the author of the file meant.
    """

    key: str
    value: str
    kind: AnswerKind
    ours: str = ""
    text: str = ""
    harms: bool = False


@dataclass(frozen=True)
class Translation:
    """A config in our words, not yet checked, and all that is to be said of where it comes from.

    ``assumed`` are our keys that follow from what their program takes where the file is silent.
    """

    program: str
    checked: str
    config: dict[str, Any]
    answers: tuple[KeyAnswer, ...]
    assumed: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def as_meant(self) -> bool:
        """Whether it trains what the file's author meant, differences of the programs aside."""
        return not any(answer.harms for answer in self.answers)


class Draft:
    """A config while it is written: our keys with their values, theirs that each comes from, and
    what is said of theirs.
    """

    def __init__(self, program: str, file: Mapping[str, Any], folder: Path):
        self.program, self.file, self.folder = program, flat(file), folder
        foreign = {key for key in file if _whose_else(program, key)}
        given = {k: value for k, value in file.items() if value is not None and k not in foreign}
        self.theirs: dict[str, Any] = PROGRAMS[program]["defaults"] | given
        self.tree: dict[str, Any] = {}
        self.of: dict[str, list[str]] = {}
        self.said: dict[str, tuple[AnswerKind, str, bool]] = {}

    def put(self, key: str, value: Any, *theirs: str) -> None:
        """Write a key of ours, which comes from these keys of theirs."""
        self.tree[key] = value
        for name in theirs:
            self.of.setdefault(name, []).append(key)

    def say(self, name: str, kind: AnswerKind, text: str, harms: bool = False) -> None:
        """KeyAnswer a key of theirs, where the file has it."""
        self.said[name] = (kind, text, harms)

    def first(self, *names: str) -> Any:
        """The value of the first of these keys that is on, or None."""
        return next((self.theirs[name] for name in names if self.theirs.get(name)), None)

    def given(self, *names: str) -> Any:
        """The value of the first of these keys that is there, be it 0, or None."""
        return next((self.theirs[name] for name in names if name in self.theirs), None)


def translate(
    file: Mapping[str, Any], program: str | None, folder: Path, processes: int = 1
) -> Translation:
    """Their config in our words.

    Args:
        file: the mapping of their file.
        program: whose it is, by the names of `PROGRAMS`; None: its keys tell.
        folder: where the file lies, beside which its own files are looked for.
        processes: how many processes it was launched with.

    Raises:
        ConfigError: it cannot be told whose config this is, or nothing here trains what it does.
    """
    theirs = {key: _value(value) for key, value in file.items()}
    theirs |= {key: _number(key, theirs[key]) for key in FACTS["numbers"].split() if key in theirs}
    program = program or trainer_of(set(theirs))
    if program is None:
        what = "it cannot be told whose config this is: too few of its keys are of one program"
        raise ConfigError(
            what, hint="say it with --from trl, --from axolotl or --from llama-factory"
        )
    draft = Draft(program, theirs, folder)
    put_loss(draft)
    put_data(draft, FACTS["row_types"])
    put_run(draft, FACTS)
    if "train.pairs_per_step" in draft.tree and "batch_size" not in draft.file:  # Axolotl's is all
        draft.tree["train.pairs_per_step"] *= processes
    tree: dict[str, Any] = {}
    for section in FACTS["order"].split():
        for key, value in draft.tree.items():
            above, _, leaf = key.rpartition(".")
            if (above or key) == section:
                (tree.setdefault(above, {}) if above else tree)[leaf] = value
    config = without_unread(tree)
    unread = {f"{a}.{key}" for a in tree if a in ("train", "reference") for key in tree[a]}
    unread -= {f"{a}.{key}" for a in config if a in ("train", "reference") for key in config[a]}
    draft.tree = {key: value for key, value in draft.tree.items() if key not in unread}
    named = {key for name in draft.file for key in draft.of.get(name, ())}
    return Translation(
        program=program,
        checked=PROGRAMS[program]["checked"],
        config=config,
        answers=tuple(_answer(draft, name) for name in draft.file),
        assumed=tuple(key for key in draft.tree if key not in named and key != "loss"),
        differences=tuple(PROGRAMS[program]["differences"]),
    )


def _value(value: Any) -> Any:
    """What their readers make of a word that ours leaves a text."""
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, dict):
        return {key: _value(below) for key, below in value.items()}
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


def _number(key: str, value: Any) -> float | None:
    """Theirs may stand in quotes: YAML before 1.2 takes 5e-7 for a text."""
    number = plain(value) if isinstance(value, str) else value
    if number is False:  # off
        return 0
    if number is None or (isinstance(number, int | float) and number is not True):
        return number
    raise ConfigError(
        f"{flow(value)} is not a number", where=key, hint="write one, or leave it out"
    )


def without_unread(tree: Mapping[str, Any], given: Container[str] = ()) -> dict[str, Any]:
    """The config without keys that would have no effect, which is an error here and not there.
    Those that are ``given`` by the user stay.
    """
    train, reference = tree.get("train", {}), tree.get("reference", {})
    unread = {
        "train.epochs": train.get("steps") is not None,
        "train.eval_every": tree.get("data", {}).get("eval") is None,
        "train.keep": train.get("save_every", 1) is None,
        "reference.update_mix": reference.get("update_every") is None,
    }
    kept = {
        section: {
            key: value
            for key, value in below.items()
            if not unread.get(f"{section}.{key}") or f"{section}.{key}" in given
        }
        for section, below in tree.items()
        if isinstance(below, Mapping)
    }
    return {section: kept.get(section, below) for section, below in tree.items()}


# ---- the answers -------------------------------------------------------------------------------


def _answer(draft: Draft, name: str) -> KeyAnswer:
    """What became of a key of the file."""
    value, text, harms = draft.file[name], "", False
    kind: AnswerKind = "not there"
    ours = _written(draft, name)
    leaf = name.rpartition("].")[2]
    note = _note(draft.program, leaf)
    if name in draft.said:
        kind, text, harms = draft.said[name]
    elif _whose_else(draft.program, name) or not (ours or _is_known(name)):
        kind, text = "unknown", _nearest(draft, name)
    elif value in _OFF:
        kind, text = "taken", "" if ours else "off, here too"
    elif note:
        kind, text = note
        harms = leaf in _HARMS
    elif ours:
        kind = "taken" if list(ours.values()) == [value] else "converted"
    else:
        text = NEEDLESS.get(name, "").removeprefix("leave it out").removeprefix(": ")
        harms = name in _HARMS
        if not text and name in RENAMED:
            kind = "taken"
        text = text or (NO_EFFECT if name in RENAMED else "has no counterpart here")
    written = ", ".join(f"{key}: {flow(value)}" for key, value in ours.items())
    secret = _SECRET.search(name) and isinstance(value, str)
    shown = "***" if secret else without_secrets(flow(value))
    return KeyAnswer(name, shown, kind, written, text, harms)


def _written(draft: Draft, name: str) -> dict[str, Any]:
    """Our keys that a key of theirs became, with their values; of a mixture all its parts."""
    loss = draft.tree["loss"]
    tree = draft.tree | {f"loss.{key}": value for key, value in loss.items()}
    keys = [
        "loss.parts" if key.startswith("loss.") and key not in tree and "parts" in loss else key
        for key in draft.of.get(name, ())
    ]
    return {key: tree[key] for key in keys if key in tree}


def _note(program: str, name: str) -> tuple[AnswerKind, str] | None:
    if text := PROGRAMS[program]["differs"].get(name):
        return "different", text
    return next(
        ((kind, notes[name]) for kind, notes in FACTS["notes"].items() if name in notes), None
    )


def _is_known(name: str) -> bool:
    leaf = name.rpartition("].")[2]
    return leaf in _KNOWN or (leaf != name and leaf in SOURCE_KEYS)


def _whose_else(program: str, name: str) -> str | None:
    """The one other program that has this key. TRL's marks are keys of transformers."""
    others = (who for who in MARKS if who not in (program, "TRL") and name in MARKS[who])
    return next(others, None) if name not in MARKS[program] else None


def _nearest(draft: Draft, name: str) -> str:
    if who := _whose_else(draft.program, name):
        return f"a key of {who}, which {draft.program} does not read"
    leaf = name.rpartition("].")[2]
    known = sorted(_KNOWN if leaf == name else SOURCE_KEYS)
    near = get_close_matches(leaf, known, n=1)
    return f"not known of {draft.program}" + (f"; did it mean {near[0]}?" if near else "")
