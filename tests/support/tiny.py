"""A tiny model folder with a tokenizer and a chat template, and pairs to train it on."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Exaone4Config, Exaone4ForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = [
    "파이썬이 뭐야? 파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다.",
    "서울은 대한민국의 수도입니다. 한강이 흐릅니다.",
    "What is Seoul? Seoul is the capital of Korea. It is a large city.",
    "What is Python? Python is a programming language that is easy to learn.",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with role markers; ``<|end|>`` ends a turn and is the eos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tied: bool = True,
) -> Exaone4ForCausalLM:
    """Two layers, random; its configuration asks for dropout, which training must silence."""
    config = Exaone4Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        sliding_window=None,
        sliding_window_pattern=None,
        layer_types=["full_attention", "full_attention"],
        attention_dropout=0.1,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Exaone4ForCausalLM(config).to(dtype)


def save_tiny(
    folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, tied: bool = True
) -> Path:
    """An ordinary model folder."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, dtype, seed, tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pair_rows(count: int, seed: int = 0, chat: bool = True) -> list[dict]:
    """Rows with shared prompts, shared answers and Korean text."""
    rng = random.Random(seed)
    topics = ["파이썬", "서울", "한강", "바다", "Python", "Seoul", "tea", "rain", "달", "봄"]
    rows = []
    for index in range(count):
        topic = topics[index // 3 % len(topics)]
        number = index // (3 * len(topics))
        prompt = f"{topic} {number} 뭐야?" if number else f"{topic} 뭐야?"
        good = f"{topic} 은(는) {rng.choice(['좋은', '유명한', '오래된'])} 것입니다. {index % 7}"
        bad = f"{topic}? {rng.choice(['몰라~', 'whatever~', '글쎄~'])} {index % 5}"
        if chat:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
            )
        else:
            rows.append({"prompt": prompt, "chosen": " " + good, "rejected": " " + bad})
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A JSONL file."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path
