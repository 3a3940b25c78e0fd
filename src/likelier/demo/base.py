"""The demo's base model, made from nothing: a tokenizer and a small EXAONE 4 that learn the world.

Saved as an ordinary model folder, so that everything after it treats it as any other model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Exaone4Config,
    Exaone4ForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from likelier.base.files import (
    cache_dir,
    make_folder,
    read_manifest,
    remove_folder,
    write_folder,
)
from likelier.base.terminal import bar, say
from likelier.batching.batch import Scored, tree_batch
from likelier.config.schema import OptimConfig
from likelier.demo.world import corpus
from likelier.model.load import quietly
from likelier.model.policy import Policy
from likelier.model.running import deterministic, freed_memory_kept
from likelier.training.optimizer import MasterAdamW, schedule

PAD, END, USER, ASSISTANT = SPECIALS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ("user", "assistant") -%}
{{- raise_exception("this model knows the roles user and assistant only") -}}
{%- endif -%}
{{- "<|" + message.role + "|>" + message.content + "<|end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|assistant|>" -}}
{%- endif -%}
"""

# Particles and endings are cut off the word before them, so that a name is the same token
# whatever follows it.
ENDINGS = r"(이란|란|은|는|이|가|을|를|입니다|이에요|예요|이지|지)(?!\p{L})"


@dataclass(frozen=True)
class Recipe:
    """Everything besides the world's text that the base model depends on."""

    seed: int = 0
    rounds: int = 36  # times that the corpus asks about a topic, in each manner
    vocabulary: int = 3000
    hidden: int = 160
    inner: int = 640
    layers: int = 2
    heads: int = 8
    key_value_heads: int = 4
    # Above the usual 0.02: this architecture norms what a layer adds to the stream, but not the
    # embeddings that it adds to, so that small ones would be drowned. Saves a third of the steps.
    initial_std: float = 0.06
    examples_per_step: int = 16
    lr: float = 8e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.07
    betas: tuple[float, float] = (0.9, 0.98)
    form: int = 1  # raised when the training changes in a way that no field shows

    @property
    def optim(self) -> OptimConfig:
        """The optimizer's settings, as a run's config has them."""
        return OptimConfig(lr=self.lr, schedule=self.schedule, warmup=self.warmup, betas=self.betas)


def base_model(recipe: Recipe | None = None, parent: Path | None = None) -> Path:
    """The folder of the base model, made now unless an equal one is there.

    ``parent`` is ``$LIKELIER_CACHE/demo`` unless given. Equal means: the same recipe, the same
    text, and files unchanged since they were written.

    Raises OutputError where the folder cannot be written; nothing half-made then stands there.
    """
    recipe = recipe or Recipe()
    folder = base_folder(recipe, parent)
    made = read_manifest(folder)
    if made is not None and made.get("recipe") == json.loads(json.dumps(asdict(recipe))):
        say(f"base model: {folder}, made before")
        return folder
    make_folder(folder.parent)
    examples = corpus(recipe.rounds, recipe.seed)
    tokenizer = make_tokenizer(examples, recipe.vocabulary)
    model = train_base(tokenizer, examples, recipe)

    def write(target: Path) -> None:
        with quietly():
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)

    if folder.exists():  # damaged, or made by another process meanwhile
        remove_folder(folder)
    write_folder(folder, write, {"recipe": asdict(recipe)})
    say(f"base model: {folder}")
    return folder


def base_folder(recipe: Recipe, parent: Path | None = None) -> Path:
    """Where the base model of a recipe lies, or would: its name is a hash of recipe and text."""
    content = json.dumps([asdict(recipe), corpus(recipe.rounds, recipe.seed)])
    name = f"base-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    return (parent or cache_dir() / "demo") / name


def make_tokenizer(examples: Sequence[tuple[str, str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, learned from the text of ``examples``."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ENDINGS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that any text has tokens
        show_progress=False,
    )
    bpe.train_from_iterator(chain.from_iterable(examples), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Exaone4ForCausalLM:
    """An untrained model of EXAONE 4's architecture, every layer with global attention."""
    config = Exaone4Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.hidden // recipe.heads,  # type: ignore[call-arg]
        max_position_embeddings=512,
        initializer_range=recipe.initial_std,
        tie_word_embeddings=True,
        sliding_window=None,
        # Named, because the config divides by the window's pattern to find them.
        layer_types=["full_attention"] * recipe.layers,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Exaone4ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def train_base(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]], recipe: Recipe
) -> Exaone4ForCausalLM:
    """A new model, trained on every example once: plain cross-entropy on all tokens.

    The examples of a step are laid out and scored by the same engine that DPO uses afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = new_model(tokenizer, recipe).train()
    sequences = _sequences(tokenizer, examples)
    starts = range(0, len(sequences), recipe.examples_per_step)
    optimizer = MasterAdamW(model.named_parameters(), recipe.optim)
    rate = schedule(recipe.optim, recipe.lr, len(starts))
    policy = Policy(model, tokenizer)
    with (
        deterministic(True),
        freed_memory_kept(),
        policy.running() as scorer,
        bar("base model", len(starts)) as show,
    ):
        for step, start in enumerate(starts, start=1):
            batch = tree_batch(sequences[start : start + recipe.examples_per_step])
            logp_R = batch.completion_logps(scorer(batch))
            loss = -logp_R.sum() / batch.length_R.sum()
            loss.backward()
            optimizer.step(rate(step))
            show(1, f"loss {loss.item():.3f} nats a token")
    return model


def _sequences(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]]
) -> list[Scored]:
    """Every example as one chat, all of it scored but the first token, which nothing predicts."""
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in examples
    ]
    ids_of_chats: Any = tokenizer.apply_chat_template(chats, return_dict=False)
    return [Scored(tuple(ids), (False,) + (True,) * (len(ids) - 1)) for ids in ids_of_chats]
