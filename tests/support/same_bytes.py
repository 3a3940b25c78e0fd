"""Prove that a change of the code lost nothing: record what two versions make, and compare it.

    python -m tests.support.same_bytes record --python OLD/.venv/bin/python --out old
    python -m tests.support.same_bytes record --python .venv/bin/python --out new
    python -m tests.support.same_bytes compare old new

`record` does the runs and commands of `fixed_runs` in three minutes, always in one and the same
folder, so that paths are equal. `compare` names every difference and ends with 1 if one is
unexpected. Weights, logs, pair logs, reference log-probs, configs, scores and figures must be
equal; words may differ and are shown as a diff, as long as the figures in them are the same.
``run.json``, times, reports and model cards are not compared: they hold the time, the version and
the machine.
"""

import argparse
import difflib
import fcntl
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from safetensors import safe_open
from tests.support.fixed_runs import Likelier, run_everything, write_inputs

WORK = Path(tempfile.gettempdir()) / "likelier-same-bytes"

# What was changed on purpose: the old word, the new one (None: gone), and why.
INTENDED: tuple[tuple[str, str | None, str], ...] = (
    ("tokens_per_pass", "tokens_per_batch", "config key: the field says batch"),
    ("compile", None, "config key: compiled layers did not pay beyond the noise"),
    ("ledger", "pair_log", "folder of a run: a log of pairs is not a ledger"),
    ("mend", "hint", "key of check --json: the usual word for advice"),
    ("told", "description", "key of check --json: the format in one line"),
)
RENAMED = {old: new for old, new, _ in INTENDED}
# Keys of JSON outputs whose values are sentences. Their wording may differ, their figures not.
SENTENCES = {"message", "hint", "why", "cure", "says", "style", "description"}
# Ends of intervals in check --json: z is written with more digits, which the ninth shows.
NEARLY = {"low", "high"}
# Words that became words with a figure in them: unpaired examples have a label, not a thumb.
FIGURES_IN_WORDS = {
    "thumbs up": "label 1",
    "thumbs down": "label 0",
    "* ups": "* (number of 1s)",
    "* downs": "* (number of 0s)",
}
NOT_COMPARED = {"run.json", "timing.jsonl", "report.html", ".lock",
                "adapter/README.md", "model/README.md"}  # fmt: skip
SHOWN = 10  # differences of one run or output that are printed
FIGURE = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass
class Verdict:
    """What `compare` found: unexpected differences, other words, and what only the new one has."""

    unexpected: list[str] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)

    def values(self, where: str, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Compare two flat mappings from names to values."""
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                self.unexpected.append(f"{where}: {name} is gone")
            elif name not in old:
                self._extra(f"{where}: {name}", name, old)
            elif old[name] != new[name]:
                last = re.split(r"[.\[]", name)[-1]
                if last in NEARLY and math.isclose(old[name], new[name], rel_tol=1e-7):
                    continue
                if last in SENTENCES and isinstance(old[name], str) and isinstance(new[name], str):
                    self.text(f"{where}: {last}", old[name], new[name])
                else:
                    self.unexpected.append(
                        f"{where}: {name}: {_short(old[name])} -> {_short(new[name])}"
                    )

    def _extra(self, shown: str, name: str, old: dict[str, Any]) -> None:
        """A new name is expected below an alternative, such as a loss, that the old has not."""
        above = [name[: match.end()] for match in re.finditer(r"<[^>]*>", name)]
        if any(not any(known.startswith(prefix) for known in old) for prefix in above):
            added = min(p for p in above if not any(known.startswith(p) for known in old))
            shown = shown.replace(name, added)
            self.added += [] if shown in self.added else [shown]
        elif name.endswith(".description"):  # a key that had none
            self.words.setdefault(shown, ["is new"])
        else:
            self.unexpected.append(f"{shown} is new")

    def text(self, where: str, old: str, new: str) -> None:
        """Compare two texts: other words are kept as a diff, other figures are unexpected."""
        for before, after in FIGURES_IN_WORDS.items():
            old = old.replace(before, after)
        if old == new:
            return
        diff = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))
        self.words.setdefault(where, [])
        self.words[where] += [line for line in diff[2:] if line not in self.words[where]]
        if sorted(FIGURE.findall(old)) != sorted(FIGURE.findall(new)):
            self.unexpected.append(
                f"{where}: figures in the text differ: {_short(' | '.join(diff[2:]))}"
            )


def record(python: Path, out: Path) -> None:
    """Run everything with the likelier of a Python, and keep the results in a folder."""
    if out.exists():
        sys.exit(f"error: {out} exists; name another folder or delete it")
    python = python.absolute()  # not resolved: a link into an environment is the environment
    with WORK.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second recording waits for its turn
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir()
        write_inputs(WORK)
        inputs = {
            str(path.relative_to(WORK)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(WORK.rglob("*"))
            if path.is_file()
        }
        version = _version(python)
        codes = run_everything(Likelier(python, WORK))
        about = {"version": version, "inputs": inputs, "exit codes": codes}
        (WORK / "record.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        shutil.copytree(WORK, out, ignore=shutil.ignore_patterns("cache", "report.html"))
        shutil.rmtree(WORK)
    failed = [name for name, code in codes.items() if name.startswith("train ") and code]
    print(f"{out}: {version}; {len(codes)} commands")
    if failed:
        sys.exit(f"error: these failed, see {out}/outputs: {', '.join(failed)}")


def _version(python: Path) -> str:
    """Which commit and which packages, in one line."""
    program = (
        "import likelier, torch, transformers, peft; print(likelier.__path__[0]);"
        "print('likelier', likelier.__version__, 'torch', torch.__version__,"
        " 'transformers', transformers.__version__, 'peft', peft.__version__)"
    )
    told = subprocess.run([python, "-c", program], cwd=WORK, capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"error: {python} cannot import likelier\n{told.stderr}")
    source, packages = told.stdout.splitlines()
    git = ["git", "-C", source, "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "no commit"
    return f"{packages}, commit {commit}"


def compare(old: Path, new: Path) -> Verdict:
    """Every difference of two recordings."""
    verdict = Verdict()
    about = [json.loads((folder / "record.json").read_text("utf-8")) for folder in (old, new)]
    verdict.values("inputs", about[0]["inputs"], about[1]["inputs"])
    codes = [_marked(one["exit codes"]) for one in about]
    verdict.values("exit codes", codes[0], codes[1])
    for name in sorted({path.name for one in (old, new) for path in (one / "runs").iterdir()}):
        runs = [folder / "runs" / name for folder in (old, new)]
        if not runs[0].exists():
            verdict.added.append(f"run {name}")
        else:
            verdict.values(f"run {name}", *(dict(_run_content(run)) for run in runs))
    for path in sorted({p.name for one in (old, new) for p in (one / "outputs").iterdir()}):
        _compare_output(verdict, path, old / "outputs" / path, new / "outputs" / path)
    return verdict


def _compare_output(verdict: Verdict, name: str, old: Path, new: Path) -> None:
    if name.endswith((".log", ".err")):
        return  # progress, and what it looked like on the way
    if not new.exists():
        verdict.unexpected.append(f"output {name} is gone")
    elif not old.exists():
        verdict.added.append(f"output {name}")
    elif name == "schema.json":
        schemas = [json.loads(path.read_text("utf-8")) for path in (old, new)]
        verdict.values(name, *(dict(_schema_leaves(one, one)) for one in schemas))
    elif name.endswith(".json"):
        verdict.values(name, *(dict(_leaves(_json(path))) for path in (old, new)))
    elif name == "losses.txt":
        rows = [dict(_rows(path.read_text("utf-8"))) for path in (old, new)]
        verdict.added += [f"{name}: {row}" for row in rows[1].keys() - rows[0].keys()]
        verdict.unexpected += [f"{name}: {row} is gone" for row in rows[0].keys() - rows[1].keys()]
        both = [key for key in rows[0] if key in rows[1]]
        verdict.text(name, *("\n".join(one[key] for key in both) for one in rows))
    elif name.endswith(".txt"):
        verdict.text(name, old.read_text("utf-8"), new.read_text("utf-8"))
    elif old.read_bytes() != new.read_bytes():
        diff = difflib.unified_diff(
            old.read_text("utf-8").splitlines(), new.read_text("utf-8").splitlines(), n=0
        )
        verdict.unexpected.append(f"output {name}: {_short(' | '.join(list(diff)[2:]))}")


def _marked(codes: dict[str, int]) -> dict[str, int]:
    """Exit codes by command, a loss's own name marked as an alternative."""
    return {re.sub(r"^losses (\w+)$", r"losses <\1>", name): code for name, code in codes.items()}


def _rows(table: str) -> Iterator[tuple[str, str]]:
    """Lines of a table by their first word, runs of spaces as one."""
    for line in table.splitlines():
        yield line.split(" ", 1)[0], re.sub(r" +", " ", line)


def _run_content(run: Path) -> Iterator[tuple[str, Any]]:
    """Everything of a run that must be the same, by the new names."""
    if not run.exists():
        return
    logged: dict[str, list[Any]] = {}
    for path in sorted(file for file in run.rglob("*") if file.is_file()):
        name = str(path.relative_to(run))
        manifest = name.startswith("checkpoints") and path.name == "MANIFEST.json"
        if name in NOT_COMPARED or manifest:  # the manifest holds hashes of what is compared here
            continue
        if path.suffix == ".safetensors":
            yield from _tensors(name, path)
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            for column in table.column_names:
                key = f"pair log: {column} ({table.schema.field(column).type})"
                logged.setdefault(key, []).append((path.name, table[column].to_pylist()))
        elif name == "config.yaml":
            tree = yaml.safe_load(path.read_text("utf-8"))
            yield from ((f"{name}: {key}", value) for key, value in _leaves(tree))
        elif name == "metrics.jsonl":
            lines = path.read_text("utf-8").splitlines()
            yield from ((f"{name}: line {n}", line) for n, line in enumerate(lines, 1))
        elif path.name != "MANIFEST.json":
            yield name, path.read_bytes()
    yield from logged.items()


def _tensors(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Bytes, type and shape of every tensor of a file, and the file's own notes."""
    with safe_open(path, "pt") as file:
        yield f"{name}: metadata", file.metadata()
        names = file.keys()
        for key in names:
            tensor = file.get_tensor(key)
            held = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            digest = hashlib.sha256(held).hexdigest()
            yield f"{name}: {key}", (str(tensor.dtype), list(tensor.shape), digest)


def _json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.strip() else "(nothing)"


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names such as ``kinds[0].code`` and their values, by the new words."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            new = RENAMED.get(key, key)
            if new is not None:
                yield from _leaves(value, f"{name}.{new}" if name else new)
    elif isinstance(tree, list) and any(isinstance(value, dict | list) for value in tree):
        for place, value in enumerate(tree):
            yield from _leaves(value, f"{name}[{place}]")
    else:
        yield name, tree


def _schema_leaves(node: Any, schema: dict[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """The same of a JSON Schema, its references followed: what a config may hold, by its keys."""
    if not isinstance(node, dict):
        yield name, node
        return
    if "$ref" in node:
        target = node["$ref"].rpartition("/")[2]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        node = {**schema["$defs"][target], **beside}
    for key, value in node.items():
        if key in ("title", "discriminator", "$defs", "$schema"):
            continue  # names of classes
        if key == "properties":
            for one, below in value.items():
                if (new := RENAMED.get(one, one)) is not None:
                    yield f"{name}.{new}", "a key"
                    yield from _schema_leaves(below, schema, f"{name}.{new}")
        elif key in ("oneOf", "anyOf"):
            for place, one in enumerate(value):
                alternative = _alternative(one, schema) or str(place)
                yield from _schema_leaves(one, schema, f"{name}.<{alternative}>")
        elif key == "default":
            yield from ((f"{name}.default.{k}", v) for k, v in _leaves(value))
        elif isinstance(value, dict):
            yield from _schema_leaves(value, schema, f"{name}.{key}")
        else:
            yield f"{name}.{key}", sorted(value) if key == "required" else value


def _alternative(node: dict[str, Any], schema: dict[str, Any]) -> str | None:
    """The name or kind that tells an alternative from the others."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    keys = node.get("properties", {})
    found = keys.get("name", {}).get("const") or keys.get("kind", {}).get("const")
    return found or node.get("type")


def _short(value: Any) -> str:
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


def show(verdict: Verdict, old: Path, new: Path) -> None:
    """Print what was found, the gravest last."""
    for folder in (old, new):
        print(f"{folder}: {json.loads((folder / 'record.json').read_text('utf-8'))['version']}")
    print("changed on purpose, taken as equal:")
    for before, after, why in INTENDED:
        print(f"  {before} -> {after or '(gone)'}: {why}")
    for where, diff in verdict.words.items():
        print(f"words differ: {where}", *diff, sep="\n  ")
    for name in verdict.added:
        print(f"new: {name}")
    shown: Counter[str] = Counter()
    for name in verdict.unexpected:
        where = name.partition(": ")[0]
        shown[where] += 1
        if shown[where] <= SHOWN:
            print(f"DIFFERENT: {name}")
    for where, count in shown.items():
        if count > SHOWN:
            print(f"DIFFERENT: {where}: {count - SHOWN} more")
    print(
        f"{len(verdict.unexpected)} unexpected differences, {len(verdict.words)} texts in other "
        f"words, {len(verdict.added)} new"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="run everything with one version")
    one.add_argument("--python", type=Path, required=True, help="of the version's environment")
    one.add_argument("--out", type=Path, required=True, help="folder for the results")
    two = commands.add_parser("compare", help="name every difference of two recordings")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.python, options.out)
        return
    verdict = compare(options.old, options.new)
    show(verdict, options.old, options.new)
    sys.exit(1 if verdict.unexpected else 0)


if __name__ == "__main__":
    main()
