"""Every loss has one gradient: whatever the batches, the packing and the order of the pairs."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from tests.support.loss_runs import SECTIONS
from tests.support.numerics import assert_near
from tests.support.runs import exact_norms, make_place, token_pairs

from likelier.batching.batch import completions_of
from likelier.chat.tokenizer import build_encoder
from likelier.config import config_from, live
from likelier.data.encode import without_stops
from likelier.data.records import TokenPair
from likelier.losses.declare import LOSSES
from likelier.losses.modifiers import token_weights
from likelier.losses.registry import BoundLoss, bind
from likelier.losses.values import StepValues
from likelier.model.load import load
from likelier.model.policy import Policy
from likelier.reference.cache import NoReference, StoredReference, cached_reference
from likelier.training.batches import cut_batches
from likelier.training.step import loss_and_gradients

Gradients = dict[str, torch.Tensor]
BASE = {"model": {"path": "m"}, "data": {"train": "a"}, "out": "o"}
CUTS = [("segments", 16, 1), ("segments", 90, 2), ("padded", 120, 3), ("segments", 10_000, 4)]


@pytest.fixture(scope="module", autouse=True)
def float64_norms() -> Iterator[None]:
    with exact_norms():
        yield


@dataclass(frozen=True)
class Setting:
    """A model, pairs with every column, and a column that is not the model's own values."""

    policy: Policy
    pairs: list[TokenPair]
    column: StoredReference
    ends: tuple[int, ...]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    place = make_place(tmp_path_factory.mktemp("place"), rows=9, dtype=torch.float64)
    policy = load(place.base)
    pairs = [
        replace(pair, margin=0.3 * (n % 4), weight=0.5 + n % 3)
        for n, pair in enumerate(token_pairs(policy, place.data))
    ]
    ends = tuple(build_encoder(policy.tokenizer).end_ids.values())
    every = [*pairs, *without_stops(pairs, ends)]
    answers = {answer for pair in every for answer in completions_of(pair)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        own = cached_reference(policy, answers, 10_000)
    shifted = {key: value + 0.3 * (key[0] / 255 - 0.5) for key, value in own.values.items()}
    return Setting(policy, pairs, StoredReference("x", shifted), ends)


def bound(name: str) -> BoundLoss:
    return bind(live(config_from({**BASE, "loss": SECTIONS[name]}))["loss"])


def rows_of(setting: Setting, name: str) -> list[TokenPair]:
    """The pairs as the loss reads them."""
    pairs = setting.pairs
    if SECTIONS[name].get("stop_token") is False:
        pairs = list(without_stops(pairs, setting.ends))
    loss = LOSSES.get(name, LOSSES["sigmoid"])
    if loss.paired:
        return pairs
    labelled = [replace(pair, label=n % 3 > 0) for n, pair in enumerate(pairs)]
    needs = loss.reads("mismatched")
    return [pair if needs else replace(pair, rejected=pair.chosen) for pair in labelled]


def taken(model: torch.nn.Module) -> Gradients:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def undivided(setting: Setting, name: str) -> tuple[Gradients, torch.Tensor]:
    """One graph over all pairs, each answer by itself with all its logits, one backward."""
    loss, pairs = bound(name), rows_of(setting, name)
    model = setting.policy.causal_lm.eval()
    policy, reference, length, wpo_log_weight = [], [], [], []
    for pair in pairs:
        sides = completions_of(pair)
        counts = [side.num_scored for side in sides]
        weights: Sequence[Sequence[float] | None] = (None, None)
        if loss.tokens:
            batches = cut_batches([pair], NoReference(), "padded", 10_000, tokens=loss.tokens)
            drawn = batches[0].weight_K
            assert drawn is not None
            weights = [part.tolist() for part in drawn.split(counts)]
            if loss.tokens["kind"] != "sampo":
                assert weights == [list(w) for w in token_weights(loss.tokens, *counts, b"")]
        for side, weight in zip(sides, weights, strict=True):
            tokens = torch.tensor([side.tokens])
            logp_TV = torch.log_softmax(model(input_ids=tokens).logits[0, :-1], -1)
            wanted = torch.tensor(side.scored[1:])
            each = logp_TV.gather(1, tokens[0, 1:, None])[:, 0][wanted]
            spread = logp_TV.exp().pow(2).sum(-1).log()[wanted]
            wpo_log_weight.append((each - spread).mean().detach())
            own = (
                torch.ones(len(each))
                if weight is None
                else torch.tensor(weight, dtype=torch.float64)
            )
            policy.append((own.double() * each).sum())
            length.append(float(own.sum()))
            given = setting.column if loss.needs("reference") else NoReference()
            reference.append(given.completion_logp(side, weight))
    chosen = torch.arange(0, 2 * len(pairs), 2)
    columns = {
        f"{column}_P": torch.tensor([getattr(p, column) for p in pairs], dtype=torch.float64)
        for column in ("margin", "weight", "label")
        if getattr(pairs[0], column) is not None
    }
    known = torch.tensor([reference, length], dtype=torch.float64)
    values = StepValues(
        torch.stack(policy), known[0], known[1],
        chosen, chosen + 1, wpo_log_weight_R=torch.stack(wpo_log_weight),
        mean_tokens=sum(completions_of(p)[0].num_scored for p in pairs) / len(pairs), **columns,
    )  # fmt: skip
    if loss.observe is not None:
        loss.observe(values)
    loss_P = loss.per_pair(values)
    loss_P.mean().backward()
    model.train()
    return taken(model), loss_P.detach()


def divided(
    setting: Setting, name: str, backend: str, budget: int, shuffle: int
) -> tuple[Gradients, StepValues, list[int]]:
    loss, pairs = bound(name), rows_of(setting, name)
    order = list(range(len(pairs)))
    random.Random(shuffle).shuffle(order)
    column = setting.column if loss.needs("reference") else NoReference()
    batches = cut_batches([pairs[i] for i in order], column, backend, budget, tokens=loss.tokens)
    with setting.policy.running(backend):
        values = loss_and_gradients(setting.policy, batches, loss)
    return taken(setting.policy.causal_lm), values, order


@pytest.mark.parametrize("name", SECTIONS)
def test_any_cut_and_order_has_the_undivided_gradient(setting: Setting, name: str) -> None:
    wanted, loss_P = undivided(setting, name)
    largest = max(float(grad.norm()) for grad in wanted.values())
    assert largest > 0
    for backend, budget, shuffle in CUTS:
        ours, values, order = divided(setting, name, backend, budget, shuffle)
        assert_near(ours, wanted, 1e-10)
        assert torch.allclose(values.loss_P, loss_P[order], rtol=1e-10, atol=1e-12)


def test_the_shift_of_bco_is_what_the_run_has_seen(setting: Setting) -> None:
    """Two steps in batches of any size leave the mean of all rewards, and so does one of both."""
    pairs, found = rows_of(setting, "bco"), []
    for budget in (16, 10_000):
        loss = bound("bco")
        with setting.policy.running():
            for half in (pairs[:4], pairs[4:]):
                batches = cut_batches(half, setting.column, "segments", budget)
                values = loss_and_gradients(setting.policy, batches, loss)
        taken(setting.policy.causal_lm)
        found.append(loss.state)
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert found[0]["shift/count"] == 18
    whole = bound("bco")
    with setting.policy.running():
        values = loss_and_gradients(
            setting.policy, cut_batches(pairs, setting.column, "segments", 90), whole
        )
    taken(setting.policy.causal_lm)
    ratios = torch.cat([values.chosen.policy_P - values.chosen.reference_P,
                        values.rejected.policy_P - values.rejected.reference_P])  # fmt: skip
    assert whole.state["shift/mean"] == pytest.approx(0.01 * float(ratios.mean()), rel=1e-10)
    assert found[0]["shift/mean"] == pytest.approx(whole.state["shift/mean"], rel=1e-10)


def test_limits_of_what_combines(setting: Setting) -> None:
    """LD with alpha 1, decay with gamma 1 and drawing from equal lengths are plain DPO."""
    plain, _ = undivided(setting, "sigmoid")
    for rule in ({"kind": "ld", "alpha": 1.0}, {"kind": "decay", "gamma": 1.0}):
        loss = bind({"name": "sigmoid", "beta": 0.1, "tokens": rule})
        batches = cut_batches(setting.pairs, setting.column, "segments", 90, tokens=loss.tokens)
        with setting.policy.running():
            loss_and_gradients(setting.policy, batches, loss)
        assert_near(taken(setting.policy.causal_lm), plain, 1e-10)
    assert token_weights({"kind": "sampo"}, 3, 3, b"x") == ((1.0,) * 3, (1.0,) * 3)
    short, drawn = token_weights({"kind": "sampo"}, 3, 8, b"x")
    assert short == (1.0,) * 3 and len(drawn) == 8 and sum(drawn) == 3
    assert token_weights({"kind": "sampo"}, 3, 8, b"x")[1] == drawn
    assert token_weights({"kind": "ld", "alpha": 0.5}, 2, 4, b"")[1] == (1.0, 1.0, 0.5, 0.5)
