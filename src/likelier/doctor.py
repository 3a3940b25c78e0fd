"""The pair doctor: what is wrong with a file of preferences, alone or for a model."""

from dataclasses import replace
from pathlib import Path

from likelier.data.check import Summary, load_pairs, summary


def examine(path: Path, columns: dict[str, str], model: str | None = None) -> Summary:
    """Read every row, and with a model also put every pair through its template and tokenizer.

    Raises:
        InputMissing: the file or the model is not there.
        DataError: the file cannot be read at all, or the model's tokenizer or template cannot
            be used.
        ConfigError: ``columns`` has a key that is none of ours.
    """
    loaded = load_pairs(path, columns)
    if model is None:
        return summary(loaded)
    from likelier.data.encoder import build_encoder
    from likelier.data.tokens import encode_pairs
    from likelier.model.load import load_tokenizer

    encoder = build_encoder(*load_tokenizer(model))
    token_pairs, findings = encode_pairs(encoder, loaded.pairs)
    usable = {pair.source for pair in token_pairs}
    return summary(
        replace(
            loaded,
            pairs=tuple(pair for pair in loaded.pairs if pair.source in usable),
            findings=(*loaded.findings, *findings),
        )
    )
