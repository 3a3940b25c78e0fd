"""Start a process again so that glibc gives freed memory back whole: a third less for training.

An aligned block, as torch asks for, leaves a small piece beside it, and glibc keeps such pieces in
its caches for threads and for fast use. A large block that is freed then cannot join what lies
beside it, and the next one of its size is taken elsewhere. Both caches can be switched off only
when a process starts.
"""

import os
import sys

TUNABLES = "GLIBC_TUNABLES"
_NO_SMALL_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def without_small_caches() -> None:
    """Replace this process by itself with those caches off; return where that is not possible,
    is so already, where the user has set glibc's malloc, or where the words of the command were
    not those that the process was started with: then it is somebody else's.
    """
    before, words = os.environ.get(TUNABLES, ""), sys.argv[1:]
    if sys.platform != "linux" or "glibc.malloc." in before or not _is_glibc():
        return
    if not words or sys.orig_argv[-len(words) :] != words:
        return
    settings = f"{before}:{_NO_SMALL_CACHES}".removeprefix(":")
    try:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, TUNABLES: settings})
    except OSError:  # no such file, no memory: the run is only larger
        return


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):
        return False
