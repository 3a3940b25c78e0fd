"""How long 100,000 chat pairs take to be checked and tokenised, cold and again, and the memory.

    python bench/data.py [--pairs 100000] [--beside 20000] [--repeats 3] [--big GIB] [--trl PYTHON]

The pairs are made from a seed (Korean and English words, 2 kB a pair, every prompt twice) and a
byte-level tokenizer is trained on them, so that nothing is downloaded. ``tokenise`` is what
training does: read, check, render, tokenise, split by prompt cluster, all in as many processes as
there are cores; ``again`` is a second run on the same file. TRL's is `_prepare_dataset` of its
DPOTrainer on `datasets.load_dataset("json")`, in one process, which is its default, and in one for
each core; nothing is checked there, and nothing split. ``check`` is `likelier check --model`.

The first rows are of ``--beside`` pairs, ``--repeats`` times in turns with TRL, where ``--trl`` is
a Python that has it; the others are of ``--pairs``, once. Seconds are of the work, from behind the
imports to its end, and processor seconds those of all processes. Memory is the largest sum over the
process and its workers: ``peak`` of what is resident, ``shared once`` with pages that several of
them hold counted once; ``largest`` is the largest process. ``--big`` makes a file of so many GiB,
which is checked and then tokenised once.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record

KOREAN = [
    "파이썬은",
    "서울은",
    "한강이",
    "좋은",
    "언어입니다",
    "배우기",
    "쉽고",
    "수도입니다",
    "그리고",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TIMED = """
import json, os, resource, sys, time
def processor():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)
model, data, processes = sys.argv[1:4]
"""
OURS = (
    TIMED
    + """
from likelier.config import config_from
from likelier.chat.tokenizer import build_encoder
from likelier.checks.inspector import PairInspector
from likelier.data.load import load
from likelier.base.model_files import load_tokenizer
config = config_from({"model": {"path": model}, "data": {"train": data}, "out": "run"}, [])
encoder = build_encoder(*load_tokenizer(model))
began, used = time.perf_counter(), processor()
pairs = load(config.data, encoder, inspector=PairInspector()).pairs
seconds, used = time.perf_counter() - began, processor() - used
print(json.dumps({"seconds": seconds, "processor": used, "pairs": len(pairs),
                  "tokens": int(pairs.sizes.sum())}))
"""
)
TRL = (
    TIMED
    + """
from types import SimpleNamespace
import datasets
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
tokenizer = AutoTokenizer.from_pretrained(model)
given = DPOConfig("run", dataset_num_proc=int(processes) if processes != "1" else None,
                  use_cpu=True, bf16=False)
datasets.disable_progress_bars()
began, used = time.perf_counter(), processor()
rows = datasets.load_dataset("json", data_files=data, split="train")
trainer = SimpleNamespace(_tokenizer=tokenizer)
rows = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, given, "train")
seconds, used = time.perf_counter() - began, processor() - used
print(json.dumps({"seconds": seconds, "processor": used, "pairs": len(rows)}))
"""
)


def texts(seed: int) -> Iterator[str]:
    """Endless texts of 40, 110 and 90 words in turn."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(5000)] + KOREAN * 100
    while True:
        for length in (40, 110, 90):
            yield " ".join(rng.choices(words, k=length))


def write_pairs(path: Path, count: int, seed: int = 0) -> None:
    """Chat pairs, two of each prompt."""
    source = texts(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, good, bad = next(source), next(source), next(source)
            if number % 2 == 0:
                prompt = [{"role": "user", "content": asked}]
            row = {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": bad}],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 16,000 tokens with a chat template."""
    from itertools import islice

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(islice(texts(1), 3000), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')


def measured(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Seconds and peak memory of a command and all its children; its last line of output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    peaks = {"peak_mib": 0, "shared_once_mib": 0, "largest_mib": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            held = [memory(one) for one in tree_of(process.pid)]
            now = (sum(r for r, _ in held), sum(p for _, p in held), max(held, default=(0, 0))[0])
            for name, size in zip(peaks, now, strict=True):
                peaks[name] = max(peaks[name], size >> 10)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    stop.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    last = output.splitlines()[-1] if output else ""
    said = json.loads(last) if last.startswith("{") else {"said": last}
    return {"seconds": time.perf_counter() - began, **said, **peaks}


def tree_of(process: int) -> set[int]:
    """A process and everything that it started."""
    try:
        children = ""
        for task in Path(f"/proc/{process}/task").iterdir():  # workers are started by threads
            children += (task / "children").read_text()
    except OSError:
        return set()
    return {process}.union(*(tree_of(int(child)) for child in children.split()))


def memory(process: int) -> tuple[int, int]:
    """KiB that are resident, and the same with each page divided by those who hold it."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Rss"], sizes["Pss"]


def in_turns(trl: str | None, repeats: int, model: Path, data: Path, folder: Path) -> list[Any]:
    """A row for each way to prepare the data, and each again; every turn begins without caches."""
    cores = len(os.sched_getaffinity(0))
    ways = [("likelier", sys.executable, OURS, cores)]
    if trl is not None:
        ways += [("TRL", trl, TRL, count) for count in (1, cores)]
    found: dict[tuple[str, str, int], list[Any]] = {}
    for turn in range(repeats):
        for who, python, script, count in ways:
            cache = folder / f"cache-{turn}-{who}-{count}"
            environment = {"LIKELIER_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)}
            command = [python, "-c", script, str(model), str(data), str(count)]
            for what in ("tokenise", "again"):
                one = measured(command, folder, environment)
                found.setdefault((what, who, count), []).append(one)
                print(what, who, count, {k: round(v) for k, v in one.items()}, flush=True)
            subprocess.run(["rm", "-r", str(cache)], check=True)
    return [row(what, who, count, data, runs) for (what, who, count), runs in found.items()]


def row(what: str, who: str, processes: int, data: Path, runs: list[Any]) -> dict[str, Any]:
    """The figures of one way: medians, and the largest memory."""
    last = runs[-1]
    return {
        "what": what, "who": who, "processes": processes, "file_mib": data.stat().st_size >> 20,
        "pairs": last.get("pairs"), "tokens": last.get("tokens"), "repeats": len(runs),
        "seconds": record.spread([round(one["seconds"], 2) for one in runs]),
        "processor": round(statistics.median(one.get("processor", 0.0) for one in runs), 1),
        **{name: max(one[name] for one in runs) for name in last if name.endswith("_mib")},
        "said": last.get("said"),
    }  # fmt: skip


def main() -> None:
    """Measure and write ``bench/results/data.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--beside", type=int, default=20_000, help="pairs of the turns with TRL")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--big", type=float, default=0.0, help="GiB of a file to check as well")
    parser.add_argument("--trl", default=".venv-trl/bin/python", help="a Python that has TRL")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, data = folder / "model", folder / "pairs.jsonl"
        write_tokenizer(model)
        write_pairs(data, asked.pairs)
        write_pairs(fewer := folder / "fewer.jsonl", asked.beside)
        rows = in_turns(str(Path(asked.trl).absolute()), asked.repeats, model, fewer, folder)
        rows += in_turns(None, 1, model, data, folder)
        files = [data]
        if asked.big:
            files.append(big := folder / "big.jsonl")
            number = 0
            while not big.exists() or big.stat().st_size < asked.big * 2**30:
                number += 1
                write_pairs(folder / "more.jsonl", asked.pairs, seed=number)
                with big.open("ab") as file:
                    file.write((folder / "more.jsonl").read_bytes())
        for file in files:
            check = ["-m", "likelier", "check", str(file), "--model", str(model)]
            load = ["-c", OURS, str(model), str(file), str(cores)]
            for what, words in (("check", check), ("tokenise", load))[: 1 + (file != data)]:
                environment = {"LIKELIER_CACHE": str(folder / f"cache-{what}")}
                one = measured([sys.executable, *words], folder, environment)
                print(what, file.name, one, flush=True)
                rows.append(row(what, "likelier", cores, file, [one]))
        record.show([{k: str(v)[:40] for k, v in row.items()} for row in rows])
        record.write("data", {"rows": rows})


if __name__ == "__main__":
    main()
