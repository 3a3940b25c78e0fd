"""The answers of a run: some of its prompts, answered by the initial policy and by the trained one.

They stand in ``samples.jsonl``, a row for each prompt and way of decoding, and nothing that is
trained depends on them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from likelier.base.child import in_child
from likelier.base.errors import LikelierError, OutputError, describe_error
from likelier.base.files import read_lines, write_lines
from likelier.base.terminal import say
from likelier.chat.tokenizer import Encoder
from likelier.config import Config
from likelier.data.encode import decode
from likelier.data.load import Dataset
from likelier.data.records import TokenPair
from likelier.generation.divergence import Drawn, divergences, initial_again, score_drawn
from likelier.generation.sample import Sample, decoding, decoding_by, generate_batch, read_answers
from likelier.model.limits import sizes
from likelier.model.policy import Policy
from likelier.model.quantise import bytes_of
from likelier.model.sharding import put_together
from likelier.training.run_folder import RunFolder

FILE = "samples.jsonl"
TEMPERATURES = 0.0, 1.0  # the likeliest answer, and one that is drawn
_AT_ONCE = 8  # prompts, each with both of its answers
_SHOWN = 2  # in the terminal
_LONGEST_SHOWN = 300  # characters
_MOST_TOKENS, _FEWEST_TOKENS = 128, 16
# On a CPU, answers of a model of so many bytes take seconds. Those of a larger one are to take a
# small part of its run, which a token in so many of those trained on is: every token of an answer
# takes all weights through the processor once.
_SMALL_MODEL = 2**29
_TRAINED_A_SAMPLED = 10_000


def keep_answers(
    folder: RunFolder, policy: Policy, encoder: Encoder, data: Dataset, fresh_adapter: bool,
    when: str,
) -> None:  # fmt: skip
    """Have the policy answer the prompts of ``eval.samples``, ``when``: "before" or "after" the
    training. A ``fresh_adapter`` that is switched off leaves the initial policy.

    Answers from before the training that a run finds when it resumes stand as they are. What fails
    here is said, and fails no run of one process.

    Raises OutputError where the disk refuses.
    """
    pairs = _asked(data.eval or data.train, folder.config.eval.samples)
    try:
        if pairs:
            _answer(folder, policy, encoder, pairs, bool(data.eval), fresh_adapter, when)
    except OutputError:
        raise
    except Exception as error:  # a cache or a head that transformers cannot generate with
        if policy.team.size > 1:  # the others may be waiting for this one's answers
            raise
        say(f"no answers from {when} the training: {describe_error(error)[0]}")


def _answer(
    folder: RunFolder, policy: Policy, encoder: Encoder, pairs: Sequence[TokenPair],
    held_out: bool, fresh_adapter: bool, when: str,
) -> None:  # fmt: skip
    config = folder.config
    length = _max_new_tokens(config, policy, pairs, folder.record["steps"])
    if length == 0:
        if when == "before":
            say("no answers: they take long beside so short a run (eval.max_new_tokens: 64 asks)")
        return
    path = folder.path / FILE
    prompts = in_child(_texts, policy, [pair.prompt for pair in pairs])
    seed = config.train.seed
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "source": pair.source, "held_out": held_out,
         "temperature": temperature, "max_new_tokens": length, "seed": seed}
        for temperature in TEMPERATURES
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]  # fmt: skip
    there = policy.team.agreed(lambda: read_lines(path))
    if len(there) == len(rows):
        known = [old for old, row in zip(there, rows, strict=True) if row.items() <= old.items()]
        rows = known if len(known) == len(rows) else rows
    if when == "before" and all("before" in row for row in rows):
        return
    behind = "" if held_out else ", which are trained on: none is held out"
    say(f"answering {len(pairs)} prompts {when} the training{behind}")
    ids = [pair.prompt for pair in pairs]
    generated = _generated(policy, encoder, ids, length, seed)
    read: list[Sample] = in_child(read_answers, encoder, generated)
    for row, one in zip(rows, read, strict=True):
        row |= {f"{name}_{when}" if name else when: value for name, value in _figures(one)}
    if folder.writes or policy.in_parts:
        drawn = score_drawn(policy, ids, read[len(ids) :])
        _add_divergence(rows[len(ids) :], policy, config, drawn, fresh_adapter, when)
    if not folder.writes:
        return
    write_lines(path, rows)
    if when == "after":
        _show(rows)


def _add_divergence(
    rows: Sequence[dict[str, Any]], policy: Policy, config: Config, drawn: Drawn,
    fresh_adapter: bool, when: str,
) -> None:  # fmt: skip
    """How sure the policy was of its own answers, nats a token, and after the training how far that
    is from the initial policy, nats an answer; where that cannot be had it is said.
    """
    for row, entropy_K in zip(rows, drawn.entropy_RK, strict=True):
        if len(entropy_K):
            row[f"entropy_{when}"] = round(float(entropy_K.mean()), 6)
    if when == "before":
        return
    try:
        with initial_again(policy, config, fresh_adapter) as initial:
            found = divergences(drawn, initial) if initial is not None else []
    except (LikelierError, RuntimeError) as error:  # it is gone, or does not fit beside the other
        say(f"no divergence from the initial policy: {describe_error(error)[0]}")
        return
    for row, (k1, k3) in zip(rows, found, strict=False):
        row |= {"kl_k1": round(k1, 6), "kl_k3": round(k3, 6)}


def _generated(
    policy: Policy, encoder: Encoder, ids: Sequence[tuple[int, ...]], length: int, seed: int
) -> list[list[int]]:
    """The tokens of the likeliest answer to each prompt, then of one to each that is drawn. The
    processes of a team share the prompts; those that hold the model in parts run it together, and
    all of them give all answers.
    """
    team, settings = policy.team, decoding(1, length, sorted(encoder.end_ids.values()))
    size, rank = (1, 0) if policy.in_parts else (team.size, team.rank)
    own, answers = ids[rank::size], list[tuple[list[int], list[int]]]()
    with put_together(policy), decoding_by(policy, encoder, settings, seed + rank):
        for first in range(0, len(own), _AT_ONCE):
            some = own[first : first + _AT_ONCE]
            both = generate_batch(policy, [*some, *some], likeliest=len(some))
            answers += zip(both[: len(some)], both[len(some) :], strict=True)
    shares = [answers] if size == 1 else team.gathered(answers)
    answered = [shares[at % size][at // size] for at in range(len(ids))]
    return [ways[at] for at in range(len(TEMPERATURES)) for ways in answered]


def _asked(pairs: Sequence[TokenPair], most: int) -> list[TokenPair]:
    """The first pairs of so many different prompts."""
    asked: dict[tuple[int, ...], TokenPair] = {}
    for pair in pairs:
        if len(asked) >= most:
            break
        asked.setdefault(pair.prompt, pair)
    return list(asked.values())


def _max_new_tokens(config: Config, policy: Policy, pairs: Sequence[TokenPair], steps: int) -> int:
    """What ``eval.max_new_tokens`` says, as far as the positions of the model go; 0: no answers."""
    asked = config.eval.max_new_tokens
    wanted = _MOST_TOKENS if asked == "auto" else asked
    large = sum(map(bytes_of, policy.model.parameters())) > _SMALL_MODEL
    if asked == "auto" and large and policy.device.type == "cpu":
        trained = steps * config.train.pairs_per_step * mean(pair.num_tokens for pair in pairs)
        wanted = min(wanted, int(trained) // _TRAINED_A_SAMPLED)
        if wanted < _FEWEST_TOKENS:
            return 0
    positions = sizes(policy.causal_lm)["positions"]
    longest = max(len(pair.prompt) for pair in pairs)
    return wanted if positions is None else max(1, min(wanted, positions - longest))


def _texts(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> list[str]:
    return list(map(partial(decode, policy.tokenizer), prompts))


def _figures(sample: Sample) -> list[tuple[str, Any]]:
    return [
        ("", sample.text),
        ("stopped", sample.stopped),
        ("tokens", len(sample.tokens)),
        ("repetition", round(sample.repetition, 4)),
    ]


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Two answers before and after, and what changed in all of them."""
    for row in rows[:_SHOWN]:
        say(f"prompt: {_short(row['prompt'])}")
        for when in ("before", "after"):
            if when in row:
                say(f"  {when}: {_short(row[when])}")
    for temperature in TEMPERATURES:
        some = [row for row in rows if row["temperature"] == temperature]
        sides = [_in_words(some, when) for when in ("before", "after") if when in some[0]]
        name = f"at temperature {temperature:g}" if temperature else "greedy"
        say(f"{len(some)} answers, {name}: {', then '.join(sides)}")
        if moved := [row["kl_k3"] for row in some if "kl_k3" in row]:
            say(f"KL of these from the initial policy: {mean(moved):.3g} nats an answer (k3)")


def _in_words(rows: Sequence[Mapping[str, Any]], when: str) -> str:
    stopped = sum(row[f"stopped_{when}"] for row in rows)
    tokens = mean(row[f"tokens_{when}"] for row in rows)
    repeated = mean(row[f"repetition_{when}"] for row in rows)
    return f"{stopped} end by themselves, {tokens:.0f} tokens, {repeated:.0%} repeated"


def _short(text: str) -> str:
    whole = " ".join(text.split())
    return whole if len(whole) <= _LONGEST_SHOWN else f"{whole[:_LONGEST_SHOWN]}…"
