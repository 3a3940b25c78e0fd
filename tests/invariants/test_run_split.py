"""A step is one step, into however many passes it is cut and whatever dtype it computes in."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.numerics import assert_near
from tests.support.runs import Place, exact_norms, make_place, token_pairs

from likelier.base.errors import ConfigError
from likelier.batching.batch import completions_of
from likelier.config.schema import OptimConfig
from likelier.data.records import TokenPair
from likelier.losses.registry import BoundLoss, bind
from likelier.losses.values import StepValues
from likelier.model.load import load
from likelier.model.policy import Policy
from likelier.reference.cache import StoredReference, cached_reference
from likelier.run import train
from likelier.training.batches import cut_batches
from likelier.training.optimizer import MasterAdamW
from likelier.training.step import loss_and_gradients

BETA = 0.5
Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def float64_norms() -> Iterator[None]:
    with exact_norms():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=9, dtype=torch.float64)


def centred(values: StepValues) -> torch.Tensor:
    """Each pair is compared with the mean of the step, so that every pair pulls at every other."""
    margin_P = values.log_ratio_margin_P
    return F.softplus(-BETA * (margin_P - margin_P.mean()))


def sigmoid(values: StepValues) -> torch.Tensor:
    return F.softplus(-BETA * values.log_ratio_margin_P)


LOSSES = {
    "sigmoid": (bind({"name": "sigmoid", "beta": BETA}), sigmoid),
    "sigmoid as if it coupled": (BoundLoss("own", sigmoid, BETA, needs_whole_step=True), sigmoid),
    "centred": (BoundLoss("centred", centred, BETA, needs_whole_step=True), centred),
}


def taken(model: torch.nn.Module) -> Gradients:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


class Step:
    """A model, the pairs of a step, and a column that is not the model's own values.

    So margins differ from 0 and from each other. ``expected`` holds what `undivided` gives for
    each loss. No dataclass: hypothesis prints its examples, and all the weights with them.
    """

    def __init__(self, policy: Policy, pairs: Sequence[TokenPair], column: StoredReference):
        self.policy, self.pairs, self.column = policy, pairs, column
        self.expected = {name: self.undivided(plain) for name, (_, plain) in LOSSES.items()}

    def undivided(self, loss: Callable) -> tuple[Gradients, torch.Tensor]:
        """One graph over all pairs: full logits, one sequence after the other, one backward."""
        model = self.policy.causal_lm.eval()
        answers = [answer for pair in self.pairs for answer in completions_of(pair)]
        logps = []
        for answer in answers:
            tokens = torch.tensor([answer.tokens])
            each = torch.log_softmax(model(input_ids=tokens).logits[0, :-1], -1)
            picked = each.gather(1, tokens[0, 1:, None])[:, 0]
            logps.append(picked[torch.tensor(answer.scored[1:])].sum())
        reference = torch.tensor(
            [self.column.completion_logp(answer) for answer in answers], dtype=torch.float64
        )
        chosen = torch.arange(0, len(answers), 2)
        lengths = torch.ones(len(answers))
        loss_P = loss(StepValues(torch.stack(logps), reference, lengths, chosen, chosen + 1))
        loss_P.mean().backward()
        model.train()
        return taken(model), loss_P.detach()

    def divided(
        self, loss: BoundLoss, backend: str, budget: int
    ) -> tuple[Gradients, StepValues, int]:
        """Gradients, values and the number of batches."""
        batches = cut_batches(self.pairs, self.column, backend, budget)
        with self.policy.running(backend):
            values = loss_and_gradients(self.policy, batches, loss)
        return taken(self.policy.causal_lm), values, len(batches)


@pytest.fixture(scope="module")
def step(place: Place) -> Step:
    policy = load(place.base)
    pairs = token_pairs(policy, place.data)
    answers = {answer for pair in pairs for answer in completions_of(pair)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        own = cached_reference(policy, answers, 10_000)
    shifted = {key: value + 0.3 * (key[0] / 255 - 0.5) for key, value in own.values.items()}
    return Step(policy, pairs, StoredReference("x", shifted))


@settings(max_examples=25)
@given(
    budget=st.sampled_from([16, 60, 100, 150, 10_000]) | st.integers(16, 400),
    backend=st.sampled_from(["segments", "padded"]),
    name=st.sampled_from(sorted(LOSSES)),
)
def test_any_split_has_the_undivided_gradient(
    step: Step, budget: int, backend: str, name: str
) -> None:
    gradients, values, _ = step.divided(LOSSES[name][0], backend, budget)
    wanted, loss_P = step.expected[name]
    assert_near(gradients, wanted, 1e-9)
    assert torch.allclose(values.loss_P, loss_P, rtol=1e-12)


def test_the_splits_are_splits(step: Step) -> None:
    def passes(backend: str, budget: int) -> int:
        return step.divided(LOSSES["sigmoid"][0], backend, budget)[2]

    assert passes("segments", 16) == passes("padded", 16) == 9  # a pair alone in each
    assert 1 < passes("segments", 60) < 9
    assert passes("segments", 10_000) == passes("padded", 10_000) == 1
    alone, together = step.expected["sigmoid"][0], step.expected["centred"][0]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (alone[name] - together[name]).norm() > 0.1 * alone[name].norm()


def test_values_come_in_the_order_of_the_step(step: Step) -> None:
    """Padded passes take pairs by length; the pair log must not."""
    _, values, _ = step.divided(LOSSES["sigmoid"][0], "padded", 60)
    chosen = [float(sum(pair.chosen.scored)) for pair in step.pairs]
    assert values.chosen.tokens_P.tolist() == chosen
    assert chosen != sorted(chosen)
    wanted = [step.column.completion_logp(completions_of(pair)[0]) for pair in step.pairs]
    assert values.chosen.reference_P.tolist() == wanted


def test_an_own_loss_that_averages_is_refused(place: Place, tmp_path: Path) -> None:
    def mean(values: StepValues) -> torch.Tensor:
        return sigmoid(values).mean()

    with pytest.raises(ConfigError, match=r"it gives shape \(\) for \d pairs") as found:
        train(place.config(tmp_path / "out"), loss=mean)
    assert "one value a pair" in str(found.value)


# What follows computes in bfloat16.


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("half"), rows=9, dtype=torch.bfloat16)


def test_small_updates_add_up() -> None:
    """In bfloat16, 1 + 0.001 is 1: a hundred such steps would be none."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("weight", weight)], OptimConfig(max_grad_norm=None))
    for _ in range(100):
        (weight * torch.tensor(-1.0, dtype=torch.bfloat16)).sum().backward()
        assert weight.grad is None
        optimizer.step(0.001)
    assert optimizer.masters["weight"].dtype == torch.float32
    assert torch.allclose(optimizer.masters["weight"], torch.tensor(1.1), atol=1e-4)
    assert torch.equal(weight, torch.full((4,), 1.1, dtype=torch.bfloat16))
    assert (torch.tensor(1.0, dtype=torch.bfloat16) + 0.001) == 1.0


def test_gradients_of_passes_add_up_in_float32() -> None:
    """256 + 1 is 256 in bfloat16: the passes after a large one would be lost."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("weight", weight)], OptimConfig(max_grad_norm=None))
    for gradient in [256.0, *[1.0] * 100]:
        (weight * torch.tensor(gradient, dtype=torch.bfloat16)).sum().backward()
    grad = optimizer.masters["weight"].grad
    assert grad is not None and grad.dtype == torch.float32
    assert grad.item() == 356.0
    assert optimizer.step(1e-3) == 356.0
    (weight * 5).sum().backward()  # the next step's sum begins anew
    grad = optimizer.masters["weight"].grad
    assert grad is not None and grad.item() == 5.0


def test_a_run_in_bfloat16_learns_what_one_in_float32_does(half: Place, tmp_path: Path) -> None:
    """At a rate whose steps bfloat16 alone would round away."""
    changes = {"train__steps": 20, "optim__lr": 3e-5, "optim__schedule": "constant"}
    runs = {
        dtype: train(half.config(tmp_path / dtype, model__dtype=dtype, **changes))
        for dtype in ("bfloat16", "float32")
    }
    last = {dtype: run.metrics[-1]["eval_rewards/margins"] for dtype, run in runs.items()}
    assert last["float32"] > 0.01
    assert last["bfloat16"] == pytest.approx(last["float32"], rel=0.3)
