"""``python -m likelier``: the same as the command ``likelier``."""

import os
import sys

# Python puts the current folder first: files that lie beside data are not to be run.
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

from likelier.cli import entry

entry()
