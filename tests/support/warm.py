"""Imported by the server that children are forked from: what each would do first, done once.

Both kinds of tuning are done once, in one thread: those of a library do not survive a fork.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from tests.support.runs import make_place

import likelier.cli
import likelier.run

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    here = patch.dict(os.environ, {"LIKELIER_CACHE": folder})
    with here, Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        place = make_place(Path(folder) / "place")
        for adapter in ({"kind": "none"}, {"kind": "lora", "r": 4}):
            likelier.run.train(place.config(adapter["kind"], adapter=adapter, train__steps=2))
