"""Models whose rotary table depends on the length of the forward: alone or together, one value."""

import random
from types import SimpleNamespace

import pytest
import torch
from tests.support.numerics import VOCAB, distance, gradients, sequence
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from likelier.base.errors import DataError
from likelier.batching.batch import Scored, padded_batch
from likelier.model.limits import RotaryTables, rotary_tables
from likelier.model.policy import Policy, score_sequences

ORIGINAL = 16
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def ready_model(kind: str) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "longrope":
            config = Phi3Config(
                **SMALL,
                max_position_embeddings=64,
                original_max_position_embeddings=ORIGINAL,
                rope_parameters=LONGROPE,
            )
            model = Phi3ForCausalLM(config)
        else:
            model = LlamaForCausalLM(
                LlamaConfig(**SMALL, max_position_embeddings=ORIGINAL, rope_parameters=DYNAMIC)
            )
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return Policy(model.double().train(), None)  # type: ignore[arg-type]


def of_length(inputs: int, seed: int) -> Scored:
    """So many tokens to compute, and one more to predict."""
    rng = random.Random(seed)
    words = [rng.randrange(3, VOCAB) for _ in range(inputs + 1)]
    return sequence(words[:4], words[4:])


MIXED = [of_length(length, seed) for seed, length in enumerate((10, 24, 16, 17, 30, 12))]


def loop(policy: Policy, sequences: list[Scored]) -> list[Tensor]:
    """One forward a sequence over what must be computed, so that its length is the same."""
    logps = []
    for one in sequences:
        tokens = torch.tensor(one.tokens)
        logits_TV = policy.model(input_ids=tokens[None, :-1], use_cache=False).logits[0]
        logp_T = torch.log_softmax(logits_TV, -1).gather(1, tokens[1:, None])[:, 0]
        logps.append(logp_T[torch.tensor(one.scored[1:])])
    return logps


def test_longrope_rows_on_both_sides_of_the_original_length() -> None:
    policy = ready_model("longrope")
    assert policy.backend == "padded" and "longrope" in str(policy.backend_reason)
    expected = loop(policy, MIXED)
    torch.stack([logps.sum() for logps in expected]).sum().backward()
    wanted = gradients(policy.model)
    with policy.running() as scorer:
        batch = padded_batch(MIXED)
        logp_E = scorer(batch)
        batch.completion_logps(logp_E).sum().backward()
    assert distance(logp_E[batch.entry_K], torch.cat(expected)) < 1e-6
    found = gradients(policy.model)
    assert max(distance(found[name], wanted[name]) for name in wanted) < 1e-6
    for place, logps in score_sequences(policy, MIXED, budget=64):
        assert distance(logps, expected[place]) < 1e-6


def test_the_two_tables_differ_or_this_would_prove_nothing() -> None:
    policy = ready_model("longrope")
    policy.scorer.tables = RotaryTables()
    with torch.no_grad(), policy.running() as scorer:
        batch = padded_batch(MIXED)
        together = scorer(batch)[batch.entry_K]
    assert distance(together, torch.cat(loop(policy, MIXED))) > 1e-2


def test_dynamic_tables_serve_the_tree_up_to_the_original_length() -> None:
    policy = ready_model("dynamic")
    assert (policy.backend, policy.backend_reason) == ("segments", None)
    short = [of_length(length, 0) for length in (6, 11, ORIGINAL)]
    with torch.no_grad():
        expected = loop(policy, short)
    for place, logps in score_sequences(policy, short):
        assert distance(logps, expected[place]) < 1e-6


@pytest.mark.parametrize("backend", ["segments", "padded"])
def test_dynamic_tables_refuse_what_they_would_not_give_twice(backend: str) -> None:
    policy = ready_model("dynamic")
    long = sequence([3] * 10, [4] * (ORIGINAL - 8))
    with pytest.raises(DataError, match="a sequence of 17 tokens: beyond 16") as caught:
        list(score_sequences(policy, [sequence([3], [4]), long]))
    assert "data.max_length: 16" in str(caught.value)


def test_tables_are_read_from_the_configuration() -> None:
    assert rotary_tables(SimpleNamespace()) == RotaryTables()
    assert rotary_tables(LlamaConfig()) == RotaryTables()
    by_layer = {
        "full_attention": LONGROPE,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert rotary_tables(SimpleNamespace(rope_parameters=by_layer)).longrope == (ORIGINAL,)
    dynamic = SimpleNamespace(rope_parameters=DYNAMIC, max_position_embeddings=99)
    assert rotary_tables(dynamic) == RotaryTables(max_length=99)
