"""``python -m likelier``: the same as the command ``likelier``."""

from likelier.cli import entry

entry()
