"""`likelier verify`: whether an exported model, a file or a server is what a run trained."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from likelier.base.errors import ConfigError, GateMissed, InputMissing, LikelierError
from likelier.base.foreign import visible
from likelier.base.terminal import console, say
from likelier.chat.tokenizer import Encoder
from likelier.config import Config
from likelier.config.schema import IN_MEMORY
from likelier.data.encode import encode_prompt
from likelier.data.load import format_of, read_pairs
from likelier.data.load import load as load_data
from likelier.data.records import TokenPair
from likelier.export.artefact import Artefact, Prompt, of_policy
from likelier.export.gguf import serve_gguf
from likelier.export.servers import open_server
from likelier.export.verify import (
    MOST_NEW_TOKENS,
    Compared,
    Questions,
    Replies,
    ask,
    compare,
    gaps_of,
)
from likelier.generation.sides import run_config
from likelier.model.load import load, load_encoder

MOST_PAIRS = 64  # that are compared
_MARKS = {"same": "✓", "differs": "✗", "unknown": "?"}


@dataclass(frozen=True)
class Trained:
    """A finished run: its config, the folder of what it trained, and whether that is an adapter."""

    folder: Path
    config: Config

    @property
    def weights(self) -> Path:
        """``model/`` or ``adapter/``."""
        full = self.folder / "model"
        return full if full.is_dir() else self.folder / "adapter"

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter was trained."""
        return self.weights.name == "adapter"

    @property
    def dtype(self) -> str:
        """What it is compared in: half precision would hide what an export lost."""
        return "float64" if self.config.model.dtype == "float64" else "float32"


def trained_by(run: Path) -> Trained:
    """What a run trained. Raises InputMissing where there is no run, or nothing saved."""
    config = run_config(str(run))
    if config is None:
        what, hint = "there is no run here", "give the folder that `likelier train` wrote"
        raise InputMissing(what, where=str(run), hint=hint)
    return Trained(run, config)


def verify(
    artefact: str, run: Path, pairs: int = MOST_PAIRS, gate: bool = False, as_json: bool = False
) -> None:
    """Compare an artefact with what a run trained, on held-out pairs, and print what differs.

    Raises GateMissed with ``gate`` where something differs, InputMissing where there is no such
    artefact or run, or its data are gone, ConfigError for a run whose model was in memory.
    """
    found = compared(artefact, trained_by(run), pairs)
    if as_json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False))
    else:
        print_comparisons(found)
    other = [one.name for one in found if one.state == "differs"]
    if gate and other:
        what = f"not what was trained: {', '.join(other)} differ"
        raise GateMissed(what, where=artefact, hint="export it again, or in more bits")


def print_comparisons(found: Sequence[Compared]) -> None:
    """Print comparisons, a line each, and greedy answers side by side."""
    terminal = console()
    for one in found:
        terminal.print(visible(f"{_MARKS[one.state]} {one.name}: {one.says}"), soft_wrap=True)
    for row in (row for one in found for row in one.figures.get("answers", ())):
        if row["trained"] != row["here"]:
            for name in ("trained", "here"):
                line = f"    {name}: {' '.join(row[name].split())[:200]}"
                terminal.print(visible(line), soft_wrap=True, style="dim")


def compared(artefact: str, trained: Trained, most: int = MOST_PAIRS) -> list[Compared]:
    """Every comparison that the artefact allows; see `likelier.export.verify`."""
    config, quantise = trained.config, trained.config.model.quantise
    if config.model.path == IN_MEMORY or config.data.train == IN_MEMORY:
        what = "this run had its model or its data in memory, where they are gone"
        raise ConfigError(what, where=str(trained.folder), hint="train it from files")
    template, today = config.data.template, config.data.today
    encoder = load_encoder(str(trained.weights), None, template, today)
    questions = _questions(config, encoder, most)
    said = _said_by(artefact, trained, encoder, questions)
    policy = load(trained.weights, dtype=trained.dtype, frozen=True,
                  quantise=quantise if trained.is_adapter else "none")  # fmt: skip
    ours = ask(of_policy(policy, encoder, "the trained model"), questions)
    gaps = gaps_of(said, ours, policy, questions)
    del policy  # two models at once would need twice the memory
    before = load(config.model.path, revision=config.model.revision, dtype=trained.dtype,
                  frozen=True, quantise=quantise)  # fmt: skip
    only_scored = Artefact("", of_policy(before, encoder, "").logps)
    return compare(said, ours, ask(only_scored, questions), questions, gaps)


def _said_by(artefact: str, trained: Trained, encoder: Encoder, questions: Questions) -> Replies:
    with _open(artefact, trained, encoder, questions) as asked:
        say(f"asking {asked.kind}")
        return ask(asked, questions)


@contextmanager
def _open(
    artefact: str, trained: Trained, encoder: Encoder, questions: Questions
) -> Iterator[Artefact]:
    """What was named: an address, a GGUF file, or a folder with a model or an adapter."""
    address = artefact.startswith(("http://", "https://"))
    if not address and not artefact.endswith(".gguf"):
        policy = load(artefact, dtype=trained.dtype, frozen=True)
        own = policy.encoder(trained.config.data.template, trained.config.data.today)
        yield of_policy(policy, own, "an adapter" if policy.has_adapter else "a model folder")
        return
    vocabulary = encoder.vocabulary or max(encoder.tokenizer.get_vocab().values()) + 1
    plain = encode_prompt(encoder, "a")[-1]
    with ExitStack() as stack:
        if not address:
            longest = max(pair.length for pair in questions.pairs)
            artefact = stack.enter_context(serve_gguf(Path(artefact), longest + MOST_NEW_TOKENS))
        yield stack.enter_context(open_server(artefact, vocabulary, plain))


def _questions(config: Config, encoder: Encoder, most: int) -> Questions:
    """Held-out pairs of a run, or some of those that it trained on."""
    data = load_data(config.data, encoder, config.loss, config.train.seed)
    if not data.eval:
        say("no pairs were held out: pairs of the training are compared")
    pairs = list((data.eval or data.train)[:most])
    last = pairs[0].chosen.tokens[-1]
    stop = last if last in encoder.end_ids.values() else encoder.stop
    return Questions(pairs, _prompts(config, bool(data.eval), pairs), stop)


def _prompts(config: Config, held_out: bool, pairs: Sequence[TokenPair]) -> list[Prompt | None]:
    """The prompts as they were read, found again by their places in the data."""
    try:
        path = config.data.eval_path
        read = read_pairs(path if held_out and path else config.data.train, format_of(config.data))
    except LikelierError:
        return [None] * len(pairs)
    prompts = {pair.source: pair.prompt for pair in read if not pair.tools}
    return [prompts.get(pair.source) for pair in pairs]
