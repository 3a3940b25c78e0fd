"""docs/models.md from the list of families and from what came out of their rows."""

from collections.abc import Iterator
from pathlib import Path

from tests.support.chat_families import ChatFamily, families, tokenizer_of
from tests.support.chat_outcomes import Outcome, outcomes
from tests.support.chat_truth import Oracle, records

from likelier.chat.template import DEFAULT_DATE

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- models -->\n", "<!-- end of models -->\n"
HEAD = ("family", "thinking", "tools", "an answer ends with", "boundary", "rows", "settings")


def page(text: str) -> str:
    """``text`` with its tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    korean = [family for family in families() if family.korean]
    others = [family for family in families() if not family.korean]
    parts = [
        "## Korean models\n\n" + _table(korean),
        "## Other models\n\n" + _table(others),
        "## What each family stands for\n\n" + "".join(map(_models, families())),
    ]
    return before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after


def _table(listed: list[ChatFamily]) -> str:
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [cells for family in listed for cells in _lines(family)]
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _lines(family: ChatFamily) -> Iterator[tuple[str, ...]]:
    for place, state in enumerate(({}, *family.states)):
        row = records(family)["plain"]
        boundary = Oracle(family, tokenizer_of(family), state, DEFAULT_DATE).boundary(row)
        rows = _rows(outcomes(family, place))
        if not place:
            name = f"**{family.family}**"
            said = (family.thinking, family.tools, _stop(family), boundary, rows, family.settings)
            yield (name, *said)
            continue
        given = ", ".join(f"{key}: {str(value).lower()}" for key, value in state.items())
        yield (f"`{given}`", "", "", "", boundary, rows, "")


def _stop(family: ChatFamily) -> str:
    usual = family.closes or family.unclosed or family.eos
    said = f"`{usual}`"
    if family.closes is None:
        said += ", which the template does not write behind the last turn"
    if family.calls_end and family.calls_end != usual:
        said += f"; a call with `{family.calls_end}`"
    return said


def _rows(found: dict[str, Outcome]) -> str:
    """How many are right as they stand, and which are refused with a cure."""
    equal = [kind for kind, outcome in found.items() if outcome.name == "equal"]
    cured = [kind for kind, outcome in found.items() if outcome.name == "cured"]
    said = f"{len(equal)} of {len(found)} right"
    if cured:
        said += f"; refused with a cure: {', '.join(cured)}"
    return said


def _models(family: ChatFamily) -> str:
    return f"- **{family.family}**: {', '.join(f'`{name}`' for name in family.models)}\n"
