"""Completion at the shell's prompt: the script that asks for it, and the answers."""

from typing import Any

from typer.completion import completion_init, shell_complete


def answer_shell(command: Any, question: str) -> int:
    """Print what a shell asked for and return the exit code.

    Args:
        command: the whole command line, as typer makes it.
        question: ``source_bash`` for the script, ``complete_bash`` for what may come next on the
            line that the script puts into the environment; for zsh and fish likewise.
    """
    completion_init()
    return shell_complete(command, {}, "likelier", "_LIKELIER_COMPLETE", question)
