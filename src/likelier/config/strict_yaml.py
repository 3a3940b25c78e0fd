"""Configs as YAML text: read strictly, written so that it reads back as it was.

YAML as its version 1.2 reads plain words: ``5e-7`` is a number; ``yes``, ``010``, ``1_000`` and
``1:30`` are text. Nothing in a config needs anchors, tags or a second document, so they are
refused, and with them every way to make a small file large or to have code run.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from likelier.base.errors import ConfigError

_MAX_CHARACTERS = 1_000_000  # a config has a few dozen keys

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_MAX_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """SafeLoader less anchors, tags, duplicate keys and YAML 1.1's guesses at plain words."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own protocol)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused("anchors (&) and aliases (*) are not used in a config", event)
        if getattr(event, "tag", None):
            raise _refused(f"the tag {event.tag!r} is not used in a config", event)
        if self.depth >= _MAX_DEPTH:
            raise _refused(f"nested more than {_MAX_DEPTH} deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        return plain(node.value) if node.style is None else node.value

    def construct_unique(self, node: yaml.MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused("a key must be a word", key_node)
            key = key_node.value
            if key in found:
                raise _refused(f"the key {key!r} stands twice", key_node)
            found[key] = self.construct_object(value_node, deep=True)
        return found


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_plain)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_unique)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes the words that only our reader takes for numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML folds line breaks of other styles, and loses some of Unicode's; these it escapes.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _quoted)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), None
)


def _refused(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def plain(word: str) -> Any:
    """What an unquoted word means: a number, true, false, null, or text."""
    if word in _WORDS:
        return _WORDS[word]
    if _INT.fullmatch(word) and len(word) < 400:
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    return word


def parse(text: str, source: str) -> Any:
    """What one YAML document says.

    Args:
        text: the document; an empty one gives None.
        source: its name in error messages.

    Raises:
        ConfigError: the text is not strict YAML; the message has ``source:line``.
    """
    if len(text) > _MAX_CHARACTERS:
        what, hint = f"is over {_MAX_CHARACTERS} characters long", "see `likelier schema`"
        raise ConfigError(what, where=source, hint=hint)
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(_words(error), where=where, hint="see `likelier schema`") from None
    except yaml.YAMLError as error:
        problem = "holds a character that YAML does not allow"
        raise ConfigError(problem, where=source, hint="save it as plain UTF-8 text") from error


def _words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "is not YAML"
    if "'\\t'" in problem:
        return "holds a tab; YAML is indented with spaces"
    if "found another document" in problem:
        return "holds a second document (---); a config is one document"
    return problem


def argument(text: str, key: str) -> Any:
    """The value of ``key=value`` on a command line: a word, or YAML in brackets or quotes.

    A bare word is taken whole, so that paths may hold ``#``, ``: `` and commas.
    """
    return parse(text, key) if text[:1] in ("[", "{", '"', "'") else plain(text)


def flow(value: Any) -> str:
    """A value on one line, so that ``parse`` gives it back."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        width=2**31,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def document(tree: dict[str, Any]) -> str:
    """A tree of sections as YAML: one key a line, values in flow style."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append(f"{name}:")
            lines.extend(f"  {key}: {flow(below)}" for key, below in value.items())
        else:
            lines.append(f"{name}: {flow(value)}")
    return "\n".join(lines) + "\n"


def leaves(tree: Mapping[str, Any]) -> dict[str, str]:
    """Every key of a tree of sections, dotted, with its value on one line."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": flow(below) for key, below in value.items()}
        else:
            found[name] = flow(value)
    return found
