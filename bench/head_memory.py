"""Peak memory of scoring: it grows with the chunk, not with answers x vocabulary.

    python bench/head_memory.py            prints a table, writes bench/results/head_memory.json

Every row is a process of its own, which scores some answers (and back-propagates) once with the
chunked head and once with its plain twin. Memory is the peak resident size above what the
process held before the pass.
"""

import argparse
import os
import resource
import subprocess
import sys

import record

VOCABULARY = 102_400  # EXAONE 4.0's
HIDDEN = 64
TOKENS = 64  # scored tokens of an answer
ROWS = [  # (head, answers, chunk)
    *[("chunked", answers, 64) for answers in (4, 8, 16, 32)],
    *[("chunked", 32, chunk) for chunk in (16, 256, 1024)],
    *[("plain", answers, None) for answers in (4, 8, 16, 32)],
]


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(head_name: str, answers: int, chunk: int | None) -> float:
    """MiB that one forward and backward of a head adds to the peak of a fresh process."""
    import torch

    from likelier.model.logprob import Head, token_logps, token_logps_at_once

    torch.manual_seed(0)
    rows = answers * TOKENS
    weight_VD = (torch.randn(VOCABULARY, HIDDEN) / 8).requires_grad_()
    hidden_ND = torch.randn(rows, HIDDEN, requires_grad=True)
    token_E = torch.randint(0, VOCABULARY, (rows,))
    weight_VD.grad = torch.zeros_like(weight_VD)  # the weight's gradient is not the head's doing
    before = peak_mib()
    entries = hidden_ND, Head(weight_VD), torch.arange(rows), token_E
    if head_name == "chunked":
        logps = token_logps(*entries, chunk)
    else:
        logps = token_logps_at_once(*entries)
    logps.sum().backward()
    return peak_mib() - before


def main() -> None:
    """Run every row in a process of its own, or one row here."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--row", type=int, help="measure this row only and print its MiB")
    row = arguments.parse_args().row
    if row is not None:
        print(measure(*ROWS[row]))
        return
    results = []
    for index, (head, answers, chunk) in enumerate(ROWS):
        command = [sys.executable, __file__, "--row", str(index)]
        # glibc otherwise keeps freed blocks or not by what came before, and the peak is luck.
        settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        ran = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
        mib = float(ran.stdout)
        logits = answers * TOKENS * VOCABULARY * 4 / 2**20
        results.append({"head": head, "answers": answers, "chunk": chunk,
                        "logits_mib": round(logits), "peak_mib": round(mib)})  # fmt: skip
        print(f"{head:8} answers {answers:3}  chunk {chunk or '-':>5}  "
              f"all logits {logits:6.0f} MiB  peak {mib:6.0f} MiB", flush=True)  # fmt: skip
    record.write(
        "head_memory",
        {
            "vocabulary": VOCABULARY,
            "hidden": HIDDEN,
            "tokens_per_answer": TOKENS,
            "rows": results,
        },
    )


if __name__ == "__main__":
    main()
