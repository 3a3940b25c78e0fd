"""Freed memory is kept for a while: seen by the pages that the kernel has to map. Compiled products
are kept for a few batches: seen by what oneDNN says that it makes."""

import os
import platform
import subprocess
import sys

import pytest

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
PROGRAM = """
import resource, torch
from likelier.model.running import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(3, 1 << 22).add_(1)  # 48 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    status = open("/proc/self/status").read().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024

outside = faults()
with freed_memory_kept():
    faults()
    inside, held = faults(), resident()
given_back = held - resident()
print(outside, inside, faults(), given_back)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_second_time_nothing_is_mapped_and_afterwards_all_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, stdout=subprocess.PIPE, text=True
    )
    outside, inside, after, given_back = map(float, done.stdout.split())
    assert outside > 100  # at the least, where pages are huge
    assert inside < 0.01 * outside
    # At least the first time: a hole below a small block of someone else is then used again.
    assert after > 0.09 * outside
    assert given_back > 40  # MiB


COMPILES = """
import torch, likelier.model.running
rows, weight = torch.randn(400, 64).bfloat16(), torch.randn(64, 64).bfloat16()
for count in [*range(2, 300), 299, 2]:
    torch.nn.functional.linear(rows[:count], weight)
"""


@pytest.mark.parametrize(("given", "last"), [({}, "miss"), ({CAPACITY: "1024"}, "hit")])
def test_products_of_shapes_long_past_are_not_kept(given: dict[str, str], last: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != CAPACITY} | given
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], check=True, stdout=subprocess.PIPE, text=True,
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
    )  # fmt: skip
    made = [line for line in done.stdout.splitlines() if ",create:" in line]
    if not made:
        pytest.skip("this processor has no bfloat16 products by oneDNN")
    assert "create:cache_hit" in made[-2] and f"create:cache_{last}" in made[-1]
