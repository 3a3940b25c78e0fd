"""Freed memory is kept for a while: seen by the pages that the kernel has to map. Compiled products
are kept for a few batches: seen by what of the heap is in use."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
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
import ctypes, torch
import likelier.model.running

class Heap(ctypes.Structure):  # of malloc.h
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

heap = ctypes.CDLL(None).mallinfo2
heap.restype = Heap
rows, weight = torch.randn(600, 64).bfloat16(), torch.randn(64, 64).bfloat16()

def in_use(counts):
    for count in counts:
        torch.nn.functional.linear(rows[:count], weight)
    return heap().uordblks / 2**20

before = in_use(range(1, 150))
grown = in_use(range(150, 300)) - before
in_use([299, 200, 2])
print(grown)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="an older C library")
@pytest.mark.parametrize("given", [(), CAPACITIES[:1], CAPACITIES[1:]])
def test_products_of_shapes_long_past_are_not_kept(given: tuple[str, ...]) -> None:
    """But where somebody asked for 1024, as both libraries have it by themselves."""
    environment = {k: v for k, v in os.environ.items() if k not in CAPACITIES}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], check=True, stdout=subprocess.PIPE, text=True,
        env=environment | dict.fromkeys(given, "1024") | {"ONEDNN_VERBOSE": "profile_create"},
    )  # fmt: skip
    made = [line for line in done.stdout.splitlines() if ",create:" in line]
    if not made:
        pytest.skip("this processor has no bfloat16 products by oneDNN")
    grown = float(done.stdout.splitlines()[-1])
    assert grown > 10 if given else grown < 5  # MiB, of 150 more shapes
    long_past = "hit" if CAPACITIES[0] in given else "miss"
    last = [line.split(",create:cache_")[1].split(",")[0] for line in made[-3:]]
    assert last == ["hit", "hit", long_past]  # of 299, 200 and 2 rows
