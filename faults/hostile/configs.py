"""Hostile configs: YAML that grows, keys that are none, values out of range, secrets."""

from collections.abc import Callable
from functools import partial
from typing import Any

import yaml

from faults.hostile.case import CANARY, Room, hostile

configs = partial(hostile, "configs")
GOOD = """\
model: {path: base}
data: {train: pairs.jsonl, eval: null}
adapter: {kind: none}
train: {steps: 2, pairs_per_step: 4, tokens_per_batch: 256}
out: out
"""
CONTROL = "\x1b]0;evil\x07\x9b31m\u202e"


def text(given: str | bytes) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        room.lay_out_the_rest()
        content = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given
        (room.here / "config.yaml").write_bytes(content)
        return ["train", "config.yaml"]

    return build


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)
for _name, _text in {
    "a bomb of anchors": LAUGHS + GOOD,
    "an anchor in itself": "a: &a [*a]\n" + GOOD,
    "anchors": GOOD.replace("{path: base}", "&m {path: base}") + "reference: *m\n",
    "a merge": "a: &a {path: base}\n" + GOOD.replace("{path: base}", "{<<: *a}"),
    "an object of Python": "!!python/object/apply:os.system ['touch $MARKER']",
    "a name of Python": GOOD + "x: !!python/name:os.system\n",
    "a new object of Python": GOOD + "x: !!python/object/new:os.system ['touch $MARKER']\n",
    "a tag of its own": GOOD + "x: !evil {a: 1}\n",
    "a tag of bytes": GOOD + "x: !!binary aGVsbG8=\n",
    "a tag of a set": GOOD + "x: !!set {a, b}\n",
    "tabs": GOOD.replace("model: {path: base}", "model:\n\tpath: base"),
    "a key twice": GOOD + "out: other\n",
    "a key twice below": GOOD.replace("{path: base}", "{path: base, path: other}"),
    "two documents": GOOD + "---\n" + GOOD,
    "a list": "[1, 2]",
    "a text": "evil",
    "a number": "7",
    "nothing": "",
    "null": "null",
    "a bracket without an end": "model: {path: base",
    "nested 100,000 deep": "a: " + "[" * 100_000,
    "nested 100,000 deep by lines": "".join(" " * n + "a:\n" for n in range(2_000)),
    "a key of a list": GOOD + "? [1, 2]\n: 3\n",
    "a key of a number": GOOD + "7: 3\n",
    "a key with control bytes": GOOD + '"\\e[31mevil\\a": 3\n',
    "a value with control bytes": GOOD.replace("out: out", 'out: "\\e[31mevil\\a"'),
    "raw control bytes": GOOD + f"x: {CONTROL}\n",
    "not UTF-8": GOOD.encode() + b"x: \xb0\xa1\n",
    "UTF-16": "".join(GOOD).encode("utf-16"),
    "a byte of 0": GOOD + "x: a\0b\n",
    "surrogates": GOOD + 'x: "\\ud800"\n',
    "a number of 10,000 digits": GOOD.replace("steps: 2", "steps: " + "9" * 10_000),
    "numbers in base 60": GOOD.replace("steps: 2", "steps: 1:30:00"),
    "octal": GOOD.replace("steps: 2", "steps: 010"),
    "underscores": GOOD.replace("steps: 2", "steps: 1_000_000_"),
    "a date": GOOD.replace("steps: 2", "steps: 2024-01-01"),
    "10 MB of comment and then an error": "# " + "x" * 10**7 + "\n" + GOOD + "x: 1\n",
}.items():
    configs(f"YAML: {_name}", 2)(text(_text))
configs("YAML: yes, which is a text", 66)(text(GOOD.replace("eval: null", "eval: yes")))


def keys(code: int | tuple[int, ...], name: str, **changes: Any) -> None:
    configs(name, code)(lambda room: room.train(**changes))


for _key, _values in {
    "loss__beta": [0, -1, float("nan"), float("inf"), 1e9, "0.1x", True, None, [0.1], "\x1b[31m"],
    "optim__lr": [-1, 0, float("nan"), float("inf"), "fast", 1e9, "1e-6 x"],
    "optim__warmup": [-1, 3, "x"],
    "optim__max_grad_norm": [0, -1, float("nan")],
    "train__steps": [0, -1, 1.5, 10**30, "2x", True],
    "train__pairs_per_step": [0, -1, 2.5, "4x"],
    "train__tokens_per_batch": [0, -1, "many"],
    "train__save_every": [0, -1],
    "train__keep": [0, -1],
    "train__seed": [-1, 10**40, "x"],
    "data__max_length": [0, 1, -1, "1k"],
    "data__eval": ["0%", "100%", "-5%", "200%", 0.5, 7],
    "data__overlong": ["evil", 7],
    "model__dtype": ["evil", "int8", 7],
    "adapter": [{"kind": "evil"}, {"kind": "lora", "r": 0}, {"kind": "lora", "alpha": -1},
                {"kind": "lora", "targets": []}, {"kind": "none", "r": 4}, "lora", 7],
    "lang": ["xx", 7],
}.items():  # fmt: skip
    for _value in _values:
        keys(2, f"{_key.replace('__', '.')}: {str(_value)[:24]!r}", **{_key: _value})

keys(2, "an unknown key", evil=1)
keys(2, "a key that is nearly one", train__step=3)
keys(2, "a key of another trainer", learning_rate=1e-5)
keys(2, "a key with control bytes below another", **{f"train__{CONTROL}": 1})
keys(2, "steps and epochs", train__epochs=1)
keys(2, "a revision of a folder", model__revision="main")
keys(2, "a key that this run does not read", model__save_dtype="float32", adapter={"kind": "lora"})
keys(2, "a word that the template does not read", data__template={"evil": 1})
keys(2, "10^9 pairs a step", train__pairs_per_step=10**9)
keys(2, "10^30 pairs a step", train__pairs_per_step=10**30)
keys(2, "a loss of no kind", loss={"name": "\x1b[31mevil"})
keys(2, "smoothing of one half", loss={"name": "sigmoid", "label_smoothing": 0.5})

# ---- where it is written -------------------------------------------------------------------------

keys(2, "out with a line break", out="a\nb")
keys(2, "out of control bytes", out=CONTROL)
keys((2, 73), "out of 5,000 letters", out="a" * 5_000)
keys((2, 73), "out of nothing", out="")
keys((2, 73), "out with a byte of 0", out="a\0b")
keys(2, "out of a number", out=7)
keys(73, "out below a file", out="pairs.jsonl/out")
keys(73, "out is a file", out="pairs.jsonl")
keys(73, "out is a device", out="/dev/null")
keys(73, "out below a device", out="/proc/evil")


@configs("out is a link to itself", 73)
def _(room: Room) -> list[str]:
    (room.here / "out").symlink_to("out")
    return room.train()


@configs("out is here", 73)
def _(room: Room) -> list[str]:
    return room.train(out=".")


@configs("a lock that links to a file", 73, started=True)
def _(room: Room) -> list[str]:
    (room.here / "precious").write_text("x" * 1000)
    (room.here / "out").mkdir()
    (room.here / "out" / ".lock").symlink_to("../precious")
    return room.train()


@configs("a lock that is a pipe", 73, started=True)
def _(room: Room) -> list[str]:
    import os

    (room.here / "out").mkdir()
    os.mkfifo(room.here / "out" / ".lock")
    return room.train()


# ---- the words -----------------------------------------------------------------------------------

for _name, _words in {
    "no such command": ["evil"],
    "a command of control bytes": [CONTROL],
    "an option of control bytes": ["train", f"--{CONTROL}"],
    "an argument of control bytes": ["train", "config.yaml", f"{CONTROL}=1"],
    "a key without a value": ["train", "config.yaml", "loss.beta="],
    "a key of nothing": ["train", "config.yaml", "=1"],
    "a key of dots": ["train", "config.yaml", "...=1"],
    "a value of YAML": ["train", "config.yaml", "loss.beta=!!python/object/apply:os.system [a]"],
    "a value nested 100,000 deep": ["train", "config.yaml", "loss.beta=" + "[" * 100_000],
    "no value of an option": ["check", "pairs.jsonl", "--model"],
    "a gate of nothing": ["check", "pairs.jsonl", "--gate", "evil<=1"],
    "a gate of control bytes": ["check", "pairs.jsonl", "--gate", f"{CONTROL}<=1"],
    "a column of nothing": ["check", "pairs.jsonl", "--columns", "evil"],
    "a number of text": ["show", "pairs.jsonl", "--model", "base", "-n", "x"],
    "no such loss": ["losses", f"evil{CONTROL}"],
}.items():

    @configs(f"words: {_name}", 2)
    def _(room: Room, words: list[str] = _words) -> list[str]:
        room.train()
        return words


for _name, (_code, _words) in {
    "no config": (66, ["train", "nowhere.yaml"]),
    "a config that is a folder": (66, ["train", "base"]),
    "a report of nothing": (66, ["report", "nowhere"]),
    "a report of control bytes": (66, ["report", CONTROL]),
    "a report of a model": (66, ["report", "base"]),
    "a row that is not there": (66, ["show", "pairs.jsonl", "--model", "base", "--row", "999"]),
    "a page in a folder that is missing": (73, ["check", "pairs.jsonl", "--html", "no/a.html"]),
    "a page that is a folder": (73, ["check", "pairs.jsonl", "--html", "base"]),
    "a copy that is the data": ((2, 73), ["check", "pairs.jsonl", "--fix", "pairs.jsonl"]),
    "scores over the data": (
        (2, 73), ["score", "pairs.jsonl", "--model", "base", "--out", "pairs.jsonl"]),
    "scores into the model": ((2, 73), [
        "score", "pairs.jsonl", "--model", "base", "--out", "base/config.json"]),
}.items():  # fmt: skip

    @configs(f"words: {_name}", _code)
    def _(room: Room, words: list[str] = _words) -> list[str]:
        room.train()
        return words


for _name, _make in {"a FIFO": "fifo", "a link to /dev/zero": "zero", "a folder": "folder"}.items():

    @configs(f"config.yaml is {_name}", (2, 66))
    def _(room: Room, make: str = _make) -> list[str]:
        import os

        room.lay_out_the_rest()
        path = room.here / "config.yaml"
        if make == "fifo":
            os.mkfifo(path)
        elif make == "zero":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return ["train", "config.yaml"]


# ---- secrets -------------------------------------------------------------------------------------

ADDRESS = f"https://user:{CANARY}@evil.kr/data.jsonl"
QUERY = f"https://evil.kr/data.jsonl?token={CANARY}&x=1"
keys((2, 66), "a secret in an address of data", data__train=ADDRESS)
keys((2, 66), "a secret in a query of data", data__train=QUERY)
keys((2, 66), "a secret in an address of a model", model={"path": ADDRESS})
keys((2, 66), "a secret in a query of a model", model={"path": QUERY})
keys((2, 66), "a secret in a revision", model={"path": "org/m", "revision": CANARY})
keys((2, 66), "a secret in a reference", reference={"path": ADDRESS})
keys((0, 2, 73), "a secret in out", out=f"out/{CANARY}")
keys(2, "a secret as an unknown key's value", hub_token=CANARY)
keys(2, "a secret in a value out of range", loss__beta=CANARY)


@configs("a secret in an argument", 2)
def _(room: Room) -> list[str]:
    return [*room.train(), f"hub_token={CANARY}"]


@configs("a secret in broken YAML", 2)
def _(room: Room) -> list[str]:
    words = room.train()
    (room.here / "config.yaml").write_text(f"token: {{{CANARY}\n")
    return words


@configs("a secret in an argument that is read", 0)
def _(room: Room) -> list[str]:
    # Recorded as the command that was given.
    room.train()
    tree = yaml.safe_load((room.here / "config.yaml").read_text())
    tree["model"]["path"] = "nowhere"
    (room.here / "config.yaml").write_text(yaml.safe_dump(tree))
    (room.here / "base" / "README.md").write_text(CANARY)
    return ["train", "config.yaml", "model.path=base"]
