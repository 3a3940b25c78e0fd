"""likelier as a measured process: python bench/child_likelier.py CASE.json"""

import json
import sys
from pathlib import Path

from child import Steps, peak_mib, tell, timed

from likelier.base.heap import without_small_caches


def main() -> None:
    """Run the case's config by `likelier.train`, its steps told one by one."""
    without_small_caches()  # as the command does
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import likelier.run

    likelier.run.reference_of_run = timed("reference", likelier.run.reference_of_run)
    steps = Steps()
    likelier.run._take_steps = steps.beginning(likelier.run._take_steps)
    run = likelier.run.train(
        case["likelier"], on_step=lambda row: steps.end(int(row["step"]), row["loss"])
    )
    tell(event="peak", until="end", mib=peak_mib())
    timing = (run.folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    tell(event="timing", rows=[json.loads(line) for line in timing])


if __name__ == "__main__":
    main()
