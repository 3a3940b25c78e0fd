"""Try sections: ``python -m faults [SECTION ...] [--stride N] [--seed S] [--workers 2]``."""

import argparse
import os
import shlex
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

# Read when torch and huggingface_hub are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from faults import SECTIONS, Options, page, table


def run_section(name: str, options: Options, command: str) -> list[table.Row]:
    """Try one section and keep what it found."""
    began = time.monotonic()
    print(f"{SECTIONS[name]} ({name})", flush=True)
    rows = import_module(f"faults.{name}").run(options)
    seconds = time.monotonic() - began
    table.show(rows)
    print(f"  {seconds:.0f} seconds: {table.write(name, SECTIONS[name], rows, seconds, command)}\n")
    return rows


def main() -> None:
    """Try the sections that were named, or all; the exit code is 1 where a case did not hold."""
    asked = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    asked.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="SECTION")
    for name in ("stride", "seed", "workers"):
        asked.add_argument(f"--{name}", type=int, default=getattr(Options, name))
    given = asked.parse_args()
    held = True
    for name in given.sections or SECTIONS:
        options = [word for word in sys.argv[1:] if word not in SECTIONS]
        command = shlex.join(["python", "-m", "faults", name, *options])
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            chosen = Options(Path(folder).resolve(), given.stride, given.seed, given.workers)
            try:
                rows = run_section(name, chosen, command)
            except Exception:  # the sections behind it are tried all the same
                traceback.print_exc()
                rows = [table.Row("the section itself", 1, 0)]
        held &= all(row.held == row.tried for row in rows)
    page.main()
    sys.exit(not held)


if __name__ == "__main__":
    main()
