"""Any version of likelier as a measured process: python bench/child_public.py CASE.json

It uses the public names alone, so that versions whose modules have other names can be compared.
Start-up and reference therefore belong to the first step, which is left out as a warm-up.
"""

import json
import sys
from pathlib import Path

from child import Steps, peak_mib, tell


def main() -> None:
    """Run the case's config by `likelier.train`, its steps told one by one."""
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import likelier

    steps = Steps()
    likelier.train(case["likelier"], on_step=lambda row: steps.end(int(row["step"]), row["loss"]))
    tell(event="peak", until="end", mib=peak_mib())


if __name__ == "__main__":
    main()
