"""A share of the prompts set aside for evaluation, chosen by content."""

import json
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from likelier.data.records import Finding, Pair, TokenPair
from likelier.errors import DataError

P = TypeVar("P", Pair, TokenPair)


def split_by_prompt(pairs: Sequence[P], share: float, seed: int) -> tuple[list[P], list[P]]:
    """Part ``pairs`` into (train, eval) so that no prompt is on both sides.

    The prompts with the smallest keyed hash of their content go to ``eval``: as many as
    ``share`` of all distinct prompts, at least one, and at least one stays. Row numbers and
    file order decide nothing; the order within each side is the given one.

    Raises:
        DataError: there are fewer than two distinct prompts.
    """
    keys = [_key(pair, seed) for pair in pairs]
    prompts = sorted(set(keys))
    if len(prompts) < 2:
        raise DataError(
            f"{len(prompts)} distinct prompt cannot be split into train and eval",
            where="data.eval",
            mend="give a file, or set data.eval: null",
        )
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    held_out = set(prompts[:count])
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in held_out]
    held = [pair for pair, key in zip(pairs, keys, strict=True) if key in held_out]
    return train, held


def _key(pair: Pair | TokenPair, seed: int) -> bytes:
    # NFC, and no spaces at the ends: the same Korean question typed on two systems is one prompt
    prompt = pair.prompt.strip() if isinstance(pair.prompt, str) else pair.prompt
    content = unicodedata.normalize("NFC", json.dumps(prompt, ensure_ascii=False, sort_keys=True))
    salt = f"{seed}\n".encode()
    return blake2b(salt + content.encode(errors="surrogatepass"), digest_size=16).digest()


def shared_prompts(train: Sequence[P], held_out: Sequence[P]) -> list[Finding]:
    """A warning for each held-out pair whose prompt is trained on; it names both rows."""
    trained = {_key(pair, 0): pair.source for pair in reversed(train)}
    findings = []
    for pair in held_out:
        if source := trained.get(_key(pair, 0)):
            message = f"the prompt is also in the training data, at {source}"
            mend = "delete it from one of the two"
            findings.append(Finding("leak", "warning", pair.source, "prompt", message, mend))
    return findings
