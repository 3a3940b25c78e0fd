"""The chat template of a model: its source, the names that it reads, its date, and its limits."""

import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from likelier.base.errors import ConfigError, DataError
from likelier.chat.messages import suggestion

# Of processor time, so that a machine that slept or is busy is no fault of the template.
MAX_TEMPLATE_SECONDS = 2.0  # for one chat; a real template takes less than a hundredth of it
MAX_MEAN_SECONDS = 0.05  # over all chats so far, beyond the first
FREE_SECONDS = 20.0
MAX_TEMPLATE_MEGABYTES = 256  # of memory while it is rendered
DEFAULT_DATE = "2024-07-26"  # as Llama 3.1's template says where it gets no date
_ASKS = re.compile(r"""strftime_now\s*\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")
RESERVED = {
    "messages", "tools", "add_generation_prompt", "continue_final_message", "strftime_now"
}  # fmt: skip


def check_template(
    tokenizer: Any, template: Mapping[str, Any]
) -> list[tuple[str | None, frozenset[str]]]:
    """Check the template and its keywords; its source, and the names that it reads. Then the same
    of the template for rows with tools, which is another where the tokenizer names one `tool_use`.
    """
    sources = [_template_source(tokenizer, with_tools) for with_tools in (False, True)]
    if sources[0] is None and template:
        raise ConfigError(
            "this tokenizer has no chat template that could read it",
            where=f"data.template.{next(iter(template))}",
            hint="delete the key",
        )
    names = {source: frozenset(_variables(source) if source else ()) for source in set(sources)}
    known = frozenset().union(*names.values())
    for key in template:
        if key not in known or key in RESERVED:
            hint = suggestion(key, known - RESERVED, "delete the key")
            what = "the chat template does not read this keyword"
            if key in RESERVED:
                what, hint = "this keyword is set by likelier", "delete the key"
            raise ConfigError(what, where=f"data.template.{key}", hint=hint)
    return [(source, names[source]) for source in sources]


def freeze(source: str, today: str) -> str | None:
    """The template with the date written out where it asks for it; None where it asks in a way
    that cannot be told from its text.
    """
    try:
        date = datetime.strptime(today, "%Y-%m-%d")
    except ValueError as error:
        hint = "write it as 2024-07-26"
        raise ConfigError(f"{today!r} is no date", where="data.today", hint=hint) from error
    frozen = _ASKS.sub(lambda found: repr(date.strftime(found["format"])), source)
    return None if re.search(r"strftime_now\s*\(", frozen) else frozen


def _template_source(tokenizer: Any, with_tools: bool) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.get_chat_template(tools=[] if with_tools else None))
    except ValueError as error:
        raise DataError(str(error)[:200], where="chat template", hint="name one default") from error


def _variables(source: str) -> set[str]:
    """The names that a template reads and does not set itself."""
    import jinja2
    import jinja2.meta

    # {% generation %} marks the assistant's text for other tools; plain Jinja does not know it
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    # not optimized: that would run the template's sums here already
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], optimized=False)
    try:
        with template_limits():
            return jinja2.meta.find_undeclared_variables(environment.parse(plain))
    except (TooSlow, MemoryError, RecursionError) as error:
        hint = "fix chat_template in tokenizer_config.json (or chat_template.jinja)"
        raise DataError("it is too large to be read", where="chat template", hint=hint) from error
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"it does not parse: {error.message}",
            where=f"chat template:{error.lineno}",
            hint="fix chat_template in tokenizer_config.json (or chat_template.jinja)",
        ) from error


class TooSlow(Exception):
    """The template took longer than it may; the message says how long."""


class TemplateTime:
    """How long a template took for all chats so far, in seconds of processor time.

    It bounds what a whole file can take: a little too long for each row is days for a million.
    """

    def __init__(self) -> None:
        self.chats, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """Count one more chat. Raises TooSlow where all together took too long."""
        self.chats += 1
        self.seconds += seconds
        if self.seconds > FREE_SECONDS + MAX_MEAN_SECONDS * self.chats:
            raise TooSlow(f"took {self.seconds:.0f} seconds for {self.chats} chats")


@contextmanager
def template_limits(spent: TemplateTime | None = None) -> Iterator[None]:
    """A template is foreign code: it gets little time and memory.

    Raises TooSlow after `MAX_TEMPLATE_SECONDS` of processor time, or where ``spent`` is used up,
    and MemoryError at `MAX_TEMPLATE_MEGABYTES` more than now. The time of one chat is watched in
    the main thread, where signals arrive; the memory where the system shows it (Linux).
    """
    began = time.thread_time()
    alarm = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    before = _limit_memory()
    previous: Any = None
    if alarm:
        previous = signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, MAX_TEMPLATE_SECONDS)
    try:
        yield
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
        if before is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, before)
    if spent is not None:
        spent.add(time.thread_time() - began)


def _too_slow(*_: object) -> None:
    raise TooSlow(f"takes longer than {MAX_TEMPLATE_SECONDS:g} seconds")


def _limit_memory() -> tuple[int, int] | None:
    """Lower the limit of the address space; what it was, where it was lowered."""
    try:
        with open("/proc/self/statm", "rb") as memory:
            pages = int(memory.read().split()[0])
    except OSError:  # not on Linux; Windows has no module resource either
        return None
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + MAX_TEMPLATE_MEGABYTES * 2**20
    if before[0] != resource.RLIM_INFINITY and before[0] <= wanted:
        return None
    resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
    return before
