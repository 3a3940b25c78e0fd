"""`likelier sample`: answers to the prompts of a file, in a file that is continued when stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from likelier import __version__
from likelier.base.child import in_child
from likelier.base.environment import QUANTISE, packages
from likelier.base.errors import ConfigError, DataError, Interrupted, RunFailed
from likelier.base.files import cache_dir, make_folder, must_be_apart
from likelier.base.foreign import masked
from likelier.base.limits import at_row
from likelier.base.model_files import first_line
from likelier.base.terminal import bar, say
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_prompt
from likelier.data.load import read_prompts
from likelier.data.records import PromptRow
from likelier.data.shapes import format_with
from likelier.generation.answer_file import AnswerFile, begin, continued
from likelier.generation.sample import decoding, decoding_by, sample_batch, seed_at
from likelier.generation.sides import ModelSide, Name, open_sides, run_config, template_of
from likelier.model.policy import Policy
from likelier.reference.fingerprint import hash_of, model_identity
from likelier.training.memory import device_memory, held

MAX_AT_ONCE = 64  # answers: beyond, a CPU gains nothing
_SHARE_OF_CACHE = 0.4  # of the memory that the weights leave


class Draws(NamedTuple):
    """How answers are drawn: how many of each prompt, by which settings, how many at once (None: as
    many as memory allows).
    """

    number: int
    temperature: float
    max_new_tokens: int
    seed: int
    batch_size: int | None


def sample_prompts(
    target: str,
    data: Path,
    out: Path,
    draws: Draws,
    only: Name | None,
    columns: Mapping[str, str | None],
    chat: bool,
    template: Mapping[str, Any],
) -> None:
    """Write answers to every prompt of ``data`` to ``out``, one row an answer.

    Started again with the same words it continues where it was stopped. Of a run or an adapter the
    tuned model is asked, unless ``only`` is ``base``.

    Raises DataError where a row has no prompt that can be used, before anything is drawn,
    OutputError where ``out`` holds something else, Interrupted on Ctrl-C, and what loading raises.
    """
    must_be_apart(out, f"--out {out}", [data, target])
    decoding(draws.temperature, draws.max_new_tokens, [])  # before anything is read
    if draws.number > 1 and draws.temperature == 0:
        what = "at temperature 0 all answers to a prompt are the same"
        raise ConfigError(what, where=f"-n {draws.number}", hint="raise --temperature, or set -n 1")
    config = run_config(target)
    as_chat = chat or (config is not None and config.data.chat)
    prompts = read_prompts(data, format_with(columns, as_chat))
    template = template_of(config, template)
    (side,) = open_sides(target, config, template, only, otherwise=("tuned",))
    answer_prompts(side, prompts, draws, {"template": template, "data": str(data)}, out)


def answer_prompts(
    side: ModelSide,
    prompts: Sequence[PromptRow],
    draws: Draws,
    words: Mapping[str, Any],
    out: Path | None = None,
) -> Path:
    """Write a side's answers to ``out``, or to a file of the cache that is found by all that
    answers depend on; what is there already is continued. Returns the file.

    ``words`` are the ``template`` and the ``data`` as they were given, to be written down.

    Raises what `sample_prompts` does.
    """
    settings = decoding(draws.temperature, draws.max_new_tokens, [])
    ids = in_child(_encoded, side.encoder, prompts, draws.max_new_tokens)
    for line in _how_they_are_asked(side.encoder, prompts):
        say(line)
    settings["eos_token_id"] = sorted(side.encoder.end_ids.values())
    asked = {
        "model": model_identity(side.policy.causal_lm, base_only=side.name == "base"),
        "side": side.name,
        "dtype": str(side.policy.dtype),
        "template": masked(words["template"]),
        "prompts": hash_of(prompts=prompts, ids=ids),
        "number": draws.number,
        "decoding": settings,
        "seed": draws.seed,
        "batch_size": draws.batch_size or "auto",
    }
    facts = {
        "likelier": __version__,
        "path": masked(side.path),
        "data": masked(words["data"]),
        "rows_at_once": draws.batch_size or _at_once(side.policy, ids, draws.max_new_tokens),
        "device": side.policy.device.type,
        "threads": torch.get_num_threads(),
        "versions": {one.name: one.installed for one in packages(QUANTISE) if one.installed},
    }
    if out is None:
        out = cache_dir() / "answers" / f"{hash_of(**asked)[:32]}.jsonl"
        make_folder(out.parent)
    then = begin(out, asked, facts)
    for name in ("device", "threads", "versions"):
        if then[name] != facts[name]:
            say(f"{out} was begun with other {name}: the answers to come may differ in their bits")
    both = zip(prompts, ids, strict=True)
    asks = [_Ask(*one, index) for one in both for index in range(draws.number)]
    places = [(ask.prompt.source, ask.number) for ask in asks]
    with continued(out, places, then["rows_at_once"]) as file:
        if file.done == len(asks):
            say(f"{out} is finished: nothing to do")
            return out
        try:
            with decoding_by(side.policy, side.encoder, settings, draws.seed):
                _draw(side, asks, draws.seed, file, then["rows_at_once"])
        except KeyboardInterrupt as error:
            what, hint = f"stopped after {file.done} answers", "the same command continues there"
            raise Interrupted(what, where=str(out), hint=hint) from error
    say(f"{len(asks)} answers in {out}")
    return out


class _Ask(NamedTuple):
    """One answer that is wanted."""

    prompt: PromptRow
    ids: tuple[int, ...]
    number: int  # among those to the same prompt


def _draw(side: ModelSide, asks: Sequence[_Ask], seed: int, file: AnswerFile, at_once: int) -> None:
    """Every answer that is not in the file yet; what a batch is drawn from follows from its place.

    Raises RunFailed where a GPU has too little memory.
    """
    with side.answering() as policy, bar("sample", len(asks), file.done) as show:
        while batch := asks[file.done : file.done + at_once]:
            place = file.done
            torch.manual_seed(drawn := seed_at(seed, place))
            try:
                samples = sample_batch(policy, side.encoder, [ask.ids for ask in batch])
            except torch.OutOfMemoryError as error:
                what = f"out of memory with {len(batch)} answers at once: {first_line(error)}"
                raise RunFailed(what, hint="name another --out, with a --batch-size") from error
            file.add(
                [
                    {
                        **ask.prompt.asked(),
                        "index": ask.number,
                        "answer": answer.text,
                        "stopped": answer.stopped,
                        "tokens": len(answer.tokens),
                        "seed": drawn,
                    }
                    for ask, answer in zip(batch, samples, strict=True)
                ]
            )
            show(len(batch), "")


def _encoded(
    encoder: Encoder, prompts: Sequence[PromptRow], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """The token ids of all prompts. Raises DataError that names the row of one that is unfit."""
    found = []
    for source, content, tools in prompts:
        try:
            with at_row(source):
                ids = encode_prompt(encoder, content, tools)
        except DataError as error:
            where = error.where or ""
            where = where if source in where else f"{source} {where}".strip()
            raise DataError(error.what, where=where, hint=error.hint) from error
        if encoder.at_most(len(ids) + max_new_tokens) < len(ids) + max_new_tokens:
            what = f"{len(ids)} tokens and {max_new_tokens} new ones, and the model has "
            hint = "shorten it, or lower --max-new-tokens"
            raise DataError(f"{what}{encoder.positions} positions", where=source, hint=hint)
        found.append(ids)
    return found


def _how_they_are_asked(encoder: Encoder, prompts: Sequence[PromptRow]) -> list[str]:
    """What is to be said of prompts that are not simply a user's turn to be answered."""
    texts = sum(isinstance(prompt.content, str) for prompt in prompts)
    begun = sum(
        prompt.content[-1]["role"] == "assistant"
        for prompt in prompts
        if not isinstance(prompt.content, str)
    )
    lines = []
    if texts and getattr(encoder.tokenizer, "chat_template", None):
        lines.append(f"{texts} prompts are text, which is continued; --chat makes turns of them")
    if begun:
        lines.append(f"{begun} prompts end with an assistant's turn, which is continued")
    return lines


def _at_once(policy: Policy, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> int:
    """How many answers are drawn at once: what their keys and values, and the logits of a token,
    leave room for. A power of two, so that memory which is a little more or less changes nothing.
    """
    config: Any = policy.causal_lm.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    length = max(map(len, prompts)) + max_new_tokens
    cached = 2 * config.num_hidden_layers * heads * size * policy.dtype.itemsize * length
    logits = 3 * 4 * config.vocab_size
    left = device_memory(policy.device) - held(policy)["weights"]
    fitting = int(_SHARE_OF_CACHE * left) // (cached + logits)
    return 1 << min(max(fitting, 1), MAX_AT_ONCE).bit_length() - 1
