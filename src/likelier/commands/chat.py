"""`likelier chat`: a conversation in the terminal, with the base and the tuned model."""

import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from likelier.base.errors import DataError, LikelierError, OutputError
from likelier.base.files import write_lines
from likelier.base.terminal import console, say
from likelier.data.read import guess_encoding
from likelier.generation.conversation import Conversation
from likelier.generation.sample import decoding, seed_at
from likelier.generation.sides import Name, open_sides, run_config, template_of
from likelier.training.signals import listening

PROMPT = "> "
HELP = """\
/reset        forget what was said; the system text stays
/system TEXT  put TEXT before the conversation from now on; without TEXT, take it away
/save FILE    write the conversation as JSONL, a row for each side; FILE must not exist yet
/help         this
/quit         leave; so does Ctrl-D
Ctrl-C stops the answer that is being written: what came of it stays in the conversation. A second
one stops it at once, and the other model is not asked. To send a text that begins with /, put a
space before it."""


def chat(
    target: str,
    only: Name | None,
    system: str,
    template: Mapping[str, Any],
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Answer lines of standard input until it ends, each by all sides of ``target``.

    Answers go to standard output, all else to stderr. Raises KeyboardInterrupt for a second Ctrl-C
    in a row where nothing is typed and nothing is answered, DataError for a line of a file or pipe
    that is not UTF-8, and what loading raises.
    """
    decoding(temperature, max_new_tokens, [])  # refused before anything is loaded
    config = run_config(target)
    sides = open_sides(target, config, template_of(config, template), only)
    talk = _Talk(
        [Conversation(side, system) for side in sides],
        {"temperature": temperature, "max_new_tokens": max_new_tokens},
        seed,
    )
    if not all(one.is_chat for one in talk.conversations):
        say("no chat template: each text is continued as it is, and no text remembers another")
    say(f"temperature {temperature:g}, at most {max_new_tokens} new tokens, seed {seed}")
    say("/help lists the commands; /quit or Ctrl-D leaves")
    leaving = False
    lines = _Lines()
    while True:
        try:
            line = lines.read()
        except KeyboardInterrupt:
            if not lines.are_typed:
                raise
            print()
            if leaving:
                raise
            if leaving := not lines.typed():
                say("to leave: Ctrl-C again, Ctrl-D or /quit")
            continue
        leaving = False
        if line is None or not talk.hear(line):
            return


class _Lines:
    """Lines of a terminal, with editing and history, or of a file or pipe."""

    def __init__(self) -> None:
        self.are_typed = sys.stdin.isatty() and sys.stdout.isatty()
        self._count = 0
        self._readline: Any = None
        if self.are_typed:
            with suppress(ImportError):  # not in every build of Python
                import readline  # `input` edits by it from here on

                self._readline = readline

    def read(self) -> str | None:
        """The next line, None at the end."""
        if self.are_typed:
            try:
                return input(PROMPT)
            except EOFError:
                print()
                return None
            except UnicodeDecodeError:
                say("this line is not UTF-8, so it was not understood")
                return ""
        self._count += 1
        line = sys.stdin.buffer.readline()
        try:
            return line.decode().rstrip("\r\n") if line else None
        except UnicodeDecodeError as error:
            where, hint = f"stdin:{self._count}", guess_encoding(line)
            raise DataError("the line is not UTF-8", where=where, hint=hint) from error

    def typed(self) -> str:
        """What stood in the line when it was interrupted."""
        return self._readline.get_line_buffer() if self._readline else ""


class _Talk:
    """The conversations of all sides, and what a line does to them."""

    def __init__(self, conversations: list[Conversation], settings: dict[str, Any], seed: int):
        self.conversations, self.settings, self.seed = conversations, settings, seed
        self._asked = 0  # not set back by /reset: the same question may be answered otherwise

    def hear(self, line: str) -> bool:
        """Do what a line says; whether to hear another."""
        if not line.strip():
            return True
        word, _, rest = line.partition(" ")
        try:
            match word:
                case "/quit":
                    return False
                case "/help":
                    _tell(HELP)
                case "/reset":
                    for one in self.conversations:
                        one.turns = []
                    say("the conversation begins anew")
                case "/system":
                    self._change_system(rest.strip())
                case "/save":
                    self._save(rest.strip())
                case _ if word.startswith("/"):
                    say(f"there is no {word}; /help lists the commands")
                case _:
                    self._answer(line)
        except LikelierError as error:
            _tell(f"error: {error}")
        except KeyboardInterrupt:
            print()
            say("stopped")
        return True

    def _answer(self, text: str) -> None:
        self._asked += 1
        for one in self.conversations:
            console().print(Text(one.side.name, "bold"))
            try:
                with listening((signal.SIGINT,)) as stop:
                    answer = one.ask(
                        text, _show, lambda: bool(stop),
                        seed=seed_at(self.seed, self._asked), **self.settings,
                    )  # fmt: skip
            except LikelierError as error:  # the other side may be able to
                _tell(f"error: {error}")
                continue
            print(flush=True)
            if not answer.text.strip():
                say(f"{one.side.name}: no text came, so its conversation is without this question")
            elif stop:
                say(f"{one.side.name}: stopped after {len(answer.tokens)} tokens, which are kept")
            elif not answer.stopped:
                say(f"{one.side.name}: cut off after {len(answer.tokens)} tokens")
        print(flush=True)

    def _change_system(self, text: str) -> None:
        for one in self.conversations:
            one.must_take_system(text)
        for one in self.conversations:
            one.system = text
        say("the system text is changed" if text else "there is no system text")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if not name:
            raise OutputError("no file is named", where="/save", hint="such as /save talk.jsonl")
        rows = [row for one in self.conversations for row in one.rows()]
        if path.exists() or path.is_symlink():
            raise OutputError("is there already", where=name, hint="name another file")
        write_lines(path, rows)
        say(f"{len(rows)} rows in {path}")


def _tell(text: str) -> None:
    for line in text.splitlines():
        say(line)


def _show(piece: str) -> None:
    print(piece, end="", flush=True)
