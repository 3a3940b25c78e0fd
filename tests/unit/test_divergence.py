"""KL and entropy on a policy's own draws: against sums over the whole vocabulary."""

import json
import math
from pathlib import Path

import pytest
import torch
from tests.support.runs import Place, make_place
from tests.support.tiny import save_tiny

from likelier.generation.divergence import divergences, score_drawn
from likelier.generation.sample import Sample, decoding, decoding_by, sample_batch
from likelier.model.load import load
from likelier.model.logprob import entropies_of
from likelier.model.policy import Policy
from likelier.run import train

PROMPT = (5, 9, 30)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    """Two random models in float64."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(load(save_tiny(folder / str(s), torch.float64, seed=s)) for s in (0, 1))


def probabilities(policy: Policy, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return policy.causal_lm.eval()(torch.tensor([tokens])).logits[0].double().softmax(-1)


def test_one_answer_by_hand(two: tuple[Policy, Policy]) -> None:
    """Two tokens and the end token, each under both models, from all logits."""
    policy, initial = two
    answer, end = (40, 41), 1
    whole = (*PROMPT, *answer, end)
    drawn = score_drawn(policy, [PROMPT], [Sample("", True, answer, end)])
    p, q = (probabilities(one, whole)[len(PROMPT) - 1 : -1] for one in two)
    at = torch.arange(3), torch.tensor([*answer, end])
    ratio = p[at].log() - q[at].log()
    ((k1, k3),) = divergences(drawn, initial)
    assert k1 == pytest.approx(float(ratio.sum()), abs=1e-6)
    assert k3 == pytest.approx(float(((-ratio).exp() - 1 + ratio).sum()), abs=1e-6)
    entropy = -(p * p.log()).sum(-1)
    assert drawn.entropy_RK[0].tolist() == pytest.approx(entropy.tolist(), abs=1e-6)


def test_estimates_are_unbiased_and_zero_where_nothing_moved(two: tuple[Policy, Policy]) -> None:
    """One token drawn many times: its KL is a sum over the vocabulary."""
    policy, initial = two
    encoder = policy.encoder()
    with decoding_by(policy, encoder, decoding(1.0, 1, [1]), 0):
        samples = sample_batch(policy, encoder, [PROMPT] * 800)
    drawn = score_drawn(policy, [PROMPT] * len(samples), samples)
    p, q = (probabilities(one, PROMPT)[-1] for one in two)
    truth = float((p * (p.log() - q.log())).sum())
    found = torch.tensor(divergences(drawn, initial))
    errors = found.std(0) / len(found) ** 0.5
    assert truth > 0.01 and bool(((found.mean(0) - truth).abs() < 4 * errors).all())
    assert float(found[:, 1].min()) >= 0 > float(found[:, 0].min())
    assert divergences(drawn, policy) == [(0.0, 0.0)] * len(samples)


def test_an_answer_without_tokens(two: tuple[Policy, Policy]) -> None:
    drawn = score_drawn(two[0], [PROMPT], [Sample("", False)])
    assert divergences(drawn, two[1]) == [(0.0, 0.0)] and not len(drawn.entropy_RK[0])


def test_entropies_of_a_uniform_and_a_sure_prediction() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [80.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert entropies_of(logits).tolist() == pytest.approx([math.log(4), 0.0])


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "r": 4}])
def test_in_a_run(tmp_path: Path, adapter: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to have the initial policy again, and the figures are those of the saved model."""
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)
    place: Place = make_place(tmp_path / "place")
    changes = {"eval": {"samples": 3, "max_new_tokens": 6}, "optim": {"lr": 1e-2}}
    run = train(place.config(tmp_path / "run", adapter=adapter, **changes))
    rows = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    drawn = [row for row in rows if row["temperature"] == 1.0]
    assert len(drawn) == 2 and not any("kl_k3" in row for row in rows if not row["temperature"])
    assert all(row["kl_k3"] > 1e-3 and row["entropy_before"] > 1 for row in drawn)
    assert len({row["entropy_after"] for row in drawn}) == 2
