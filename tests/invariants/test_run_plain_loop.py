"""Twenty steps of a run are twenty steps of the obvious loop: no tree, no cache, full logits."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.support.runs import Place, exact_norms, make_place, token_pairs, training_rows

from likelier.data.records import Completion, TokenPair
from likelier.model.load import load, quietly
from likelier.run import train
from likelier.training.order import make_order

STEPS, PAIRS, LR, WARMUP, BETA, DECAY, CLIP = 20, 6, 1e-3, 4, 0.3, 0.1, 2.5
BETAS, EPS, SEED, R, ALPHA = (0.9, 0.99), 1e-8, 3, 4, 8


@pytest.fixture(scope="module", autouse=True)
def float64_norms() -> Iterator[None]:
    with exact_norms():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=21, dtype=torch.float64)


def answer_logp(
    model: torch.nn.Module, prompt: tuple[int, ...], answer: Completion
) -> torch.Tensor:
    """Log-prob of an answer: one forward, all logits, the scored tokens picked and summed."""
    tokens = torch.tensor([prompt + answer.tokens])
    logps = torch.log_softmax(model(input_ids=tokens).logits[0, :-1], dim=-1)
    each = logps.gather(1, tokens[0, 1:, None])[:, 0]
    return each[len(prompt) - 1 :][torch.tensor(answer.scored)].sum()


def pair_logps(model: torch.nn.Module, pair: TokenPair) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        answer_logp(model, pair.prompt, pair.chosen),
        answer_logp(model, pair.prompt, pair.rejected),
    )


def learning_rate(step: int) -> float:
    """Linear up to the peak at step WARMUP, then half a cosine down towards 0."""
    if step <= WARMUP:
        return LR * step / WARMUP
    return LR * (1 + math.cos(math.pi * (step - 1 - WARMUP) / (STEPS - WARMUP))) / 2


@dataclass
class Plain:
    """What the plain loop gives: trained weights, the same before, and a row a step."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    rows: list[dict[str, float]]


def plain_loop(
    policy: torch.nn.Module, reference: torch.nn.Module, steps: list[list[TokenPair]]
) -> Plain:
    """DPO as a page of a textbook: policy and reference are two models, pairs come one by one."""
    policy.eval()
    reference.eval()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in trained.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
        foreach=False,
    )
    rows = []
    for number, pairs in enumerate(steps, start=1):
        adamw.zero_grad()
        each = []
        for pair in pairs:
            chosen, rejected = pair_logps(policy, pair)
            with torch.no_grad():
                chosen_before, rejected_before = pair_logps(reference, pair)
            up, down = BETA * (chosen - chosen_before), BETA * (rejected - rejected_before)
            loss = torch.log(1 + torch.exp(down - up))
            (loss / len(pairs)).backward()
            of_token = up / BETA / sum(pair.chosen.scored), down / BETA / sum(pair.rejected.scored)
            each.append([x.item() for x in (loss, up, down, chosen, rejected, *of_token)])
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in trained.values()))
        if norm > CLIP:
            for parameter in trained.values():
                parameter.grad *= CLIP / norm
        for group in adamw.param_groups:
            group["lr"] = learning_rate(number)
        adamw.step()
        mean = [sum(column) / len(pairs) for column in zip(*each, strict=True)]
        names = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
                 "drift/chosen", "drift/rejected")  # fmt: skip
        weights = [1 / (1 + math.exp(up - down)) for _, up, down, *_ in each]
        ahead = [0.5 if abs(up - down) < 1e-9 else float(up > down) for _, up, down, *_ in each]
        row = dict(zip(names, mean, strict=True))
        row["step"] = number
        row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
        row["rewards/accuracies"] = sum(ahead) / len(pairs)
        row["weights/saturated"] = sum(weight < 0.01 for weight in weights) / len(pairs)
        squares = sum(weight**2 for weight in weights)
        row["weights/effective"] = sum(weights) ** 2 / squares / len(pairs)
        row["grad_norm"] = norm
        row["learning_rate"] = learning_rate(number)
        rows.append(row)
    return Plain(before, {name: p.detach().clone() for name, p in trained.items()}, rows)


def pairs_by_step(place: Place) -> list[list[TokenPair]]:
    pairs = token_pairs(load(place.base), place.data)
    settings = SimpleNamespace(steps=STEPS, epochs=None, seed=SEED, pairs_per_step=PAIRS)
    order = make_order(pairs, settings)
    return [[pairs[index] for _, index in order.step(step)] for step in range(1, STEPS + 1)]


@pytest.fixture(scope="module")
def plain_full(place: Place) -> Plain:
    model = load(place.base).causal_lm
    return plain_loop(deepcopy(model), model, pairs_by_step(place))


@pytest.fixture(scope="module")
def plain_lora(place: Place) -> Plain:
    reference = load(place.base).causal_lm
    torch.manual_seed(SEED)
    wanted = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with quietly():
        policy = peft.get_peft_model(deepcopy(reference), wanted)
    return plain_loop(policy, reference, pairs_by_step(place))


def settings(place: Place, out: str, budget: int, adapter: dict) -> dict:
    return place.config(
        out,
        data__eval=None,
        adapter=adapter,
        loss={"beta": BETA},
        optim={
            "lr": LR,
            "warmup": WARMUP,
            "betas": BETAS,
            "eps": EPS,
            "weight_decay": DECAY,
            "max_grad_norm": CLIP,
        },
        train={
            "steps": STEPS,
            "pairs_per_step": PAIRS,
            "tokens_per_batch": budget,
            "seed": SEED,
            "save_every": None,
        },
    )


def assert_same(run: Path, weights: dict[str, torch.Tensor], plain: Plain) -> None:
    """Weights, their changes and every logged figure agree to a millionth."""
    assert weights.keys() == plain.after.keys()
    for name, expected in plain.after.items():
        apart = (weights[name] - expected).norm()
        moved = (expected - plain.before[name]).norm()
        assert weights[name].dtype == torch.float64
        assert moved > 0, name
        assert apart <= 1e-6 * moved, f"{name}: {float(apart / moved):.2g} of its change"
    rows = training_rows(run)
    assert len(rows) == STEPS
    for ours, theirs in zip(rows, plain.rows, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # the log-ratios are differences of log-probs of some hundred nats
            assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, theirs["step"])


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "padded":
        monkeypatch.setattr("likelier.model.policy._failed_probe", lambda *_: "the test says so")
    return request.param


CASES = [("segments", 16), ("segments", 60), ("segments", 10_000), ("padded", 60)]


@pytest.mark.parametrize(("backend", "budget"), [*CASES, ("padded", 10_000)], indirect=["backend"])
def test_full_tuning(place: Place, plain_full: Plain, backend: str, budget: int) -> None:
    run = train(settings(place, f"full-{backend}-{budget}", budget, {"kind": "none"}))
    weights = load_file(run.model / "model.safetensors")
    assert_same(run.folder, weights, plain_full)


@pytest.mark.parametrize(("backend", "budget"), CASES, indirect=["backend"])
def test_lora(place: Place, plain_lora: Plain, backend: str, budget: int) -> None:
    adapter = {"kind": "lora", "r": R, "alpha": ALPHA}
    run = train(settings(place, f"lora-{backend}-{budget}", budget, adapter))
    weights = {
        name.replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(run.model / "adapter_model.safetensors").items()
    }
    assert_same(run.folder, weights, plain_lora)


def test_the_loop_is_worth_comparing(plain_full: Plain, plain_lora: Plain) -> None:
    for plain in (plain_full, plain_lora):
        norms = [row["grad_norm"] for row in plain.rows]
        assert plain.rows[0]["loss"] == pytest.approx(math.log(2))
        assert plain.rows[-1]["loss"] < 0.5
        assert max(norms) > CLIP > min(norms), norms
