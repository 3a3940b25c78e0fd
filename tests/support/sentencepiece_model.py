"""A tiny Llama whose tokenizer is SentencePiece's, trained on the spot, as llama.cpp knows it."""

import io
import random
from pathlib import Path
from typing import Any

import torch
import transformers as tf

KOREAN = "나는 오늘 바다에 가서 파도를 보았다 하늘 맑고 바람 시원했다 서울 부산 제주"
ENGLISH = "the quick brown fox jumps over a lazy dog while we explain how learning works"
BOTH = f"{KOREAN} {ENGLISH}"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def save_llama(folder: Path, hidden: int = 256) -> Path:
    """A random model in float32 with its tokenizer, ``tokenizer.model`` among its files."""
    import sentencepiece

    draw = random.Random(0)
    lines = (" ".join(draw.choices(BOTH.split(), k=12)) for _ in range(2000))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=500, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, hard_vocab_limit=False, unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, minloglevel=3, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]}
    )
    tokenizer.chat_template = TEMPLATE
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    """Chats whose better answer is Korean, and the other English."""
    draw = random.Random(1)

    def turn(role: str, words: str) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(words.split(), k=6))}]

    return [
        {
            "prompt": turn("user", BOTH),
            "chosen": turn("assistant", KOREAN),
            "rejected": turn("assistant", ENGLISH),
        }
        for _ in range(count)
    ]
