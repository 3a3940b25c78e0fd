"""A batch: sequences laid out for one forward, where their scored tokens are predicted, and pairs.

There are two layouts: `tree_batch` (every distinct prefix once, in one row) and `padded_batch`
(one sequence per row, for models that the tree cannot serve).

Axis letters: B rows, L row length, N distinct predicting positions, E distinct (position, token)
entries, K scored tokens of all completions in order, R completions, P pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.batching.tree import Tree, build_tree
from likelier.data.records import Completion, TokenPair


@dataclass(frozen=True)
class Scored:
    """One sequence to score: all token ids, and for each whether its log-prob is wanted."""

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tokens that a forward needs: those before the last scored one."""
        last = len(self.scored) - 1 - self.scored[::-1].index(True)
        return self.tokens[:last]

    @property
    def num_scored(self) -> int:
        """How many tokens are scored."""
        return sum(self.scored)


def scored(prompt: tuple[int, ...], completion: Completion) -> Scored:
    """The sequence of a prompt and one completion; the prompt is context.

    Raises ValueError where the first scored token has no token before it to predict it, or
    nothing is scored.
    """
    if not any(completion.scored):
        raise ValueError("an answer needs at least one scored token")
    if not prompt and completion.scored[0]:
        raise ValueError("an answer needs a prompt of at least one token to predict its first")
    return Scored(prompt + completion.tokens, (False,) * len(prompt) + completion.scored)


def completions_of(pair: TokenPair) -> tuple[Scored, Scored]:
    """The two sequences of a pair."""
    return scored(pair.prompt, pair.chosen), scored(pair.prompt, pair.rejected)


_NO_PAIRS = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Batch:
    """What one forward reads, what its log-probs mean, and the pairs that they form.

    ``token_BL``, ``depth_BL`` (position ids) and ``keep_BL`` (1 where a token stands; None for a
    tree, which has no padding) are the model's input. ``predict_N`` are flat positions of the
    predicting tokens in ascending order; ``row_E`` (index into N, ascending) and ``token_E`` the
    entries; ``entry_K`` the entry of every scored token, completion after completion;
    ``scored_R`` how many scored tokens each completion has. ``starts`` are the first entry of every
    row of N and their number, and ``longest`` the tokens of the longest sequence: plain numbers,
    so that nobody waits for a device to say them.

    The rest is there where the completions form pairs of a training step: ``chosen_P`` and
    ``rejected_P`` index into R, ``position_P`` is each pair's position in the step, ``reference_R``
    summed log-probs (float64), ``columns`` what the data brings of each pair (margin, weight,
    label; shape (P,)), ``weight_K`` what each scored token counts, None where all count alike,
    ``mean_tokens`` the mean length of the chosen completions of the whole step, ``num_pairs`` its
    pairs.
    """

    token_BL: Tensor
    depth_BL: Tensor
    keep_BL: Tensor | None
    tree: Tree | None
    predict_N: Tensor
    row_E: Tensor
    token_E: Tensor
    entry_K: Tensor
    scored_R: Tensor
    starts: tuple[int, ...]
    longest: int
    reference_R: Tensor = _NO_PAIRS
    chosen_P: Tensor = _NO_PAIRS
    rejected_P: Tensor = _NO_PAIRS
    position_P: Tensor = _NO_PAIRS
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    weight_K: Tensor | None = None
    mean_tokens: float = 0.0
    num_pairs: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the forward computes, padding included."""
        return self.token_BL.numel()

    @property
    def completion_K(self) -> Tensor:
        """The completion of every scored token."""
        index_R = torch.arange(len(self.scored_R), device=self.scored_R.device)
        return index_R.repeat_interleave(self.scored_R, output_size=len(self.entry_K))

    @property
    def length_R(self) -> Tensor:
        """How many tokens each completion counts as."""
        return self.scored_R if self.weight_K is None else self._summed(self.weight_K)

    def token_logps(self, logp_E: Tensor) -> tuple[Tensor, ...]:
        """For each completion the log-probs of its scored tokens, from those of the entries."""
        return logp_E[self.entry_K].split(self.scored_R.tolist())

    def completion_logps(self, logp_E: Tensor) -> Tensor:
        """Log-prob of each completion in nats, shape (R,): its tokens' summed in float64."""
        logp_K = logp_E.double()[self.entry_K]
        return self._summed(logp_K if self.weight_K is None else self.weight_K * logp_K)

    def entry_gradients(self, grad_R: Tensor) -> Tensor:
        """The gradient of every entry, shape (E,), from that of every completion's log-prob."""
        grad_K = grad_R.double()[self.completion_K]
        if self.weight_K is not None:
            grad_K = grad_K * self.weight_K
        return grad_K.new_zeros(len(self.row_E)).index_add(0, self.entry_K, grad_K)

    def mean_over_tokens(self, value_K: Tensor) -> Tensor:
        """The mean over each completion's scored tokens, shape (R,)."""
        return self._summed(value_K) / self.scored_R

    def _summed(self, value_K: Tensor) -> Tensor:
        total_R = value_K.new_zeros(len(self.scored_R), dtype=torch.float64)
        return total_R.index_add(0, self.completion_K, value_K.double())

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        of_tree = [self.tree.token_T, self.tree.depth_T, self.tree.end_T] if self.tree else []
        sent = [*tensors.values(), *self.columns.values(), *of_tree]
        arrived = iter(together(sent, torch.device(device)))
        moved: dict[str, Any] = dict(zip(tensors, arrived, strict=False))
        moved["columns"] = dict(zip(self.columns, arrived, strict=False))
        return replace(self, **moved, tree=self.tree and self.tree.with_tensors(*arrived))


_APART = 16  # numbers: kernels read faster where a tensor begins at such a multiple


def together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one device on another one, in one copy for each dtype.

    A GPU is sent them from pinned memory, so that nobody waits.
    """
    here = all(tensor.device == device for tensor in tensors)
    return list(tensors) if here else joined_copies(tensors, device)


def joined_copies(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`together` for tensors that lie elsewhere."""
    arrived: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [at for at, tensor in enumerate(tensors) if tensor.dtype == dtype]
        sizes = [tensors[at].numel() for at in places]
        gaps = [-size % _APART for size in sizes]
        flat = torch.cat(
            [F.pad(tensors[at].flatten(), (0, gap)) for at, gap in zip(places, gaps, strict=True)]
        )
        if device.type == "cuda":
            flat = flat.pin_memory().to(device, non_blocking=True)
        parts = flat.to(device).split([*map(sum, zip(sizes, gaps, strict=True))])
        for at, size, part in zip(places, sizes, parts, strict=True):
            arrived[at] = part[:size].view(tensors[at].shape)
    return [arrived[at] for at in range(len(tensors))]


def lay_out(sequences: Sequence[Scored], backend: str) -> Batch:
    """Sequences in the layout that an attention backend reads."""
    return padded_batch(sequences) if backend == "padded" else tree_batch(sequences)


def tree_batch(sequences: Sequence[Scored]) -> Batch:
    """Lay sequences out as a prefix tree. The last token of each is a target, never an input."""
    tree, spans = build_tree([sequence.inputs for sequence in sequences])
    positions = [[p for start, stop in path for p in range(start, stop)] for path in spans]
    return Batch(
        token_BL=tree.token_T[None],
        depth_BL=tree.depth_T[None],
        keep_BL=None,
        tree=tree,
        **_entries(sequences, positions),
    )


def padded_batch(sequences: Sequence[Scored]) -> Batch:
    """Lay sequences out one a row, padded on the right; equal sequences share a row."""
    row_of: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        row_of.setdefault(sequence.inputs, len(row_of))
    length = max(len(inputs) for inputs in row_of)
    token_BL = torch.zeros(len(row_of), length, dtype=torch.long)
    keep_BL = torch.zeros(len(row_of), length, dtype=torch.long)
    for inputs, row in row_of.items():
        token_BL[row, : len(inputs)] = torch.tensor(inputs)
        keep_BL[row, : len(inputs)] = 1
    rows = [row_of[sequence.inputs] for sequence in sequences]
    positions = [range(row * length, (row + 1) * length) for row in rows]
    return Batch(
        token_BL=token_BL,
        depth_BL=torch.arange(length).expand(len(row_of), -1),
        keep_BL=keep_BL,
        tree=None,
        **_entries(sequences, positions),
    )


def _entries(sequences: Sequence[Scored], positions: Iterable[Sequence[int]]) -> dict[str, Any]:
    """Number the distinct (predicting position, target token) entries of sequences.

    ``positions[i][p]`` is the flat position of token p of sequence i.
    """
    wanted = [
        (flat[token - 1], sequence.tokens[token])
        for sequence, flat in zip(sequences, positions, strict=True)
        for token, is_scored in enumerate(sequence.scored)
        if is_scored
    ]
    entries = sorted(set(wanted))
    number = {entry: i for i, entry in enumerate(entries)}
    predict_E = torch.tensor([position for position, _ in entries])
    predict_N, row_E = torch.unique_consecutive(predict_E, return_inverse=True)
    return {
        "predict_N": predict_N,
        "row_E": row_E,
        "token_E": torch.tensor([token for _, token in entries]),
        "entry_K": torch.tensor([number[entry] for entry in wanted]),
        "scored_R": torch.tensor([sequence.num_scored for sequence in sequences]),
        "starts": (0, *row_E.bincount().cumsum(0).tolist()),
        "longest": max(len(sequence.inputs) for sequence in sequences),
    }
