"""`likelier export`: what a run trained as one plain model, compared with what was trained."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from likelier.base.errors import ConfigError, InputMissing, LikelierError, OutputError
from likelier.base.files import must_be_apart, write_folder
from likelier.base.terminal import say
from likelier.batching.batch import completions_of
from likelier.config import Config, load_config
from likelier.data.load import load as load_data
from likelier.data.records import TokenPair
from likelier.export.merge import save_merged
from likelier.model.frozen import dtype_name
from likelier.model.load import load, parse_dtype
from likelier.model.policy import Policy
from likelier.reference.cache import StoredReference, cached_reference
from likelier.training.memory import memory_of, tokens_per_batch

MOST_PAIRS = 64  # that are compared


def export(run: Path, out: Path, dtype: str = "auto") -> None:
    """Merge the adapter of a run into its base, write the model to ``out``, and say what that
    changed of the log-probs of held-out pairs.

    ``dtype`` is that of the weights; ``auto`` is the base's.

    Raises InputMissing where there is no run, ConfigError for a run without an adapter, OutputError
    where ``out`` is there already.
    """
    adapter = run / "adapter"
    if not (run / "config.yaml").is_file():
        what, hint = "there is no run here", "give the folder that `likelier train` wrote"
        raise InputMissing(what, where=str(run), hint=hint)
    if (run / "model").is_dir():
        what, hint = "this run trained all weights", f"{run / 'model'} is a plain model already"
        raise ConfigError(what, where=str(run), hint=hint)
    if not adapter.is_dir():
        what, hint = "this run has saved no adapter", "train it to its end, then export"
        raise InputMissing(what, where=str(run), hint=hint)
    if out.exists():
        raise OutputError("is there already", where=f"--out {out}", hint="name another folder")
    config = load_config(run / "config.yaml")
    must_be_apart(out, f"--out {out}", [run, config.model.path])
    policy = load(adapter, dtype=config.model.dtype, frozen=True, quantise=config.model.quantise)
    pairs = _pairs_of(config, policy)
    trained = _scored(policy, pairs) if pairs else None
    wanted = policy.causal_lm.config.dtype if dtype == "auto" else parse_dtype(dtype)
    assert isinstance(wanted, torch.dtype)
    write_folder(out, partial(save_merged, policy, wanted), {"format": 2})
    say(f"merged, in {dtype_name(wanted)}: {out}")
    if trained is not None:
        computes = policy.dtype
        del policy  # two models at once would need twice the memory
        say(_compared(trained, _scored(load(out, dtype=computes, frozen=True), pairs), pairs))


def _pairs_of(config: Config, policy: Policy) -> Sequence[TokenPair]:
    """Held-out pairs of a run, or some of those that it trained on; none where they are gone."""
    encoder = policy.encoder(config.data.template, config.data.today)
    try:
        data = load_data(config.data, encoder, config.loss, config.train.seed)
    except LikelierError as error:
        say(f"not compared with what was trained: {error.what} ({error.where})")
        return []
    if not data.eval:
        say("no pairs were held out: pairs of the training are compared")
    return (data.eval or data.train)[:MOST_PAIRS]


def _scored(policy: Policy, pairs: Sequence[TokenPair]) -> StoredReference:
    """The log-probs of the tokens of every completion."""
    sequences = {one for pair in pairs for one in completions_of(pair)}
    return cached_reference(policy, sequences, tokens_per_batch(memory_of(policy), policy.device))


def _compared(trained: StoredReference, merged: StoredReference, pairs: Sequence[TokenPair]) -> str:
    """How far two models are apart, in words."""
    both = [(trained.values[key].double(), merged.values[key].double()) for key in trained.values]
    apart = torch.cat([(ours - theirs).abs() for ours, theirs in both])

    def prefers_chosen(scored: StoredReference, pair: TokenPair) -> bool:
        chosen, rejected = map(scored.completion_logp, completions_of(pair))
        return chosen > rejected

    turned = sum(prefers_chosen(trained, p) != prefers_chosen(merged, p) for p in pairs)
    return (
        f"beside what was trained, on {len(pairs)} pairs: {apart.mean():.2g} nats a token apart on "
        f"average, {apart.max():.2g} at most; {turned} prefer the other answer"
    )
