"""`likelier score`: the log-probs of both answers of every pair, in file order."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from likelier.base.child import in_child
from likelier.base.errors import DataError
from likelier.base.files import must_be_apart, write_text
from likelier.base.terminal import say
from likelier.batching.batch import completions_of
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_pairs
from likelier.data.load import read_pairs, refuse
from likelier.data.records import Pair, TokenPair
from likelier.data.shapes import format_with
from likelier.model.limits import say_limits
from likelier.model.load import load
from likelier.model.policy import Policy
from likelier.reference.cache import StoredReference, cached_reference
from likelier.training.memory import memory_of, tokens_per_batch


def score(
    data: Path,
    model: str,
    out: Path | None,
    columns: Mapping[str, str | None],
    chat: bool = False,
    template: Mapping[str, Any] | None = None,
    dtype: str = "auto",
) -> None:
    """Write one JSON object a row: source, summed log-probs in nats, scored tokens.

    To standard output, or to ``out``, which is replaced whole. Values are cached by content.
    ``chat`` makes turns of plain texts, ``template`` holds arguments of the chat template, and
    ``dtype`` is what is computed in.

    Raises DataError where a row cannot be used: every row gets its values or none does.
    """
    if out is not None:
        must_be_apart(out, f"--out {out}", [data, model])
    # A bad row is found before any model is loaded.
    read = read_pairs(data, format_with(columns, chat))
    policy = load(model, dtype=dtype, frozen=True)
    pairs = pairs_to_score(policy, policy.encoder(template), read)
    scored = logps_of(policy, pairs)
    lines = []
    for pair in pairs:
        chosen, rejected = completions_of(pair)
        row = {
            "source": pair.source,
            "chosen_logp": scored.completion_logp(chosen),
            "rejected_logp": scored.completion_logp(rejected),
            "chosen_tokens": chosen.num_scored,
            "rejected_tokens": rejected.num_scored,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if out is None:
        sys.stdout.writelines(lines)
    else:
        write_text(out, "".join(lines))
        say(f"{len(lines)} rows in {out}")


def pairs_to_score(policy: Policy, encoder: Encoder, read: Sequence[Pair]) -> list[TokenPair]:
    """The pairs as this model's tokens. Raises DataError where one does not fit the model."""
    pairs, findings = in_child(encode_pairs, encoder, read)
    refuse(findings, "error")
    for pair in pairs:
        if encoder.at_most(pair.length) < pair.length:
            what = f"{pair.length} tokens, and the model has {encoder.positions} positions"
            raise DataError(what, where=pair.source, hint="shorten its texts, or delete the row")
    say_limits(policy.causal_lm, None, pairs)
    return pairs


def logps_of(
    policy: Policy, pairs: Sequence[TokenPair], base_only: bool = False
) -> StoredReference:
    """The log-probs of all completions, cached; ``base_only`` switches adapters off."""
    if policy.backend_in_words:
        say(policy.backend_in_words)
    completions = {completion for pair in pairs for completion in completions_of(pair)}
    budget = tokens_per_batch(memory_of(policy), policy.device)
    return cached_reference(policy, completions, budget, base_only)
