"""`likelier show`: what the model sees of a pair, token by token."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.batch.layout import answers_of, tree_pass
from likelier.batch.tree import common_length
from likelier.data.check import load_pairs, refuse
from likelier.data.encoder import build_encoder
from likelier.data.records import Answer, TokenPair
from likelier.data.tokens import encode_pairs
from likelier.model.load import load_tokenizer

STYLES = {"scored": "green", "context": "dim", "stop": "bold magenta"}
BROKEN = "\ufffd"  # what decoding gives for a part of a character


def show(data: Path, model: str, number: int, columns: Mapping[str, str]) -> None:
    """Print the first ``number`` pairs: prompt, scored tokens, context, stop, what is shared.

    Only the tokenizer is loaded. Raises what reading, loading and encoding raise.
    """
    loaded = load_pairs(data, dict(columns))
    refuse(loaded.findings, "drop", usable=len(loaded.pairs))
    tokenizer, generation = load_tokenizer(model)
    encoder = build_encoder(tokenizer, generation)
    pairs, findings = encode_pairs(encoder, loaded.pairs[:number])
    refuse(findings, "drop", usable=len(pairs))
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        Text.assemble(
            "prompt ",
            (" read only ", "dim"),
            "  answer ",
            (" scored ", "green"),
            " ",
            (" stop, scored ", "bold magenta"),
            " ",
            (" context, not scored ", "dim"),
        )
    )
    for pair in pairs:
        console.print(_told(pair, tokenizer))


def _told(pair: TokenPair, tokenizer: Tokenizer) -> Text:
    chosen, rejected = answers_of(pair)
    together = tree_pass([chosen, rejected]).num_tokens
    apart = len(chosen.inputs) + len(rejected.inputs)
    same = common_length(pair.chosen.tokens, pair.rejected.tokens)
    text = Text.assemble(("\n" + pair.source, "bold"), f"  prompt {len(pair.prompt)} tokens\n")
    text.append(" ".join(_pieces(pair.prompt, tokenizer)) + "\n", "dim")
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        text.append(f"{name}  {len(answer.tokens)} tokens, {sum(answer.scored)} scored\n")
        text.append_text(_answer(answer, tokenizer))
    text.append(
        f"the answers part after {same} tokens; as a tree the pair takes {together} tokens, "
        f"one by one {apart}"
    )
    return text


def _answer(answer: Answer, tokenizer: Tokenizer) -> Text:
    ends = answer.tokens[-1] in tokenizer.all_special_ids  # a cut answer has no stop
    kinds = ["scored" if wanted else "context" for wanted in answer.scored]
    if ends:
        kinds[-1] = "stop"
    text = Text()
    for kind, run in groupby(zip(kinds, answer.tokens, strict=True), key=itemgetter(0)):
        pieces = " ".join(_pieces([token for _, token in run], tokenizer))
        marked = {"scored": pieces, "context": f"({pieces})", "stop": f"[stop {pieces}]"}[kind]
        text.append(marked + " ", STYLES[kind])
    return text.append("\n")


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of every token; tokens that only together make a character stay together."""
    pieces: list[str] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        piece = str(tokenizer.decode(list(ids[start:stop])))
        if BROKEN in piece and stop - start < 4 and stop < len(ids):
            continue
        pieces.append(piece.replace("\n", "⏎").replace(" ", "␣"))
        start = stop
    return pieces
