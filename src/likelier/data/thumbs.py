"""Rows of one answer and a thumb (``prompt``, ``completion``, ``label``) as token pairs.

The rejected side of such a pair is no worse answer but a mismatched one: the answer to another
prompt, drawn once from the seed and the content, from which KTO estimates how far the policy is
from the reference. Losses that need none get the answer itself again, which costs nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from likelier.base.errors import DataError
from likelier.config import Config
from likelier.config.losses import needs
from likelier.data.check import Data, load_memory, load_pairs, refuse
from likelier.data.encoder import Encoder
from likelier.data.fit import fit
from likelier.data.prepare import Prepared, reading_of
from likelier.data.records import Labelled, Pair, TokenPair
from likelier.data.split import split_by_prompt
from likelier.data.tokens import encode_pairs


def prepare_thumbs(
    config: Config,
    encoder: Encoder,
    train_rows: Iterable[Any] | None = None,
    eval_rows: Iterable[Any] | None = None,
) -> Prepared:
    """As `prepare`, for rows of one answer each.

    Raises DataError where the rows are pairs, or all have one prompt.
    """
    train, counts = _read(config, encoder, config.data.train, train_rows, "train")
    if eval_rows is not None or config.data.eval_path:
        held, counts["eval"] = _read(
            config, encoder, config.data.eval_path or "", eval_rows, "eval"
        )
        return Prepared(train, held, counts)
    if config.data.eval_share is None:
        return Prepared(train, (), counts)
    left, out = split_by_prompt(train, config.data.eval_share, config.train.seed)
    return Prepared(tuple(left), tuple(out), counts)


def _read(
    config: Config, encoder: Encoder, path: Data, rows: Iterable[Any] | None, name: str
) -> tuple[tuple[TokenPair, ...], dict[str, Any]]:
    reading = reading_of(config.data)
    loaded = load_pairs(path, reading) if rows is None else load_memory(rows, reading, name)
    if loaded.pairs:
        raise DataError(
            f"{config.loss.name} learns from single answers with a label, these rows are pairs",
            where=name if rows is not None else str(path),
            hint="give rows of prompt, completion and label, or choose a loss of pairs",
        )
    refuse(loaded.findings, config.data.on_bad_row, usable=len(loaded.labelled))
    others = mismatched(loaded.labelled, config.train.seed)
    pairs = [
        Pair(row.prompt, row.completion, other.completion, row.source, row.tools)
        for row, other in zip(loaded.labelled, others, strict=True)
    ]
    encoded, found = encode_pairs(encoder, pairs)
    refuse(found, config.data.on_bad_row, usable=len(encoded))
    label = {row.source: row.label for row in loaded.labelled}
    fitted = fit(encoded, config.data.max_length, config.data.overlong, encoder)
    tokens = tuple(replace(pair, label=label[pair.source]) for pair in fitted.pairs)
    if not needs(config.loss, "mismatched"):
        tokens = tuple(replace(pair, rejected=pair.chosen) for pair in tokens)
    findings = (*loaded.findings, *found, *fitted.findings)
    return tokens, {
        "rows": loaded.rows,
        "used": len(tokens),
        "dropped": loaded.rows - len(tokens),
        "trimmed": fitted.trimmed,
        "findings": dict(Counter(finding.code for finding in findings)),
    }


def mismatched(rows: Sequence[Labelled], seed: int) -> list[Labelled]:
    """For every row one of another prompt and with another answer.

    Rows stand in a circle by a keyed hash of their content, so that neither their order nor their
    number in the file decides; each takes the next that fits.

    Raises DataError where there is none.
    """
    order = sorted(range(len(rows)), key=lambda at: _key(rows[at], seed))
    found: dict[int, Labelled] = {}
    for place, at in enumerate(order):
        for further in range(1, len(order)):
            other = rows[order[(place + further) % len(order)]]
            if other.prompt != rows[at].prompt and other.completion != rows[at].completion:
                found[at] = other
                break
        else:
            raise DataError(
                "no other prompt has another answer, so none can be mismatched",
                where=rows[at].source,
                hint="give rows of at least two prompts",
            )
    return [found[at] for at in range(len(rows))]


def _key(row: Labelled, seed: int) -> bytes:
    content = repr((seed, row.prompt, row.completion, row.label))
    return blake2b(content.encode(errors="surrogatepass"), digest_size=16).digest()
