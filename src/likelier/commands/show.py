"""`likelier show`: what the model sees of a pair, token by token, in a terminal or as a page."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.base.files import write_text
from likelier.base.findings import Finding
from likelier.base.model_files import load_tokenizer
from likelier.base.terminal import say, visible
from likelier.batching.batch import completions_of, tree_batch
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.data.load import no_row, refuse
from likelier.data.records import Completion, TokenPair, common_length
from likelier.data.shapes import Format, format_with, recognised
from likelier.data.sources import read_data
from likelier.data.workers import Shared, Task, chunks, unpack_tokens
from likelier.pages import render_page
from likelier.pages.texts import text

STYLES = {"prompt": "dim", "scored": "green", "context": "dim", "stop": "bold magenta"}
MARKS = {"prompt": "{}", "scored": "{}", "context": "({})", "stop": "[stop {}]"}
BROKEN = "\ufffd"  # what decoding gives for a part of a character
BRANCH = "┆"  # stands where the two answers part


def show(
    data: Path,
    model: str,
    number: int,
    columns: Mapping[str, str | None],
    chat: bool = False,
    template: Mapping[str, Any] | None = None,
    html: Path | None = None,
) -> None:
    """Show the first ``number`` pairs: prompt, scored tokens, context, stop, what is shared.

    Only the tokenizer is loaded, and no more rows are read than needed. Raises what reading,
    loading and encoding raise.
    """
    tokenizer, generation = load_tokenizer(model)
    encoder = build_encoder(tokenizer, generation, template)
    pairs = _first_pairs(data, encoder, format_with(columns, chat), number)
    shown = [_shown(pair, tokenizer) for pair in pairs]
    if html is not None:
        page = render_page("show.html", ["page.css"], name=str(data), pairs=shown)
        write_text(html, page)
        say(f"page: {visible(str(html))}")
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_legend())
    for one in shown:
        console.print(_in_terminal(one))


def _first_pairs(data: Path, encoder: Encoder, asked: Format, number: int) -> list[TokenPair]:
    form, rows = recognised(read_data(str(data)), asked)
    task = Task(form, encoder, keep_pairs=True, keep_tokens=True)
    pairs: list[TokenPair] = []
    bad: list[Finding] = []
    count = 0
    for chunk in chunks(rows, task, rows_at_once=4 * number):
        count += chunk.rows
        bad += chunk.findings
        pairs += unpack_tokens(chunk, Shared())
        if len(pairs) >= number:
            break
    no_row(count, str(data))
    refuse(bad, "drop", usable=len(pairs))
    return pairs[:number]


def _shown(pair: TokenPair, tokenizer: Tokenizer) -> dict[str, Any]:
    """A pair as it is shown: runs of tokens of the prompt and of each answer, and the counts."""
    chosen, rejected = completions_of(pair)
    if pair.label is not None:
        sides = {text("show.good") if pair.label else text("show.bad"): pair.chosen}
        same = 0
        summary = text("show.one_answer", n=len(chosen.inputs))
    else:
        sides = {text("show.chosen"): pair.chosen, text("show.rejected"): pair.rejected}
        same = common_length(pair.chosen.tokens, pair.rejected.tokens)
        together = tree_batch([chosen, rejected]).num_tokens
        apart = len(chosen.inputs) + len(rejected.inputs)
        tokens = {"together": together, "apart": apart, "shared": 1 - together / apart}
        summary = text("show.two_answers", n=same, **tokens)
    answers = [
        {
            "name": name,
            "count": text("show.tokens", n=len(answer.tokens), scored=sum(answer.scored)),
            "runs": list(_runs(answer, same, tokenizer)),
        }
        for name, answer in sides.items()
    ]
    return {
        "source": pair.source,
        "summary": summary,
        "prompt": _run("prompt", len(sides) > 1, pair.prompt, tokenizer),
        "prompt_count": text("show.prompt_tokens", n=len(pair.prompt)),
        "answers": answers,
    }


def _runs(answer: Completion, same: int, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The runs of an answer, of which the first ``same`` tokens stand in both answers."""
    kinds = ["scored" if wanted else "context" for wanted in answer.scored]
    if answer.tokens[-1] in tokenizer.all_special_ids:  # a cut answer has no stop
        kinds[-1] = "stop"
    marked = [(kind, number < same) for number, kind in enumerate(kinds)]
    for (kind, shared), run in groupby(zip(marked, answer.tokens, strict=True), key=itemgetter(0)):
        yield _run(kind, shared, [token for _, token in run], tokenizer)


def _run(kind: str, shared: bool, ids: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """Neighbouring tokens of one kind: prompt, scored, context or stop; ``shared`` where the tree
    computes them once for both answers.
    """
    return {"kind": kind, "shared": shared, "pieces": _pieces(ids, tokenizer)}


def _legend() -> Text:
    return Text.assemble(
        "prompt ",
        (" read only ", "dim"),
        "  answer ",
        (" scored ", "green"),
        " ",
        (" shared by both ", "green underline"),
        f" {BRANCH} here they part ",
        (" stop, scored ", "bold magenta"),
        " ",
        (" context, not scored ", "dim"),
    )


def _in_terminal(shown: Mapping[str, Any]) -> Text:
    line = Text.assemble(("\n" + visible(shown["source"]), "bold"))
    line.append(f"  prompt {shown['prompt_count']}\n")
    line.append(" ".join(shown["prompt"]["pieces"]) + "\n", STYLES["prompt"])
    for answer in shown["answers"]:
        line.append(f"{answer['name']}  {answer['count']}\n")
        was_shared = False
        for run in answer["runs"]:
            if was_shared and not run["shared"]:
                line.append(f"{BRANCH} ")
            was_shared = run["shared"]
            pieces = MARKS[run["kind"]].format(" ".join(run["pieces"]))
            line.append(pieces, STYLES[run["kind"]] + (" underline" if run["shared"] else ""))
            line.append(" ")
        line.append("\n")
    return line.append(shown["summary"])


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of every token; tokens that only together make a character stay together."""
    pieces: list[str] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        piece = str(tokenizer.decode(list(ids[start:stop])))
        if BROKEN in piece and stop - start < 4 and stop < len(ids):
            continue
        pieces.append(visible(piece.replace("\n", "⏎").replace(" ", "␣")))
        start = stop
    return pieces
