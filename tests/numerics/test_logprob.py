"""The chunked head against its plain twin: values and every gradient, for any chunk."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.numerics import distance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from likelier.model import logprob as chunked
from likelier.model.logprob import Head, token_logps_at_once

ROWS, HIDDEN, VOCABULARY = 65, 6, 23
WHOLE = 1000


class plain:
    """The twin, called as the chunked one is."""

    @staticmethod
    def token_logps(
        hidden_ND: Tensor, head: Head, row_E: Tensor, token_E: Tensor, chunk: int | None = None
    ) -> Tensor:
        return token_logps_at_once(hidden_ND, head, row_E, token_E)


CHUNKS = (1, 7, 64, ROWS, WHOLE, None)
KINDS = {
    "bare": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": 0.4, "softcap": 2.0},
}


def make(
    kind: str = "bare", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Head, Tensor, Tensor]:
    """Hidden states, a head, and entries: rows 0 and 64 at the edges, several a row at forks."""
    generator = torch.Generator().manual_seed(5)
    shape = dict(KINDS[kind])
    hidden_ND = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    bias_V = bias_V.to(dtype).requires_grad_() if shape.pop("bias", False) else None
    head = Head(weight_VD.to(dtype).requires_grad_(), bias_V, **shape)
    entries = sorted(
        {(row, (row * 5) % VOCABULARY) for row in range(ROWS)}
        | {(row, token) for row in (0, 6, 7, 13, 63, 64) for token in (0, 3, 22)}
    )
    row_E, token_E = (torch.tensor(column) for column in zip(*entries, strict=True))
    return hidden_ND.to(dtype).requires_grad_(), head, row_E, token_E


def run(module: object, made: tuple, weight_E: Tensor, chunk: int | None = None) -> list[Tensor]:
    """Values, and the gradients of hidden states, weight and bias."""
    hidden_ND, head, row_E, token_E = made
    logp_E = module.token_logps(hidden_ND, head, row_E, token_E, chunk)  # type: ignore[attr-defined]
    sources = [t for t in (hidden_ND, head.weight, head.bias) if t is not None]
    return [logp_E.detach(), *torch.autograd.grad(logp_E, sources, weight_E.to(logp_E.dtype))]


def weights(made: tuple) -> Tensor:
    return torch.linspace(-1, 2, len(made[2]), dtype=torch.float64)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_twin(kind: str, chunk: int | None) -> None:
    made = make(kind)
    for ours, theirs in zip(
        run(chunked, made, weights(made), chunk), run(plain, made, weights(made)), strict=True
    ):
        assert distance(ours, theirs) < 1e-13


def test_the_twin_is_what_torch_computes() -> None:
    hidden_ND, head, row_E, token_E = make("all")
    assert head.softcap is not None
    logits_NV = torch.nn.functional.linear(hidden_ND, head.weight, head.bias)
    capped_NV = head.softcap * torch.tanh(head.scale * logits_NV / head.softcap)
    expected_E = -torch.nn.functional.cross_entropy(capped_NV[row_E], token_E, reduction="none")
    torch.testing.assert_close(
        plain.token_logps(hidden_ND, head, row_E, token_E), expected_E, rtol=0, atol=1e-13
    )


@given(
    st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=1, max_size=12),
    st.integers(1, 14),
)
def test_any_entries_and_any_chunk(tokens_of_row: list[set[int]], chunk: int) -> None:
    """Rows without an entry, chunks without one, entries on both sides of every edge."""
    generator = torch.Generator().manual_seed(1)
    hidden_ND = torch.randn(len(tokens_of_row), 3, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    entries = [(row, t) for row, tokens in enumerate(tokens_of_row) for t in sorted(tokens)]
    row_E = torch.tensor([row for row, _ in entries], dtype=torch.long)
    token_E = torch.tensor([token for _, token in entries], dtype=torch.long)
    made = (hidden_ND.requires_grad_(), Head(weight_VD), row_E, token_E)
    for ours, theirs in zip(
        run(chunked, made, weights(made), chunk), run(plain, made, weights(made)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["bias", "all"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    hidden_ND, head, row_E, token_E = make(kind)

    def values(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return chunked.token_logps(
            hidden, replace(head, weight=weight, bias=bias), row_E[:9], token_E[:9], 4
        )

    few_ND = hidden_ND[:8].detach().requires_grad_()
    assert torch.autograd.gradcheck(values, (few_ND, head.weight, head.bias))


def test_a_row_s_gradient_sums_to_nothing_over_the_vocabulary() -> None:
    """onehot - softmax: pushing one token up pushes the others down by as much."""
    hidden_ND, head, row_E, token_E = make("bias")
    logp_E = chunked.token_logps(hidden_ND, head, row_E, token_E, 7)
    weight_E = torch.linspace(1, 2, len(row_E), dtype=torch.float64)
    assert head.bias is not None
    grad_V, grad_VD = torch.autograd.grad(logp_E, (head.bias, head.weight), weight_E)
    assert abs(float(grad_V.sum())) < 1e-12 < float(grad_V.abs().min())
    assert float(grad_VD.sum(0).abs().max()) < 1e-11
    # Softmax of the plain logits, row by row, gives the bias its gradient in closed form.
    probability_NV = torch.softmax(hidden_ND @ head.weight.T + head.bias, -1).detach()
    expected_V = torch.zeros(VOCABULARY, dtype=torch.float64)
    for row, token, weight in zip(row_E, token_E, weight_E, strict=True):
        expected_V[token] += weight
        expected_V -= weight * probability_NV[row]
    torch.testing.assert_close(grad_V, expected_V, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_tied_weights_get_both_their_gradients(chunk: int | None) -> None:
    def gradient(module: object) -> Tensor:
        _, head, row_E, token_E = make()
        tokens_N = torch.arange(ROWS) % VOCABULARY
        hidden_ND = torch.tanh(torch.nn.functional.embedding(tokens_N, head.weight))
        made = (hidden_ND, head, row_E, token_E)
        logp_E = module.token_logps(*made, chunk)  # type: ignore[attr-defined]
        return torch.autograd.grad(logp_E, head.weight, weights(made))[0]

    assert distance(gradient(chunked), gradient(plain)) < 1e-13


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("weight",)])
def test_no_gradient_is_computed_for_what_is_frozen(
    frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_ND, head, row_E, token_E = make("bias")
    assert head.bias is not None
    named = {"hidden": hidden_ND, "weight": head.weight, "bias": head.bias}
    for name in frozen:
        named[name].requires_grad_(False)
    made_zeros = []
    zeros_like = torch.zeros_like
    monkeypatch.setattr(
        torch, "zeros_like", lambda t, **kw: made_zeros.append(t) or zeros_like(t, **kw)
    )
    logp_E = chunked.token_logps(hidden_ND, head, row_E, token_E, 7)
    logp_E.backward(torch.ones_like(logp_E))
    for name, tensor in named.items():
        assert (tensor.grad is None) == (name in frozen)
    # The weight's gradient is vocabulary x hidden in size: none is even set aside for it.
    assert any(t.shape == head.weight.shape for t in made_zeros) == ("weight" not in frozen)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_frozen_head_gives_the_same_hidden_gradient(
    kind: str, chunk: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_ND, head, row_E, token_E = made = make(kind, dtype)
    trained = run(chunked, made, weights(made), chunk)
    for parameter in (head.weight, head.bias):
        if parameter is not None:
            parameter.requires_grad_(False)
    visits = []
    into = chunked.head_logits_into
    monkeypatch.setattr(chunked, "head_logits_into", lambda *a: visits.append(a) or into(*a))
    logp_E = chunked.token_logps(hidden_ND, head, row_E, token_E, chunk)
    once = len(visits)
    (grad_ND,) = torch.autograd.grad(logp_E, hidden_ND, weights(made).to(logp_E.dtype))
    assert torch.equal(logp_E, trained[0])
    # Only a soft-cap needs the logits again: their slope stands between softmax and gradient.
    assert len(visits) == (once if head.softcap is None else 2 * once)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(grad_ND, trained[1], rtol=tolerance, atol=tolerance)


class Products(TorchDispatchMode):
    """Hears the dtype of every product."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in str(func):
            self.heard.append((str(func), args[-1].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_slow_products_are_computed_in_float32(
    is_frozen: bool, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without bfloat16 instructions ``softmax @ weight`` takes minutes: in plans, before a step."""
    monkeypatch.setattr("likelier.model.frozen.multiplies_bfloat16", lambda device: is_fast)
    hidden_ND, head, row_E, token_E = made = make("bare", torch.bfloat16)
    exact = run(chunked, tuple(_widened(one) for one in made), weights(made).double(), None)[1]
    head.weight.requires_grad_(not is_frozen)
    with Products() as products:
        logp_E = chunked.token_logps(hidden_ND, head, row_E, token_E)
        (grad_ND,) = torch.autograd.grad(logp_E, hidden_ND, weights(made).to(logp_E.dtype))
    into_inputs = [dtype for name, dtype in products.heard if "addmm" in name]
    assert into_inputs and set(into_inputs) == {torch.bfloat16 if is_fast else torch.float32}
    assert grad_ND.dtype is torch.bfloat16 and distance(grad_ND.double(), exact) < 2e-2


def _widened(one: Any) -> Any:
    """A part of a problem in float64, to be differentiated anew."""
    if isinstance(one, Head):
        return replace(one, weight=_widened(one.weight))
    if not one.is_floating_point():
        return one
    return one.detach().double().requires_grad_()


def test_no_chunk_holds_more_than_its_rows_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    head_logits_into = chunked.head_logits_into

    def spy(logits_CV: Tensor, hidden_CD: Tensor, head: Head) -> None:
        shapes.append(tuple(logits_CV.shape))
        head_logits_into(logits_CV, hidden_CD, head)

    monkeypatch.setattr(chunked, "head_logits_into", spy)
    made = make()
    run(chunked, made, weights(made), 10)
    assert shapes == [(10, VOCABULARY)] * 6 + [(5, VOCABULARY)] + [(10, VOCABULARY)] * 6 + [
        (5, VOCABULARY)
    ]
    shapes.clear()
    monkeypatch.setattr(chunked, "LEAST_ROWS", 2)
    monkeypatch.setattr(chunked, "DEFAULT_CHUNK_VALUES", 4 * VOCABULARY + 1)
    run(chunked, made, weights(made))
    assert max(rows for rows, _ in shapes) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [7, WHOLE])
def test_bfloat16_is_as_near_the_truth_as_the_twin(kind: str, chunk: int) -> None:
    """Truth: the same bfloat16 numbers computed in float64."""
    half = make(kind, torch.bfloat16)
    hidden_ND, head, row_E, token_E = half
    exact = (
        hidden_ND.detach().double().requires_grad_(),
        replace(
            head,
            weight=head.weight.detach().double().requires_grad_(),
            bias=None if head.bias is None else head.bias.detach().double().requires_grad_(),
        ),
        row_E,
        token_E,
    )
    weight_E = weights(half)
    truth = run(plain, exact, weight_E)
    ours, theirs = run(chunked, half, weight_E, chunk), run(plain, half, weight_E)
    assert ours[0].dtype is torch.float32  # log-probs are never rounded to bfloat16
    assert [t.dtype for t in ours[1:]] == [torch.bfloat16] * (len(ours) - 1)
    for our, their, true in zip(ours, theirs, truth, strict=True):
        our_error, their_error = distance(our.double(), true), distance(their.double(), true)
        assert our_error <= 1.05 * their_error + 2e-3, (our_error, their_error)


def test_sums_over_chunks_are_not_rounded_to_bfloat16() -> None:
    """2000 equal contributions to one weight: bfloat16 sums stop growing after a few hundred."""
    rows = 2000
    weight_VD = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden_ND = torch.ones(rows, 1, dtype=torch.bfloat16)
    row_E, token_E = torch.arange(rows), torch.zeros(rows, dtype=torch.long)
    logp_E = chunked.token_logps(hidden_ND, Head(weight_VD), row_E, token_E, 1)
    logp_E.backward(torch.ones_like(logp_E))
    assert weight_VD.grad is not None
    assert weight_VD.grad.flatten().tolist() == [rows / 2, -rows / 2]


@pytest.mark.parametrize("module", [chunked, plain])
def test_extreme_logits_stay_finite(module: object) -> None:
    weight_VD = torch.tensor([[1e4], [-1e4], [0.0]]).requires_grad_()
    hidden_ND = torch.ones(1, 1).requires_grad_()
    made = (hidden_ND, Head(weight_VD), torch.zeros(3, dtype=torch.long), torch.arange(3))
    values, *grads = run(module, made, torch.ones(3), 1)
    assert values.tolist() == [0.0, -2e4, -1e4]
    assert all(bool(g.isfinite().all()) for g in grads)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    made = make()
    logp_E = chunked.token_logps(*made, 7)
    weight_E = weights(made).requires_grad_()
    (grad_ND,) = torch.autograd.grad(logp_E, made[0], weight_E, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_ND.sum().backward()
