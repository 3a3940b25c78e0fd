"""What the loss makes of the data: pairs, or answers with a thumb; with its columns and masks."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from likelier.config import Config
from likelier.config.losses import needs
from likelier.data.columns import rows_by_source, with_columns
from likelier.data.encoder import Encoder
from likelier.data.prepare import Prepared, prepare
from likelier.data.records import TokenPair
from likelier.data.stops import without_stops
from likelier.data.thumbs import prepare_thumbs


def prepare_for_loss(
    config: Config,
    encoder: Encoder,
    train_rows: Iterable[Any] | None = None,
    eval_rows: Iterable[Any] | None = None,
) -> Prepared:
    """`prepare`, or its counterpart for rows of one answer, and what the loss reads beside.

    Raises DataError where a column that the loss reads is missing, and what the parts raise.
    """
    loss = config.loss
    wanted = [name for name in ("margin",) if needs(loss, name)]
    wanted += ["weight"] if loss.pair_weights else []
    if wanted:  # rows are read once more for them
        train_rows, eval_rows = (None if r is None else list(r) for r in (train_rows, eval_rows))
    make = prepare_thumbs if needs(loss, "label") else prepare
    data = make(config, encoder, train_rows, eval_rows)
    if wanted:
        found = rows_by_source(config, config.data.train, train_rows, "train")
        if eval_rows is not None or config.data.eval_path:
            found |= rows_by_source(config, config.data.eval_path or "", eval_rows, "eval")
        data = _mapped(data, lambda pairs: with_columns(pairs, found, wanted))
    if not loss.stop_token:
        ends = encoder.end_ids.values()
        data = _mapped(data, lambda pairs: without_stops(pairs, ends))
    return data


def _mapped(data: Prepared, change: Any) -> Prepared:
    """Both sides of the data with something done to their pairs."""
    train: Sequence[TokenPair] = change(data.train)
    return replace(data, train=tuple(train), eval=tuple(change(data.eval)))
