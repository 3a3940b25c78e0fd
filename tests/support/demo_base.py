"""The demo's base model for tests: made once, shared by all workers and kept between sessions."""

import fcntl
from pathlib import Path

from likelier.demo.base import base_model


def demo_cache(config_cache: Path) -> Path:
    """A ``$LIKELIER_CACHE`` that holds the demo's base model.

    ``config_cache`` is a folder that outlives the session, such as
    ``pytestconfig.cache.mkdir("demo")``. Making the model takes a minute or two; the recipe and
    the text are in its name, so that an old one is never taken for the present one.
    """
    with (config_cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second worker waits instead of making it too
        base_model(parent=config_cache / "demo")
    return config_cache
