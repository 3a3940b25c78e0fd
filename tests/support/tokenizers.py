"""Tokenizers of every kind that matters, trained on the spot, and chat templates for them."""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다.",
    "파이썬은 뱀이지~ 질문: 한국의 수도는 어디인가요?\n답: 서울입니다.",
    "user assistant system\n\nThe answer is short. The question is long; ask again!",
    "  spaces  and\ttabs\n\n\nand lines",
] * 20

CONTROL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[|system|]",
    "[|user|]",
    "[|assistant|]",
    "[|endofturn|]",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EXAONE4 = (
    "{% for m in messages %}[|{{ m.role }}|]\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.strip() }}[|endofturn|]\n{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]\n<think>\n"
    "{% if not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
EOS_ENDED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Forgets the thinking of all turns but the last, as thinking models' templates do
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache
def _byte_level(add_prefix_space: bool, control: tuple[str, ...] = tuple(CONTROL)) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(control),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.add_tokens([AddedToken("</think>", normalized=False)])
    return backend.to_str()


def with_tokens(control: Iterable[str], words: Iterable[str], **specials: str | None) -> Any:
    """Byte-level BPE with control tokens of one's own, and words that are single tokens."""
    backend = Tokenizer.from_str(_byte_level(False, ()))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    return _dressed(backend, None, **specials)


def byte_level(
    template: str | None = None,
    eos: str | None = "<|endoftext|>",
    bos: str | None = None,
    add_prefix_space: bool = False,
) -> Any:
    """Byte-level BPE, as Qwen, Llama 3 and EXAONE have it."""
    backend = Tokenizer.from_str(_byte_level(add_prefix_space))
    return _dressed(backend, template, eos_token=eos, bos_token=bos)


def bos_and_eos(template: str | None = None) -> Any:
    """Byte-level BPE whose post-processor puts BOS before and EOS behind each text."""
    backend = Tokenizer.from_str(_byte_level(False))
    bos, eos = "<|begin_of_text|>", "<|endoftext|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos)],
    )
    return _dressed(backend, template, eos_token=eos, bos_token=bos)


@lru_cache
def _metaspace(kind: str) -> str:
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.train_from_iterator(TEXT, trainer)
    if kind == "legacy":  # the same, written as normalizers: one dummy space per stretch of text
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif kind == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    return backend.to_str() if kind == "unigram" else _with_bytes(backend.to_str())


def _with_bytes(description: str) -> str:
    """Unknown characters as bytes: 256 more entries of the vocabulary that are no specials."""
    edited = json.loads(description)
    vocabulary = edited["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    edited["model"]["byte_fallback"] = True
    return json.dumps(edited)


def metaspace(kind: str = "always", template: str | None = None) -> Any:
    """SentencePiece style: ``always``, ``first``, ``legacy`` (normalizers) or ``unigram``.

    The decoder keeps the first space, so that decoding shows exactly what was encoded.
    """
    backend = Tokenizer.from_str(_metaspace(kind))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _dressed(backend, template, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def _dressed(backend: Tokenizer, template: str | None, **specials: str | None) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **specials
    )
    tokenizer.chat_template = template
    return tokenizer
