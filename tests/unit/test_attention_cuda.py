"""FlexAttention over a tree: the blocks it visits, and its values, against the dense twin."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from likelier.batching.tree import Tree, ancestor_mask_TT, build_tree
from likelier.model.attention import cuda as module
from likelier.model.attention.backends import dense, segments
from likelier.model.attention.cuda import block_mask, flex, padded_size

Tokens = tuple[int, ...]
sets = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 200)).map(
        lambda word: (7,) * (word[0] * 40) + (word[0],) * word[1]
    ),
    min_size=1,
    max_size=6,
)
windows = st.none() | st.sampled_from([1, 5, 60, 129, 300])
GROUP = [(7,) * 130 + (n,) * 90 for n in range(4)]


def padded_mask(tree: Tree, window: int | None) -> torch.Tensor:
    """The predicate, and padding that sees itself."""
    tokens, size = len(tree.end_T), padded_size(len(tree.end_T))
    mask_TT = torch.eye(size, dtype=torch.bool)
    mask_TT[:tokens, :tokens] = ancestor_mask_TT(tree, window)
    return mask_TT


@settings(max_examples=40, deadline=None)
@given(sets, windows)
@example(GROUP, None)
@example(GROUP, 100)
def test_blocks_that_are_left_out_hide_nothing_and_full_ones_hide_everything_else(
    sequences: list[Tokens], window: int | None
) -> None:
    tree, _ = build_tree(sequences)
    expected_TT = padded_mask(tree, window)
    found = block_mask(tree, window)
    blocks = len(expected_TT) // module.BLOCK
    some, full = torch.zeros(2, blocks, blocks, dtype=torch.bool)
    for at in range(blocks):
        some[at, found.kv_indices[0, 0, at, : found.kv_num_blocks[0, 0, at]].long()] = True
        assert found.full_kv_indices is not None and found.full_kv_num_blocks is not None
        count = found.full_kv_num_blocks[0, 0, at]
        full[at, found.full_kv_indices[0, 0, at, :count].long()] = True
    assert not (some & full).any()  # a block visited twice would count twice
    by_block = expected_TT.view(blocks, module.BLOCK, blocks, module.BLOCK).transpose(1, 2)
    seen, whole = by_block.flatten(2).any(2), by_block.flatten(2).all(2)
    assert not (seen & ~(some | full)).any()
    assert not (full & ~whole).any()
    row_T = torch.arange(len(expected_TT))
    asked = found.mask_mod(torch.tensor(0), torch.tensor(0), row_T[:, None], row_T[None, :])
    assert torch.equal(asked, expected_TT)


def test_most_blocks_of_a_group_are_skipped() -> None:
    """One prompt and eight answers: an answer's blocks never meet another answer's."""
    tree, _ = build_tree([(7,) * 128 + (n,) * 128 for n in range(8)])
    found = block_mask(tree, None)
    assert found.full_kv_num_blocks is not None
    visited = int(found.kv_num_blocks.sum() + found.full_kv_num_blocks.sum())
    # 9 blocks of tokens, 7 of padding: each its own square, and the answers the prompt's.
    assert padded_size(len(tree.end_T)) == 2048
    assert visited == 16 + 8


def test_few_sizes() -> None:
    assert len(module.ROW_COUNTS) == 8
    assert [padded_size(n) for n in (1, 256, 257, 32768, 32769)] == [256, 256, 512, 32768, 65536]


def states(tokens: int, heads: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(1, tokens, heads, 32, dtype=dtype, device=device)
    return made.transpose(1, 2).requires_grad_()


# Right for a test: a CPU has no need of this backend, and compiling takes half a minute.
uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@uncompiled
@pytest.mark.parametrize("window", [None, 50])
def test_values_equal_the_twin(window: int | None) -> None:
    """On a CPU without a gradient: FlexAttention has no backward there."""
    torch.manual_seed(0)
    tree, _ = build_tree([*GROUP, (1, 2, 3)])
    inputs = [states(len(tree.end_T), heads, "cpu", torch.float32) for heads in (4, 2, 2)]
    with torch.no_grad():
        ours, twin = (attention(*inputs, tree, 0.2, window) for attention in (flex, dense))
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-5)
    assert set(tree.memo) == {window}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """The compilations of FlexAttention, which is then run uncompiled: no compiler is needed."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(module, "flex_attention", module.compiled(counter))
    yield counter
    module.compiled.cache_clear()
    torch._dynamo.reset()


def attend(answers: int, window: int | None) -> None:
    """Attention over one prompt and so many answers."""
    tree, _ = build_tree([(7,) * 130 + (n,) * 90 for n in range(answers)])
    with torch.no_grad():
        flex(
            *(states(len(tree.end_T), heads, "cpu", torch.float32) for heads in (4, 2, 2)),
            tree, None, window,
        )  # fmt: skip


def test_one_kernel_for_each_count_of_rows_and_window(kernels: CompileCounter) -> None:
    """Not for each batch: those of as many rows share theirs. More than torch's limit of 8."""
    for answers, count in ((1, 1), (2, 2), (3, 2), (4, 2), (1, 2)):
        attend(answers, None)
        assert kernels.frame_count == count
    for window in range(10, 20):
        attend(1, window)
    assert kernels.frame_count == 12


def test_more_kernels_than_allowed_are_an_error(
    kernels: CompileCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch alone would warn, and hold all tokens by all tokens in memory."""
    monkeypatch.setattr(module, "MOST_KERNELS", 2)
    attend(1, 10)
    attend(1, 11)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        attend(1, 12)


@pytest.mark.cuda
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_on_a_gpu(window: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tree, _ = build_tree([*GROUP, (1, 2, 3)])
    tree = tree.with_tensors(*(t.cuda() for t in (tree.token_T, tree.depth_T, tree.end_T)))
    inputs = [states(len(tree.end_T), heads, "cuda", dtype) for heads in (4, 2, 2)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    weight = torch.randn(1, 4, len(tree.end_T), 32, device="cuda", dtype=torch.float64)
    truth = dense(*exact, tree, 0.2, window)
    wanted = [truth, *torch.autograd.grad(truth, exact, weight)]
    found = flex(*inputs, tree, 0.2, window)
    grads = torch.autograd.grad(found, inputs, weight.to(dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for ours, theirs in zip([found, *grads], wanted, strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.cuda
def test_the_backend_of_a_gpu_is_flex_and_passes_the_gate(tmp_path: object) -> None:
    from tests.support.runs import make_place

    from likelier.run import train

    place = make_place(tmp_path, rows=20)  # type: ignore[arg-type]
    run = train(place.config("run"))
    record = __import__("json").loads((run.folder / "run.json").read_text())
    assert (record["backend"], record["backend_reason"]) == ("flex", None)
    assert record["device"].startswith("cuda")


@uncompiled
def test_both_fast_paths_agree() -> None:
    torch.manual_seed(1)
    tree, _ = build_tree(GROUP)
    inputs = [states(len(tree.end_T), heads, "cpu", torch.float32) for heads in (4, 2, 2)]
    with torch.no_grad():
        torch.testing.assert_close(
            flex(*inputs, tree, None, None), segments(*inputs, tree, None, None),
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip
