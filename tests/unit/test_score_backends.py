"""Which backend serves a model: what it refuses, what it says, and many sequences scored."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.families import shared_model, tiny_model
from tests.support.numerics import TELLING, VOCAB, distance, plain_logps
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from likelier.batching.tree import build_tree
from likelier.model.attention.backends import (
    TREE_BACKENDS,
    UnsupportedAttention,
    _attend,
    dense,
    tree_obstacle,
)
from likelier.model.attention.cuda import padded_size
from likelier.model.policy import Policy, score_sequences

TREE, _ = build_tree([(1, 2, 3), (1, 2, 4)])


def attend(backend: str, **keywords: Any) -> torch.Tensor:
    states = torch.randn(1, 2, 4, 8)
    given = {"attention_mask": None, "tree": TREE, **keywords}
    function = ALL_ATTENTION_FUNCTIONS[f"likelier_{backend}"]
    return function(torch.nn.Identity(), states, states, states, **given)[0]


@pytest.mark.parametrize("backend", TREE_BACKENDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("s_aux", torch.zeros(2)),  # attention sinks
        ("softcap", 50.0),
        ("position_bias", torch.zeros(1, 2, 4, 4)),
        ("head_mask", torch.ones(2)),
        ("a_keyword_of_tomorrow", "anything"),
        ("attention_mask", torch.ones(1, 1, 4, 4)),
        ("dropout", 0.1),
    ],
)
def test_an_unknown_request_is_refused_by_name(backend: str, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedAttention, match=f"Identity asks for {name}$"):
        attend(backend, **{name: value})


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", TREE_BACKENDS)
def test_what_asks_for_nothing_is_let_pass(backend: str) -> None:
    nothing = {"s_aux": None, "softcap": None, "output_attentions": False, "position_bias": None}
    passed = {"position_ids": torch.arange(4)[None], "use_cache": False, "dropout": 0.0}
    assert attend(backend, **nothing, **passed).shape == (1, 4, 2, 8)


def test_all_refusals_are_named_together() -> None:
    with pytest.raises(UnsupportedAttention, match="asks for no tree, s_aux, softcap"):
        attend("segments", tree=None, softcap=2.0, s_aux=torch.zeros(2))


def sinks() -> Any:
    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=5,
        )
    )


def alibi() -> Any:
    """Has its own attention and never asks for ours."""
    return BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2))


def own_positions() -> Any:
    """Takes our positions, but its attention is its own."""
    config = OpenAIGPTConfig(vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return OpenAIGPTLMHeadModel(config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny_model("gemma2", torch.float32), "Gemma2Attention asks for softcap"),
        (sinks, "GptOssAttention asks for s_aux"),
        (alibi, "in a tree, its log-probs of a test batch are off by"),
        (own_positions, "in a tree, its log-probs of a test batch are off by"),
    ],
    ids=["soft-cap", "sinks", "ALiBi", "own attention"],
)
def test_the_rest_goes_padded_and_says_why(make: Any, reason: str) -> None:
    model = make().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    before = model.config._attn_implementation
    policy = Policy(model, None)  # type: ignore[arg-type]
    assert policy.backend == "padded"
    assert policy.backend_reason is not None and policy.backend_reason.startswith(reason)
    assert model.config._attn_implementation == before
    found = dict(score_sequences(policy, TELLING))
    with policy.running():
        expected = plain_logps(model, TELLING)
    for place, logps in enumerate(expected):
        assert distance(found[place], logps.detach()) < 1e-4


KERNEL_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: no kernel image is available"),
    torch._dynamo.exc.TorchDynamoException("head size 24"),
]


@pytest.mark.parametrize("error", KERNEL_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("broken", [("flex",), ("flex", "dense")])
def test_a_kernel_that_fails_leads_to_the_next_backend(
    error: Exception, broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: FlexAttention, then one mask, then the model's own attention; said aloud."""

    def fails(*states: Any, **others: Any) -> None:
        raise error

    monkeypatch.setattr("likelier.model.policy._tree_backends", lambda policy: ("flex", "dense"))
    for name in broken:
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, f"likelier_{name}", fails)
    policy = Policy(shared_model("exaone4", torch.float32), None)  # type: ignore[arg-type]
    backend, words = ("dense", "a mask of all") if broken == ("flex",) else ("padded", "one seq")
    assert policy.backend == backend
    assert words in str(policy.backend_in_words)
    assert str(error) in str(policy.backend_reason)


@pytest.mark.parametrize("length", [0, 256])
@pytest.mark.parametrize("trained", [False, True])
def test_the_backward_of_a_kernel_is_tried(
    length: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 256 and at 512 rows, and only where something is trained. Nothing is left of it."""
    rows: list[int] = []

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: torch.Tensor) -> torch.Tensor:
            ctx.tokens = states.shape[2]
            return states.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            rows.append(padded_size(ctx.tokens))
            if rows[-1] >= (length or 10**9):
                raise RuntimeError("out of resources: shared memory")
            return grad

    def flex(query: Any, *others: Any) -> torch.Tensor:
        return Fails.apply(dense(query, *others))  # type: ignore[no-any-return,no-untyped-call]

    monkeypatch.setattr("likelier.model.policy._tree_backends", lambda policy: ("flex", "dense"))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "likelier_flex", _attend(flex))
    model = shared_model("exaone4", torch.float32)
    before = [parameter.requires_grad for parameter in model.parameters()]
    try:
        model.requires_grad_(trained)
        policy = Policy(model, None)  # type: ignore[arg-type]
        assert policy.backend == ("dense" if trained and length else "flex")
        assert set(rows) == (({256, 512} if not length else {256}) if trained else set())
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        for parameter, was in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(was)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_no_reason(dtype: torch.dtype) -> None:
    for family in ("exaone4", "qwen3-moe"):
        policy = Policy(shared_model(family, dtype), None)  # type: ignore[arg-type]
        assert (policy.backend, policy.backend_reason) == ("segments", None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layer_types": ["full_attention", "conv"]}, "conv"),
        ({"layer_types": ["chunked_attention"]}, "chunked_attention"),
        ({"alibi": True}, "ALiBi"),
        ({"mamba_d_state": 16}, "mamba_d_state"),
        ({"attn_layer_period": 8}, "attn_layer_period"),
        ({"attention_chunk_size": 128}, "attention_chunk_size"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default"},
                    "sliding_attention": {
                        "rope_type": "longrope",
                        "original_max_position_embeddings": 4096,
                    },
                }
            },
            "longrope",
        ),
    ],
)
def test_obstacles_are_read_from_the_configuration(config: dict[str, Any], said: str) -> None:
    reason = tree_obstacle(SimpleNamespace(**config))
    assert reason is not None and said in reason
    nested = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config))
    assert tree_obstacle(nested) == reason


def test_no_obstacle_in_what_the_tree_serves() -> None:
    assert tree_obstacle(SimpleNamespace()) is None
    both = SimpleNamespace(layer_types=["full_attention", "sliding_attention"], alibi=False)
    assert tree_obstacle(both) is None
    for rope in ("default", "linear", "llama3", "yarn", "dynamic"):
        assert tree_obstacle(SimpleNamespace(rope_parameters={"rope_type": rope})) is None
    assert tree_obstacle(LlamaConfig()) is None


@pytest.mark.parametrize("family", ["exaone4-sliding", "gemma2"])
@pytest.mark.parametrize("budget", [1, 30, 8192])
def test_many_sequences_in_any_passes(family: str, budget: int) -> None:
    policy = Policy(shared_model(family, torch.float32), None)  # type: ignore[arg-type]
    finished: list[int] = []
    assert policy.backend  # tried on a batch of its own, which is not to be counted
    policy.scorer.register_forward_pre_hook(lambda _, given: finished.append(given[0].num_tokens))
    found = list(score_sequences(policy, TELLING, budget))
    assert sorted(place for place, _ in found) == list(range(len(TELLING)))
    assert len(finished) == {1: len(TELLING), 8192: 1}.get(budget, len(finished))
    assert 1 < len(finished) < len(TELLING) or budget != 30
    with policy.running("padded"), torch.no_grad():
        expected = plain_logps(policy.model, TELLING)
    for place, logps in found:
        assert not logps.requires_grad
        assert len(logps) == TELLING[place].num_scored
        assert distance(logps, expected[place]) < 1e-5


def test_no_sequences_no_passes() -> None:
    policy = Policy(shared_model("llama"), None)  # type: ignore[arg-type]
    assert list(score_sequences(policy, [])) == []
