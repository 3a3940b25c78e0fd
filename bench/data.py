"""How long 100,000 chat pairs take to be checked and tokenised, cold and cached, and the memory.

    python bench/data.py [--pairs 100000] [--big GIB]

The pairs are made from a seed (Korean and English words, 2 kB a pair, every prompt twice) and a
byte-level tokenizer is trained on them, so that nothing is downloaded. ``load`` is what
training does: read, check, render, tokenise, split by prompt cluster, all tokens kept. ``check``
is `likelier check --model`, which keeps no tokens. Times include starting Python; memory is the
largest sum over the process and its workers. ``--big`` also checks a file of so many GiB.
"""

import argparse
import json
import os
import random
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
PREPARE = """
import json, sys
from likelier.config import config_from
from likelier.chat.tokenizer import build_encoder
from likelier.checks.inspector import PairInspector
from likelier.data.load import load
from likelier.base.model_files import load_tokenizer
model, data = sys.argv[1:]
config = config_from({"model": {"path": model}, "data": {"train": data}, "out": "run"}, [])
prepared = load(config.data, build_encoder(*load_tokenizer(model)), inspector=PairInspector())
tokens = sum(len(p.prompt) + len(p.chosen.tokens) + len(p.rejected.tokens)
             for p in prepared.pairs)
print(json.dumps({"used": len(prepared.pairs), "tokens": tokens}))
"""


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


def measured(command: list[str], folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a command and all its children; its last line of output."""
    environment = {**os.environ, "LIKELIER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    peak = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            peak[0] = max(peak[0], resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    stop.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    told = output.splitlines()[-1] if output else ""
    return {"seconds": round(seconds, 1), "peak_mib": round(peak[0] / 2**20), "said": told}


def resident(process: int) -> int:
    """Bytes of memory of a process and its children."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for task in Path(f"/proc/{process}/task").iterdir():  # workers are started by threads
            children += (task / "children").read_text().split()
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident, set(map(int, children))))


def main() -> None:
    """Measure and write ``bench/results/data.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--big", type=float, default=0.0, help="GiB of a file to check as well")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, data = folder / "model", folder / "pairs.jsonl"
        write_tokenizer(model)
        write_pairs(data, asked.pairs)
        prepare = [sys.executable, "-c", PREPARE, str(model), str(data)]
        check = [sys.executable, "-m", "likelier", "check", str(data), "--model", str(model)]
        size = data.stat().st_size >> 20
        rows = [
            {"what": what, "pairs": asked.pairs, "file_mib": size, **measured(command, folder)}
            for what, command in (
                ("load", prepare), ("load, cached", prepare), ("check", check)
            )
        ]  # fmt: skip
        if asked.big:
            big = folder / "big.jsonl"
            copies = int(asked.big * 2**30 / data.stat().st_size) + 1
            with big.open("ab") as file:
                for number in range(copies):
                    write_pairs(data, asked.pairs, seed=number)
                    file.write(data.read_bytes())
            command = [sys.executable, "-m", "likelier", "check", str(big), "--model", str(model)]
            rows.append({
                "what": "check", "pairs": copies * asked.pairs,
                "file_mib": big.stat().st_size >> 20, **measured(command, folder),
            })  # fmt: skip
        record.show([{**row, "said": row["said"][:40]} for row in rows])
        record.write("data", {"rows": rows})


if __name__ == "__main__":
    main()
