"""Loading, wrapping and saving without other packages' bars and warnings; ours say what goes on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars of transformers' own, and none of peft's warnings that ask nothing of us."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            # GPT-2 stores its weights the other way round; peft sees that and says so each time.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            yield
    finally:
        if was_on:
            logging.enable_progress_bar()
