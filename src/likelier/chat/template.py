"""The chat template of a model: its source, the names that it reads, and its date."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from likelier.base.errors import ConfigError, DataError, LikelierError
from likelier.base.limits import TEMPLATE, bounded
from likelier.chat.messages import suggestion

DEFAULT_DATE = "2024-07-26"  # as Llama 3.1's template says where it gets no date
_ASKS = re.compile(r"""strftime_now\s*\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")
_FIX = "fix chat_template in tokenizer_config.json (or chat_template.jinja)"
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
        with bounded(TEMPLATE):
            return jinja2.meta.find_undeclared_variables(environment.parse(plain))
    except RecursionError as error:
        raise DataError("it is nested too deeply", where=TEMPLATE, hint=_FIX) from error
    except LikelierError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"it does not parse: {error.message}",
            where=f"chat template:{error.lineno}",
            hint=_FIX,
        ) from error
    except Exception as error:  # such as a number that Python writes out at no length
        raise DataError(f"it does not parse: {error}", where=TEMPLATE, hint=_FIX) from error
