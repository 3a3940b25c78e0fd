"""What the backward makes again: the same values and gradients as without, and fewer bytes."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tests.support.families import (
    EXPERT_FAMILIES,
    PADDED_FAMILIES,
    TREE_FAMILIES,
    tiny_model,
    with_lora,
)
from tests.support.numerics import TELLING, assert_near, gradients, in_own_dtype
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import Exaone4Config, LlamaConfig
from transformers.models.exaone4.modeling_exaone4 import Exaone4ForCausalLM, Exaone4RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP

from likelier.base.errors import ConfigError
from likelier.batching.batch import lay_out
from likelier.model.adapters import attach_lora, for_training
from likelier.model.policy import Policy
from likelier.model.recompute import can_checkpoint, checkpoint_layers, made_again
from likelier.training.memory import memory_of

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
# Gemma 2's masks are float32's: in float64 its padded rows are not numbers.
FAMILIES = [(name, F32 if name == "gemma2" else F64)
            for name in (*TREE_FAMILIES, *EXPERT_FAMILIES, *PADDED_FAMILIES)]  # fmt: skip
# Of gradients. Sums in which a norm's input and what is added to it meet have another order.
NEAR = {F64: 1e-14, F32: 1e-6, BF16: 0.0}


def policy_of(family: str, dtype: torch.dtype, tuning: str) -> Policy:
    policy = Policy(tiny_model(family, dtype), None)  # type: ignore[arg-type]
    if tuning == "full":
        return policy
    # peft warns of, or refuses, some layers of experts and of state spaces.
    return with_lora(policy, "all-linear" if family in TREE_FAMILIES else ["q_proj"])


def step(policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    with policy.running() as scorer:
        batch = lay_out(TELLING, policy.backend)
        logp_K = scorer(batch)[batch.entry_K]
        logp_K.backward(torch.linspace(1, 2, len(logp_K), dtype=logp_K.dtype))
    return logp_K.detach(), gradients(policy.model)


def changed(policy: Policy) -> set[str]:
    """The kinds of modules that make something again while a policy is trained."""
    before = {module: type(module) for module in policy.model.modules()}
    with made_again(policy.causal_lm, policy.dtype):
        return {type(m).__name__ for m in policy.model.modules() if type(m) is not before[m]}


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_values_and_gradients_are_those_of_the_plain_modules(
    family: str, dtype: torch.dtype, tuning: str
) -> None:
    """In float64 throughout: norms of libraries round to float32 even there."""
    policy = policy_of(family, dtype, tuning)
    with in_own_dtype(policy.model):
        plain, their_grads = step(policy)
        with made_again(policy.causal_lm, dtype):
            ours, our_grads = step(policy)
    assert torch.equal(ours, plain)
    assert any(gradient.any() for gradient in our_grads.values())
    assert_near(our_grads, their_grads, NEAR[dtype])


@pytest.mark.parametrize("dtype", [F64, F32, BF16])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", ["exaone4", "llama", "qwen3", "gemma3"])
def test_norms_as_they_are(family: str, tuning: str, dtype: torch.dtype) -> None:
    """Their classes as they are, which compute in float32 and round."""
    policy = policy_of(family, dtype, tuning)
    plain, their_grads = step(policy)
    kinds = {type(m).__name__ for m in policy.model.modules() if "MLP" in type(m).__name__}
    if tuning == "full" or dtype == BF16:
        kinds |= {type(m).__name__ for m in policy.model.modules() if "Norm" in type(m).__name__}
    assert kinds <= changed(policy)
    with made_again(policy.causal_lm, dtype):
        ours, our_grads = step(policy)
    assert torch.equal(ours, plain)
    assert_near(our_grads, their_grads, NEAR[dtype])


def test_what_does_not_fit_or_does_not_pay_is_left() -> None:
    assert changed(policy_of("gpt2", BF16, "full")) == set()  # torch's own norm; no gate
    assert changed(policy_of("exaone4", F32, "lora")) == {"Exaone4MLP"}  # its norms keep the input
    assert changed(policy_of("exaone4", F32, "full")) == {"Exaone4MLP", "Exaone4RMSNorm"}


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_the_classes_come_back(ends: str) -> None:
    policy = policy_of("exaone4", F32, "full")
    before = [type(module) for module in policy.model.modules()]
    error = pytest.raises(ZeroDivisionError) if ends == "badly" else nullcontext()
    with error, made_again(policy.causal_lm, F32):
        assert [type(module) for module in policy.model.modules()] != before
        assert "Exaone4MLP" in repr(policy.model)  # names stay
        if ends == "badly":
            raise ZeroDivisionError
    assert [type(module) for module in policy.model.modules()] == before


# One module at a time


def mlp(kind: type = LlamaMLP, dtype: torch.dtype = F64) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, intermediate_size=24, num_attention_heads=2)
    return kind(config).to(dtype)


class OtherGate(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class Residual(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Scaled(LlamaMLP):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return scale * super().forward(x)


@pytest.mark.parametrize("kind", [LlamaMLP, OtherGate, Residual, Scaled])
def test_a_module_is_tried_and_not_known_by_its_parts(kind: type) -> None:
    module = mlp(kind)
    with made_again(nn.ModuleList([module]), F64):
        assert (type(module) is not kind) == (kind is LlamaMLP)


class OwnGate(nn.Module):
    """An activation that is trained, too."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.3], dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x * x, self.slope * x)


@pytest.mark.parametrize("frozen", [(), ("gate_proj", "up_proj"), ("down_proj",), ("act_fn",)])
@pytest.mark.parametrize("input_is_trained", [True, False])
def test_whatever_is_frozen(frozen: tuple[str, ...], input_is_trained: bool) -> None:
    module = mlp()
    module.act_fn = OwnGate()
    for name in frozen:
        getattr(module, name).requires_grad_(False)
    found = []
    for context in (nullcontext(), made_again(nn.ModuleList([module]), F64)):
        input = torch.linspace(-1, 1, 48, dtype=F64).view(2, 3, 8).requires_grad_(input_is_trained)
        with context:
            output = module(input)
            output.backward(torch.linspace(1, 2, 48, dtype=F64).view_as(output))
        values = {"output": output.detach(), **gradients(module)}
        found.append(values | ({"input": input.grad} if input.grad is not None else {}))
    assert_near(found[1], found[0], 1e-15)


def test_nothing_is_made_where_nothing_is_trained() -> None:
    module = mlp()
    norm = Exaone4RMSNorm(8).to(F64)
    input = torch.ones(2, 8, dtype=F64)
    with made_again(nn.ModuleList([module, norm]), F64):
        with torch.no_grad():
            assert module(input).grad_fn is None and norm(input).grad_fn is None
        module.requires_grad_(False)
        assert module(input).grad_fn is None
        assert "Again" not in type(norm(input).grad_fn).__name__  # its input has no gradient
        assert "Again" in type(norm(input.requires_grad_()).grad_fn).__name__


class GatedNorm(Exaone4RMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        states = super().forward(hidden_states)
        return states if gate is None else states * gate


def test_a_norm_with_a_second_input() -> None:
    norm = GatedNorm(8).to(F64)
    found = []
    for context in (nullcontext(), made_again(nn.ModuleList([norm]), F64)):
        input = torch.linspace(-1, 1, 16, dtype=F64).view(2, 8).requires_grad_()
        gate = torch.linspace(1, 2, 8, dtype=F64).requires_grad_()
        with context:
            norm(input, gate=gate).square().sum().backward()
        assert input.grad is not None and gate.grad is not None
        found.append({"input": input.grad, "gate": gate.grad, **gradients(norm)})
    assert_near(found[1], found[0], 1e-15)


def test_inputs_by_name() -> None:
    module, norm = mlp(), Exaone4RMSNorm(8).to(F64)
    input = torch.linspace(-1, 1, 16, dtype=F64).view(2, 8).requires_grad_()
    plain = module(x=norm(hidden_states=input))
    with made_again(nn.ModuleList([module, norm]), F64):
        assert torch.equal(module(x=norm(hidden_states=input)), plain)


# What is kept


@contextmanager
def counted(weights: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of what is saved, by storage, without a module's weights."""
    known = {p.untyped_storage().data_ptr() for p in weights.parameters()}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize(("r", "expected"), [(0, 8 + 24 + 24), (2, 8 + 24 + 24 + 3 * 2)])
def test_a_gated_product_keeps_its_input_and_factors_and_all_of_it_is_counted(
    r: int, expected: int
) -> None:
    """Of adapters the narrow middles as well."""
    import peft

    module: Any = mlp()
    if r:
        wanted = peft.LoraConfig(r=r, target_modules=["gate_proj", "up_proj", "down_proj"])
        module = peft.get_peft_model(nn.ModuleDict({"mlp": module}), wanted).base_model.model["mlp"]
    input = torch.ones(5, 8, dtype=F64, requires_grad=True)
    with made_again(nn.ModuleList([module]), F64), counted(module) as saved:
        output = module(input)
    assert sum(saved.values()) == 5 * 8 * expected
    output.sum().backward()  # while all of it is alive


def test_hooks_around_it_hold() -> None:
    """What others do with saved tensors, they do with these."""
    module = mlp()
    found = []
    for contexts in ((), (made_again(nn.ModuleList([module]), F64), save_on_cpu())):
        input = torch.linspace(-1, 1, 40, dtype=F64).view(5, 8).requires_grad_()
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            module(input).sum().backward()
        found.append(gradients(module))
    assert_near(found[1], found[0], 1e-15)


def test_inside_a_checkpoint_nothing_of_it_is_held() -> None:
    module = mlp()
    input = torch.linspace(-1, 1, 40, dtype=F64).view(5, 8).requires_grad_()
    module(input).sum().backward()
    expected = gradients(module)
    with made_again(nn.ModuleList([module]), F64), counted(module) as saved:
        output = checkpoint(module, input, use_reentrant=False)
        assert isinstance(output, Tensor)
        assert sum(saved.values()) == 5 * 8 * 8  # the input
        output.sum().backward()
    assert_near(gradients(module), expected, 1e-15)


def test_nothing_waits_for_the_garbage_collector() -> None:
    module = mlp()
    alive: list[Any] = []
    gc.disable()
    try:
        with made_again(nn.ModuleList([module]), F64):
            module.down_proj.register_forward_pre_hook(
                lambda _, inputs: alive.extend(map(weakref.ref, (inputs[0], inputs[0].grad_fn)))
            )
            output = module(torch.ones(5, 8, dtype=F64))
            assert alive[0]() is None and alive[1]() is not None
            del output
        assert alive[1]() is None
    finally:
        gc.enable()


def real_proportions(dtype: torch.dtype, lora: bool, layers: int) -> Policy:
    """EXAONE-4.0-1.2B's shape, eight times as narrow: what a token keeps shrinks with it."""
    config = Exaone4Config(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, sliding_window=None,
        sliding_window_pattern=None, layer_types=["full_attention"] * layers,
    )  # fmt: skip
    policy = Policy(Exaone4ForCausalLM(config).to(dtype).train(), None)  # type: ignore[arg-type]
    return attach_lora(policy, 2, 4, "all-linear", seed=0) if lora else policy


@pytest.mark.parametrize(
    ("dtype", "lora", "share"),
    [(F32, True, 0.76), (BF16, True, 0.40), (F32, False, 0.63), (BF16, False, 0.54)],
)
def test_a_layer_keeps_less_and_with_checkpoints_its_input(
    dtype: torch.dtype, lora: bool, share: float
) -> None:
    def of_a_layer(how: str) -> float:
        found = []
        for layers in (1, 3):
            policy = real_proportions(dtype, lora, layers)
            if how == "layers":
                checkpoint_layers(policy.causal_lm)
            with for_training(policy) if how != "plain" else nullcontext():
                found.append(memory_of(policy).per_token)
        return (found[1] - found[0]) / 2

    plain = of_a_layer("plain")
    assert of_a_layer("none") < share * plain
    assert of_a_layer("layers") < 0.08 * plain


# Whole layers


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_layers_that_run_again_give_the_same(family: str, dtype: torch.dtype, tuning: str) -> None:
    policy = policy_of(family, dtype, tuning)
    plain, their_grads = step(policy)
    before = memory_of(policy).per_token
    checkpoint_layers(policy.causal_lm)
    with for_training(policy):
        ours, our_grads = step(policy)
        assert memory_of(policy).per_token < 0.7 * before
    assert torch.equal(ours, plain)
    assert_near(our_grads, their_grads, NEAR[dtype])


def test_an_architecture_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    assert not can_checkpoint(model)
    with pytest.raises(ConfigError, match="LlamaForCausalLM cannot run its layers again") as caught:
        checkpoint_layers(model)
    assert caught.value.where == "train.checkpointing"
