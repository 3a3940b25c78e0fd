"""Planted faults, each of which the preflight must see before the first update."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, tiny_model, tiny_tokenizer, write_rows
from transformers import AttentionInterface

from likelier.base.errors import RunFailed
from likelier.batching.batch import Scored
from likelier.batching.tree import Tree, ancestor_mask_TT
from likelier.data.records import Completion, TokenPair
from likelier.model.attention import backends as attention
from likelier.model.policy import Policy
from likelier.model.scorer import HeadRule
from likelier.reference.cache import StoredReference, load_reference, reference_of_run
from likelier.run import train
from likelier.training import preflight


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=12)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)


def refused(settings: dict, message: str) -> RunFailed:
    """The run stops with exit code 1, before any step."""
    with pytest.raises(RunFailed, match=message) as found:
        train(settings)
    assert found.value.exit_code == 1
    out = Path(settings["out"])
    assert not (out / "metrics.jsonl").exists()
    assert not (out / "run.json").exists()
    return found.value


Attention = Callable[..., torch.Tensor]


def masked_by(change: Callable[[torch.Tensor], torch.Tensor]) -> Attention:
    def attend(query, key, value, tree: Tree, scaling, window) -> torch.Tensor:
        mask = change(ancestor_mask_TT(tree, window))
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )

    return attend


def shifted(mask_TT: torch.Tensor) -> torch.Tensor:
    """Everybody sees what the token before sees."""
    return mask_TT.roll(1, dims=0) | torch.eye(len(mask_TT), dtype=torch.bool)


def without_siblings(mask_TT: torch.Tensor) -> torch.Tensor:
    """Plain causal: answers see the answers before them."""
    return torch.ones_like(mask_TT).tril()


def without_the_first(mask_TT: torch.Tensor) -> torch.Tensor:
    """Nobody but itself sees the first token."""
    mask = mask_TT.clone()
    mask[1:, 0] = False
    return mask


@contextmanager
def backend(attend: Attention) -> Iterator[None]:
    """Another attention in the place of `segments`; the choice of a backend sees nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.model.policy._failed_probe", lambda *_: None)
        AttentionInterface.register("likelier_segments", attention._attend(attend))
        try:
            yield
        finally:
            AttentionInterface.register("likelier_segments", attention._attend(attention.segments))


DIFFERS = "^the segments backend differs from the model's own forward by"


@pytest.mark.parametrize("change", [shifted, without_siblings, without_the_first])
def test_a_backend_with_another_mask(
    place: Place, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    AttentionInterface.register("likelier_segments", attention._attend(masked_by(change)))
    with backend(masked_by(change)):
        refused(place.config(tmp_path / "out"), DIFFERS)


def test_a_difference_that_is_no_number(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_backend = preflight._by_backend
    monkeypatch.setattr(
        preflight, "_by_backend", lambda *given: [math.nan * one for one in by_backend(*given)]
    )
    refused(place.config(tmp_path / "out"), f"{DIFFERS} nan nats")


def test_the_same_mask_passes(place: Place, tmp_path: Path) -> None:
    with backend(masked_by(lambda mask_TT: mask_TT)):
        train(place.config(tmp_path / "out", train__steps=1))


def granite(folder: Path) -> Place:
    """A model whose head divides its logits by 4."""
    place = Place(folder)
    tokenizer = tiny_tokenizer()
    config = transformers.GraniteConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        logits_scaling=4.0, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GraniteForCausalLM(config).save_pretrained(place.base)
    tokenizer.save_pretrained(place.base)
    write_rows(place.data, pair_rows(12))
    return place


def test_a_head_whose_scale_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = granite(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("likelier.model.policy.find_head_rule", lambda model: HeadRule(scale=1.0))
        patch.setenv("LIKELIER_CACHE", str(tmp_path / "another"))
        refused(place.config("out"), DIFFERS)
    train(place.config("good", train__steps=1))


def change_the_reference(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[StoredReference], StoredReference]
) -> None:
    monkeypatch.setattr(
        "likelier.run.reference_of_run", lambda *a, **k: change(reference_of_run(*a, **k))
    )


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "r": 2}])
def test_a_reference_with_one_wrong_value(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict
) -> None:
    """Of the longest answer, which the preflight looks at whatever the data."""

    def spoil(stored: StoredReference) -> StoredReference:
        key = max(stored.values, key=lambda k: len(stored.values[k]))
        wrong = stored.values[key].clone()
        wrong[3] += 0.01
        return replace(stored, values={**stored.values, key: wrong})

    change_the_reference(monkeypatch, spoil)
    error = refused(
        place.config(tmp_path / "out", adapter=adapter),
        "^the policy is the reference, but a reward is 0.001 before the first update",
    )
    assert "the reference log-probs do not belong to this model" in str(error)


def test_a_policy_that_is_not_its_reference(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something moves a weight after the reference was scored."""

    def moves(policy: Policy, *others: Any, **named: Any) -> StoredReference:
        stored = reference_of_run(policy, *others, **named)
        policy.causal_lm.model.norm.weight.data.mul_(1.001)
        return stored

    monkeypatch.setattr("likelier.run.reference_of_run", moves)
    refused(place.config(tmp_path / "out"), "^the policy is the reference, but a reward is")


def test_another_reference_may_have_rewards(place: Place, tmp_path: Path) -> None:
    other = make_place(tmp_path / "other", rows=3)
    weights = load_file(other.base / "model.safetensors")
    weights["model.norm.weight"] *= 1.1
    save_file(weights, other.base / "model.safetensors", {"format": "pt"})
    run = train(place.config(tmp_path / "out", reference__path=str(other.base), train__steps=1))
    first = next(row for row in run.metrics if "loss" in row)
    assert abs(first["rewards/margins"]) > 1e-3


def test_a_cached_reference_that_is_wrong(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every value too high by 0.01, in files that are whole: the spot check compares live."""
    train(place.config(tmp_path / "first", train__steps=1))
    capsys.readouterr()
    files = list((tmp_path / "likelier-cache" / "reference").rglob("*.safetensors"))
    assert files
    for file in files:
        stored = load_reference(file)
        assert stored is not None
        values = {key: value + 0.01 for key, value in stored.values.items()}
        StoredReference(stored.identity, values).save(file)
    error = refused(
        place.config(tmp_path / "second"),
        "^cached reference log-probs differ from a live batch by 0.01 nats a token; 0.0001 is",
    )
    assert f"delete {tmp_path / 'likelier-cache' / 'reference'}" in str(error)


def test_a_damaged_cache_is_made_again(place: Place, tmp_path: Path) -> None:
    train(place.config(tmp_path / "first", train__steps=1))
    for file in (tmp_path / "likelier-cache" / "reference").rglob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 64
        file.write_bytes(content)
    train(place.config(tmp_path / "second", train__steps=1))
    names = ("reference.safetensors", "model/model.safetensors")
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_what_it_looks_at() -> None:
    """The two longest pairs and two of one prompt, wherever they stand."""

    def pair(number: int, prompt: tuple[int, ...], length: int) -> TokenPair:
        answer = Completion((1,) * length, (True,) * length)
        return TokenPair(prompt, answer, answer, str(number))

    pairs = [pair(i, (i,), 3) for i in range(30)]
    pairs[17] = pair(17, (17,), 9)
    pairs[25] = pair(25, (25,), 8)
    pairs[20], pairs[29] = pair(20, (99,), 3), pair(29, (99,), 3)
    chosen = [int(p.source) for p in preflight.pairs_to_compare(pairs)]
    assert chosen == [17, 25, 20, 29, 0, 1, 2, 3]
    assert [int(p.source) for p in preflight.pairs_to_compare(pairs[:3])] == [0, 1, 2]


def test_what_is_kept_of_it(place: Place, tmp_path: Path) -> None:
    train(place.config(tmp_path / "out", train__steps=1))
    found = json.loads((tmp_path / "out" / "run.json").read_text())["preflight"]
    assert found["pairs"] == 8
    assert 0 <= found["difference"] <= found["tolerance"]
    assert 1e-4 < found["tolerance"] < 2e-4
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0 <= found["largest_reward"] < 1e-5


def test_long_answers_may_differ_by_their_rounding() -> None:
    """Of thousands of tokens the right backend differs by more than 1e-4 nats, too."""
    torch.manual_seed(0)
    model = tiny_model(tiny_tokenizer()).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    scored = (False,) * 40 + (True,) * 1500
    sequences = [
        Scored(tuple(torch.randint(2, 300, (1540,)).tolist()), scored) for _ in range(2)
    ]  # fmt: skip
    policy = Policy(model, tiny_tokenizer())
    found, noise, measured = preflight._compare_backends(policy, sequences)
    assert 1e-4 < found["difference"] == measured < found["tolerance"] == noise
    logp = max(abs(float(tokens.sum())) for tokens in preflight._plainly(policy, sequences))
    assert found["tolerance"] == pytest.approx(1e-4 + 2 * 2**-23 * logp)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_is_measured_against_float32(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights go to float32 for that and come back to the bit."""
    place = make_place(tmp_path, rows=9, dtype=dtype)
    seen = []
    original = preflight._compare_backends

    def spy(policy: Policy, sequences: object) -> object:
        before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
        seen.append(original(policy, sequences))
        for name, parameter in policy.model.named_parameters():
            assert parameter.dtype == dtype
            assert torch.equal(parameter, before[name])
        return seen[-1]

    monkeypatch.setattr(preflight, "_compare_backends", spy)
    train(place.config("out", train__steps=1))
    ((found, allowed, measured),) = seen
    assert 0 < measured < allowed
    assert 0 < found["difference"] <= found["tolerance"]
    assert found["tolerance"] > 2 * preflight.TOLERANCE
    assert found["unit"] == "a token"
    with backend(masked_by(shifted)):
        refused(place.config("bad"), DIFFERS)
