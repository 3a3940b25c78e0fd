"""The walk-through notebook: a copy in the current folder, opened in the browser."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from likelier.base.errors import ConfigError
from likelier.base.terminal import say

NAME = "walkthrough.ipynb"


def open_notebook(folder: Path) -> NoReturn:
    """Open the copy in ``folder`` with JupyterLab, which takes the place of this process.

    A copy that is there already is kept, with what was written into it.

    Raises ConfigError where JupyterLab is not installed.
    """
    if find_spec("jupyterlab") is None:
        hint = "pip install 'likelier[notebook]' (in a clone: pip install '.[notebook]')"
        raise ConfigError("JupyterLab is not installed", where="--notebook", hint=hint)
    copy = folder / NAME
    if copy.exists():
        say(f"{copy} is there already and stays as it is")
    else:
        shutil.copyfile(_original(), copy)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "jupyterlab", str(copy)])


def _original() -> Path:
    """Where a wheel puts it, or the folder of examples of a clone."""
    installed = Path(__file__).with_name(NAME)
    return installed if installed.exists() else Path(__file__).parents[3] / "examples" / NAME
