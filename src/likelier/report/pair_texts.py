"""The texts behind the pairs that a report names, kept in the run folder while they are known."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from likelier.base.child import in_child
from likelier.base.files import write_lines
from likelier.data.records import TokenPair
from likelier.report.read import (
    PAIR_TEXTS,
    RunFiles,
    pair_log_folder,
    read_pair_log,
    read_run,
)

MAX_PLACES = 20  # of findings in the data, whose pairs are kept
TOKENS_OF_EACH = 4  # pairs of a kind that are kept token by token


def keep_pair_texts(
    run: Path, pairs: Iterable[TokenPair], decode: Callable[[Sequence[int]], str]
) -> None:
    """Write down prompt and completions, as the model saw them, of the pairs that a report of the
    run would name now: the extremes of the pair log, and the first places of findings.

    Raises OutputError where the disk refuses.
    """
    named = _named(read_run(run))
    rows = in_child(_rows, [pair for pair in pairs if pair.source in named], decode)
    write_lines(run / PAIR_TEXTS, rows)


def pairs_by_token(run: Path) -> list[str]:
    """The places of the pairs whose tokens are worth keeping, `TOKENS_OF_EACH` of each kind: of the
    largest and the smallest margin and those that changed most, as the pair log saw them last.
    """
    log = read_pair_log(pair_log_folder(run), [])
    kinds = (log.largest, log.smallest, log.most_changed) if log else ()
    sources = (row["source"] for kind in kinds for row in kind[:TOKENS_OF_EACH])
    return list(dict.fromkeys(sources))


def _named(run: RunFiles) -> set[str]:
    log = run.pair_log
    extremes = [*log.smallest, *log.largest, *log.most_changed] if log else []
    places = [place for kind in run.findings for place in kind.located]
    return {row["source"] for row in (*extremes, *places[:MAX_PLACES])}


def _rows(pairs: Iterable[TokenPair], decode: Callable[[Sequence[int]], str]) -> list[Any]:
    return [_row(pair, decode) for pair in pairs]


def _row(pair: TokenPair, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.label is not None:  # the rejected one belongs to another prompt, or is the same
        sides = {"completion": pair.chosen}
    texts = {name: decode(side.tokens) for name, side in sides.items()}
    return {"source": pair.source, "prompt": decode(pair.prompt), **texts}
