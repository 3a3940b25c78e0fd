"""A pass: sequences laid out for one forward, and where in it their scored tokens are predicted.

Two layouts with one face: `tree_pass` (every distinct prefix once, one row) and `padded_pass`
(one row a sequence, for models that the tree cannot serve).

Axis letters: B rows, L row length, N distinct predicting positions, E distinct (position, token)
entries, K scored tokens of all answers in order, R answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
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
        last = max(i for i, wanted in enumerate(self.scored) if wanted)
        return self.tokens[:last]

    @property
    def num_scored(self) -> int:
        """How many tokens are scored."""
        return sum(self.scored)


def scored(prompt: tuple[int, ...], answer: Completion) -> Scored:
    """The sequence of a prompt and one answer; the prompt is context.

    Raises ValueError where the first scored token has no token before it to predict it, or
    nothing is scored.
    """
    if not any(answer.scored):
        raise ValueError("an answer needs at least one scored token")
    if not prompt and answer.scored[0]:
        raise ValueError("an answer needs a prompt of at least one token to predict its first")
    return Scored(prompt + answer.tokens, (False,) * len(prompt) + answer.scored)


def answers_of(pair: TokenPair) -> tuple[Scored, Scored]:
    """The two sequences of a pair."""
    return scored(pair.prompt, pair.chosen), scored(pair.prompt, pair.rejected)


@dataclass(frozen=True)
class Pass:
    """What one forward reads and what its log-probs mean.

    ``token_BL``, ``depth_BL`` (position ids) and ``keep_BL`` (True where a token stands; None
    for a tree, which has no padding) are the model's input. ``predict_N`` are flat positions of
    the predicting tokens in ascending order; ``row_E`` (index into N, ascending) and ``token_E``
    the entries; ``entry_K`` the entry of every scored token, answer after answer; ``length_R``
    the scored tokens of each answer.
    """

    token_BL: Tensor
    depth_BL: Tensor
    keep_BL: Tensor | None
    tree: Tree | None
    predict_N: Tensor
    row_E: Tensor
    token_E: Tensor
    entry_K: Tensor
    length_R: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that the forward computes, padding included."""
        return self.token_BL.numel()

    @property
    def answer_K(self) -> Tensor:
        """The answer of every scored token."""
        answers_R = torch.arange(len(self.length_R), device=self.length_R.device)
        return answers_R.repeat_interleave(self.length_R, output_size=len(self.entry_K))

    def answer_logps(self, logp_E: Tensor) -> Tensor:
        """Log-prob of each answer in nats, shape (R,): its tokens' log-probs, summed in float64."""
        total_R = torch.zeros(len(self.length_R), dtype=torch.float64, device=logp_E.device)
        return total_R.index_add(0, self.answer_K, logp_E.double()[self.entry_K])

    def entry_gradients(self, grad_R: Tensor) -> Tensor:
        """The gradient of every entry, shape (E,), from that of every answer's log-prob."""
        total_E = torch.zeros(len(self.row_E), dtype=torch.float64, device=grad_R.device)
        return total_E.index_add(0, self.entry_K, grad_R.double()[self.answer_K])

    def to(self, device: torch.device | str) -> "Pass":
        """The same pass with its tensors on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Tree)
        }
        return replace(self, **moved)


def tree_pass(sequences: Sequence[Scored]) -> Pass:
    """Lay sequences out as a prefix tree. The last token of each is a target, never an input."""
    tree, spans = build_tree([sequence.inputs for sequence in sequences])
    places = [[p for start, stop in path for p in range(start, stop)] for path in spans]
    return Pass(
        token_BL=tree.token_T[None],
        depth_BL=tree.depth_T[None],
        keep_BL=None,
        tree=tree,
        **_entries(sequences, places),
    )


def padded_pass(sequences: Sequence[Scored]) -> Pass:
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
    places = [range(row_of[s.inputs] * length, (row_of[s.inputs] + 1) * length) for s in sequences]
    return Pass(
        token_BL=token_BL,
        depth_BL=torch.arange(length).expand(len(row_of), -1),
        keep_BL=keep_BL,
        tree=None,
        **_entries(sequences, places),
    )


def _entries(sequences: Sequence[Scored], places: Iterable[Sequence[int]]) -> dict[str, Tensor]:
    """Number the distinct (predicting position, target token) entries of sequences.

    ``places[i][p]`` is the flat position of token p of sequence i.
    """
    wanted = [
        (place[position - 1], sequence.tokens[position])
        for sequence, place in zip(sequences, places, strict=True)
        for position, is_scored in enumerate(sequence.scored)
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
        "length_R": torch.tensor([sequence.num_scored for sequence in sequences]),
    }
