"""Figures published for EXAONE-4.0-1.2B on one Korean question, against ours."""

import pytest
import torch

import likelier as lk
from likelier.chat.tokenizer import build_encoder
from likelier.data.encode import encode_completion

MODEL = "LGAI-EXAONE/EXAONE-4.0-1.2B"
PROMPT = "파이썬이 뭐야?"
CHOSEN = "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다."
REJECTED = "파이썬은 뱀이지~"

# Text without a template or a stop token. Published as sums of bfloat16 log-probs, so they stand
# on bfloat16's grid (half a nat between 64 and 128, a quarter below) after roundings of their own.
PROMPT_TOKENS, VOCABULARY = 6, 102_400
PUBLISHED = [(CHOSEN, 20, -85.5), (REJECTED, 12, -59.0)]
NEAR = 1.5  # nats


@pytest.fixture(scope="module")
def exaone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        return lk.load(MODEL, dtype="bfloat16", device_map="auto")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(("response", "tokens", "logprob"), PUBLISHED, ids=["chosen", "rejected"])
def test_published_figures(exaone, response, tokens, logprob):
    encoder = build_encoder(exaone.tokenizer, exaone.causal_lm.generation_config)
    prompt_ids, answer = encode_completion(encoder, PROMPT, response, stop=False)
    assert (len(prompt_ids), len(prompt_ids) + len(answer.tokens)) == (PROMPT_TOKENS, tokens)

    ids = torch.tensor([prompt_ids + answer.tokens], device=exaone.device)
    with torch.no_grad():
        assert exaone.model(ids).logits.shape == (1, tokens, VOCABULARY)
        total, each = lk.get_logprob(
            exaone.model, exaone.tokenizer, PROMPT, response, stop=False, per_token=True
        )
    assert each.shape == (tokens - PROMPT_TOKENS,)
    assert float(total) == pytest.approx(logprob, abs=NEAR)
