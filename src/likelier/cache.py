"""Where things that can be made again are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$LIKELIER_CACHE``, or ``~/.cache/likelier``; it need not exist yet."""
    return Path(os.environ.get("LIKELIER_CACHE") or "~/.cache/likelier").expanduser()
