"""A model that says one sentence, whatever it is asked, once or again and again."""

from itertools import pairwise
from pathlib import Path

import torch
from tests.support.tiny import tiny_tokenizer
from transformers import Exaone4Config, Exaone4ForCausalLM

MOST_TOKENS = 64  # of a sentence, each another one: a token is known by a number of its own


def save_talker(folder: Path, sentence: str, endless: bool = False) -> Path:
    """A model folder. The next token follows from the last one alone: its layers add nothing, its
    head reads the number of the last token.
    """
    tokenizer = tiny_tokenizer()
    ids = tokenizer(sentence)["input_ids"]
    begin = tokenizer("\n")["input_ids"][-1]  # the last of a prompt, by the template
    assert len({begin, *ids}) == len(ids) + 1 <= MOST_TOKENS, "a token stands twice"
    config = Exaone4Config(
        vocab_size=len(tokenizer),
        hidden_size=MOST_TOKENS,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=None,
        sliding_window_pattern=None,
        layer_types=["full_attention"],
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Exaone4ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_" in name or "embed" in name or "lm_head" in name:
                parameter.zero_()
        said = [begin, *ids, ids[0] if endless else tokenizer.eos_token_id]
        for number, (token, following) in enumerate(pairwise(said)):
            model.get_input_embeddings().weight[token, number] = 1.0
            model.lm_head.weight[following, number] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
