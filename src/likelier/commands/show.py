"""`likelier show`: what the model sees of a pair, token by token, in a terminal or as a page.

It imports no torch. A row that cannot be used is shown as well: as far as the template renders it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.text import Text

from likelier.base.child import in_child
from likelier.base.errors import InputMissing
from likelier.base.files import must_be_apart, write_text
from likelier.base.findings import Finding, Unfit
from likelier.base.foreign import harmless, visible
from likelier.base.model_files import load_tokenizer
from likelier.base.terminal import console, say
from likelier.chat.render import render_chat
from likelier.chat.tokenizer import BREAK, Encoder, build_encoder
from likelier.checks.rules import cure
from likelier.data.encode import encode_pairs, token_texts
from likelier.data.formats import read_row
from likelier.data.load import no_row
from likelier.data.records import Completion, Pair, Row, TokenPair, common_length
from likelier.data.shapes import Format, format_with, recognised
from likelier.data.sources import read_data
from likelier.pages import render_page
from likelier.pages.texts import choose_language, in_language, language, reworded, text

STYLES = {"prompt": "dim", "scored": "green", "context": "dim", "stop": "bold magenta"}
BRANCH = "┆"  # stands where the two answers part
MAX_RECORD_CHARACTERS = 2000  # of a row that is no pair


def show(
    data: Path,
    model: str,
    number: int,
    columns: Mapping[str, str | None],
    chat: bool = False,
    template: Mapping[str, Any] | None = None,
    html: Path | None = None,
    row: str | None = None,
    lang: str | None = None,
) -> int:
    """Show the first ``number`` pairs, or those of ``row``: prompt, scored tokens, stops, context,
    what is shared; of rows that cannot be used why, and how far the template renders them. ``lang``
    is the language; None is what `choose_language` finds.

    Only the tokenizer is loaded, and no more rows are read than needed. Returns the exit code: 65
    where nothing shown can be used. Raises what reading and loading raise, and InputMissing where
    there is no such row.
    """
    if html is not None:
        must_be_apart(html, f"--html {html}", [data, model])
    encoder = build_encoder(*load_tokenizer(model), template, foreign=True)
    with in_language(choose_language(lang)):
        shown = in_child(_first, data, encoder, format_with(columns, chat), number, row)
        if html is not None:
            page = render_page("show.html", ["page.css"], name=str(data), pairs=shown)
            write_text(html, page)
            say(f"page: {html}")
        else:
            terminal = console()
            terminal.print(_legend(), soft_wrap=True)
            for one in shown:
                terminal.print(_in_terminal(one), soft_wrap=True)
    return 65 if all("refused" in one for one in shown) else 0


def _first(
    data: Path, encoder: Encoder, asked: Format, number: int, row: str | None
) -> list[dict[str, Any]]:
    """The first pairs and refused rows, as they are shown."""
    form, rows = recognised(read_data(str(data)), asked)
    shown: list[dict[str, Any]] = []
    count = 0
    for item in rows:
        count += 1
        if row is not None and not is_at(item.source, harmless(row)):
            continue
        for one in read_row(item, form) if isinstance(item, Row) else [item]:
            if isinstance(one, Pair):
                shown.append(_encoded(one, encoder))
            elif one.severity == "error":
                record = item.record if isinstance(item, Row) else None
                shown.append(_refused(one, [] if record is None else [_as_read(record)]))
        if len(shown) >= number:
            break
    no_row(count, str(data))
    if not shown:
        what = f"there is no row {row}" if row else "no row holds a preference"
        raise InputMissing(what, where=str(data), hint="see `likelier check`")
    return shown[:number]


def is_at(source: str, row: str) -> bool:
    """Whether ``row`` names this place: the whole of it, or the number behind its file."""
    return source == row or source.endswith((f":{row}", f"[{row}]"))


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    written = json.dumps(record, ensure_ascii=False, default=repr)
    return {"name": text("show.as_read"), "lines": [visible(written[:MAX_RECORD_CHARACTERS])]}


def _encoded(pair: Pair, encoder: Encoder) -> dict[str, Any]:
    """A pair as tokens; where that cannot be, why, and what the template makes of its messages."""
    tokens, findings = encode_pairs(encoder, [pair])
    if tokens:
        return _shown(tokens[0], encoder)
    error = next(finding for finding in findings if finding.severity == "error")
    written = [_written(text("show.prompt"), pair, pair.prompt, True, encoder)]
    for name, side in pair.sides.items():
        if name != "prompt":
            whole = side if isinstance(side, str) else (*pair.prompt, *side)
            name = text("show.with_answer", name=name)
            written.append(_written(name, pair, whole, False, encoder))
    return _refused(error, written)


def _written(name: str, pair: Pair, side: Any, generate: bool, encoder: Encoder) -> dict[str, Any]:
    """A text as it is, or messages as the template writes them, or why it does not."""
    chat = not isinstance(side, str)
    try:
        written = render_chat(encoder, side, generate, pair.tools) if chat else side
    except Unfit as unfit:
        return {"name": name, "lines": [], "refused": reworded(unfit.message)}
    return {"name": name, "lines": [visible(x) for x in written.replace(BREAK, "").split("\n")]}


def _refused(finding: Finding, rendered: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "source": finding.where,
        "refused": reworded(finding.message),
        "hint": finding.hint if language() == "en" else cure(finding.code),
        "rendered": rendered,
    }


def _shown(pair: TokenPair, encoder: Encoder) -> dict[str, Any]:
    """A pair as it is shown: runs of tokens of the prompt and of each answer, and the counts."""
    chosen, rejected = (_inputs(pair.prompt, side) for side in (pair.chosen, pair.rejected))
    if pair.label is not None:
        sides = {text("show.good") if pair.label else text("show.bad"): pair.chosen}
        same = 0
        summary = text("show.one_answer", n=len(chosen))
    else:
        sides = {text("show.chosen"): pair.chosen, text("show.rejected"): pair.rejected}
        same = common_length(pair.chosen.tokens, pair.rejected.tokens)
        apart = len(chosen) + len(rejected)
        together = apart - common_length(chosen, rejected)
        tokens = {"together": together, "apart": apart, "shared": 1 - together / apart}
        summary = text("show.two_answers", n=same, **tokens)
    answers = [
        {
            "name": name,
            "count": text("show.tokens", n=len(answer.tokens), scored=sum(answer.scored)),
            "runs": list(_runs(answer, same, encoder)),
        }
        for name, answer in sides.items()
    ]
    prompt = Completion(pair.prompt, (False,) * len(pair.prompt))
    shared = len(pair.prompt) if len(sides) > 1 else 0
    return {
        "source": pair.source,
        "summary": summary,
        "prompt": list(_runs(prompt, shared, encoder, unscored="prompt")),
        "prompt_count": text("show.prompt_tokens", n=len(pair.prompt)),
        "answers": answers,
    }


def _inputs(prompt: tuple[int, ...], completion: Completion) -> tuple[int, ...]:
    """The tokens that a forward needs: those before the last scored one."""
    last = max(place for place, wanted in enumerate(completion.scored) if wanted)
    return (*prompt, *completion.tokens[:last])


def _runs(
    side: Completion, same: int, encoder: Encoder, unscored: str = "context"
) -> Iterator[dict[str, Any]]:
    """Neighbouring tokens of one kind: scored or not, a stop or not; ``shared`` are the first
    ``same``, which the tree computes once for both answers.

    A stop is every id at which generation ends, and a control token that ends an answer.
    """
    last = {*side.tokens[-1:]} if any(side.scored) else set()  # a prompt may end in a header
    ends = {*encoder.end_ids.values(), *encoder.control & last}
    marked = [
        ("scored" if wanted else unscored, token in ends, number < same)
        for number, (token, wanted) in enumerate(zip(side.tokens, side.scored, strict=True))
    ]
    for (kind, stop, shared), run in groupby(
        zip(marked, side.tokens, strict=True), key=itemgetter(0)
    ):
        pieces = _pieces([token for _, token in run], encoder)
        yield {"kind": kind, "stop": stop, "shared": shared, "pieces": pieces}


def _legend() -> Text:
    kinds = {"prompt": "dim", "scored": "green", "shared": "green underline"}
    kinds |= {"stop": "bold magenta", "context": "dim"}
    shown = ((f" {text(f'show.legend_{kind}')} ", style) for kind, style in kinds.items())
    return Text.assemble(*shown, f" {BRANCH} {text('show.parts')}")


def _in_terminal(shown: Mapping[str, Any]) -> Text:
    if "refused" in shown:
        return _refused_in_terminal(shown)
    line = Text.assemble(("\n" + visible(shown["source"]), "bold"))
    line.append(f"  {text('show.prompt')} {shown['prompt_count']}\n")
    _append_runs(line, shown["prompt"])
    for answer in shown["answers"]:
        line.append(f"{answer['name']}  {answer['count']}\n")
        _append_runs(line, answer["runs"])
    return line.append(shown["summary"])


def _append_runs(line: Text, runs: Sequence[Mapping[str, Any]]) -> None:
    was_shared = False
    for run in runs:
        if was_shared and not run["shared"]:
            line.append(f"{BRANCH} ")
        was_shared = run["shared"]
        style = STYLES["stop" if run["stop"] and run["kind"] == "scored" else run["kind"]]
        underline = " underline" if run["shared"] and run["kind"] != "prompt" else ""
        pieces = " ".join(run["pieces"])
        pieces = f"[stop {pieces}]" if run["stop"] else pieces
        line.append(f"({pieces})" if run["kind"] == "context" else pieces, style + underline)
        line.append(" ")
    line.append("\n")


def _refused_in_terminal(shown: Mapping[str, Any]) -> Text:
    line = Text.assemble(("\n" + visible(shown["source"]), "bold"), "  ")
    line.append(text("show.refused", why=visible(shown["refused"])), "red")
    line.append(f"\n  {visible(shown['hint'])}")
    for one in shown["rendered"]:
        line.append(f"\n{one['name']}\n")
        if "refused" in one:
            line.append(text("show.refused", why=visible(one["refused"])), "red")
        line.append("\n".join(one["lines"]), STYLES["prompt"])
    return line


def _pieces(ids: Sequence[int], encoder: Encoder) -> list[str]:
    """The text of every token; tokens that only together make a character stay together."""
    shown = (piece.replace("\n", "⏎").replace(" ", "␣") for piece in token_texts(encoder, ids))
    return [visible(piece) for piece in shown if piece]
