"""Servers of models over HTTP, each by what it offers: log-probs of a prompt, or greedy answers.

- vLLM: ``prompt_logprobs`` of ``/v1/completions``; its ``/tokenize`` renders chats.
- SGLang: ``return_logprob`` of ``/generate``.
- llama.cpp: no log-probs of a prompt, but those of all tokens at one position a request. The token
  that follows is forced, so that no special token is drawn and ends the answer before it is scored.
- any other that speaks OpenAI's protocol: greedy answers to chats.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import httpx2 as httpx
import numpy as np

from likelier.base.errors import DataError, InputMissing
from likelier.batching.batch import Scored
from likelier.export.artefact import Answers, Artefact, Prompt
from likelier.generation.sample import Sample

MOST_POSITIONS = 512  # that are asked for one by one
_SECONDS = 120.0  # of one request
_FORCED = 1000.0  # more than logits differ by
_OWNERS = {"vllm": "a vLLM server", "sglang": "an SGLang server", "llamacpp": "a llama.cpp server"}


@contextmanager
def open_server(url: str, vocabulary: int, plain_token: int) -> Iterator[Artefact]:
    """A server at ``http://host:port``. ``plain_token`` is an id of ordinary text.

    Raises InputMissing where nobody answers there, DataError for answers that make no sense.
    """
    base = url.rstrip("/").removesuffix("/v1")
    with httpx.Client(base_url=base, timeout=_SECONDS) as client:
        models = _call(client, "GET", "/v1/models").get("data")
        if not (isinstance(models, list) and models and isinstance(models[0], dict)):
            raise DataError("lists no model", where=f"{url}/v1/models")
        owner, name = models[0].get("owned_by"), str(models[0].get("id"))
        if owner == "vllm":
            yield _vllm(client, name)
        elif owner == "sglang":
            yield _sglang(client, name)
        elif owner == "llamacpp":
            yield _llama_cpp(client, vocabulary, plain_token)
        else:
            yield Artefact("a server that gives answers only", answers=_answering(client, name))


def _call(client: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """The JSON object that a server answers with."""
    where = f"{client.base_url}".rstrip("/") + path
    try:
        response = client.request(method, path, json=body)
        found = response.json() if response.is_success else None
    except httpx.HTTPError as error:
        what = f"no answer: {type(error).__name__}: {error}".removesuffix(": ")
        hint = "start the server, and give its address such as http://127.0.0.1:8000"
        raise InputMissing(what, where=where, hint=hint) from error
    except ValueError as error:
        raise DataError("answers with something else than JSON", where=where) from error
    if not isinstance(found, dict):
        said = response.text.strip().partition("\n")[0][:200]
        raise DataError(f"refuses with {response.status_code}: {said}", where=where)
    return found


@contextmanager
def _as_expected(what: str) -> Iterator[None]:
    """Turn an answer of another form into one line."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"the server's {what} have another form ({said})") from error


def _scored_of(sequence: Scored, logps: Sequence[Any]) -> np.ndarray:
    """Those of the scored tokens, of one log-prob a token."""
    if len(logps) < len(sequence.tokens):
        raise ValueError(f"{len(logps)} log-probs of {len(sequence.tokens)} tokens")
    pairs = zip(logps, sequence.scored, strict=False)
    return np.array([float(logp) for logp, wanted in pairs if wanted], dtype=np.float64)


def _each(answer: Callable[[Prompt | None, tuple[int, ...], int], Sample]) -> Answers:
    return lambda prompts, ids, most: list(map(answer, prompts, ids, repeat(most)))


# ---- vLLM --------------------------------------------------------------------------------------


def _vllm(client: httpx.Client, name: str) -> Artefact:
    def logps(sequences: Sequence[Scored]) -> list[np.ndarray]:
        found = []
        for one in sequences:
            body = {"model": name, "prompt": list(one.tokens), "max_tokens": 1, "temperature": 0,
                    "prompt_logprobs": 0}  # fmt: skip
            choice = _call(client, "POST", "/v1/completions", body)
            with _as_expected("log-probs"):
                rows = choice["choices"][0]["prompt_logprobs"]
                values = [
                    None if row is None else row[str(token)]["logprob"]
                    for row, token in zip(rows, one.tokens, strict=False)
                ]
                found.append(_scored_of(one, values))
        return found

    def ids_of(prompt: Prompt) -> tuple[int, ...]:
        body = {"model": name, "add_special_tokens": False}
        rendered = {"prompt": prompt} if isinstance(prompt, str) else {
            "messages": list(prompt), "add_generation_prompt": True
        }  # fmt: skip
        answer = _call(client, "POST", "/tokenize", body | rendered)
        with _as_expected("token ids"):
            return tuple(map(int, answer["tokens"]))

    def prompt_ids(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        return [ids_of(prompt) for prompt in prompts]

    def ends_at(token: int) -> bool:
        body = {"model": name, "prompt": [token], "max_tokens": 2, "temperature": 0,
                "logit_bias": {str(token): 100}}  # fmt: skip
        answer = _call(client, "POST", "/v1/completions", body)
        with _as_expected("answers"):
            return bool(answer["choices"][0]["finish_reason"] == "stop")

    return Artefact(_OWNERS["vllm"], logps, prompt_ids, ends_at, _continuing(client, name))


# ---- SGLang ------------------------------------------------------------------------------------


def _sglang(client: httpx.Client, name: str) -> Artefact:
    def logps(sequences: Sequence[Scored]) -> list[np.ndarray]:
        found = []
        for one in sequences:
            body = {"input_ids": list(one.tokens), "return_logprob": True, "logprob_start_len": 0,
                    "sampling_params": {"max_new_tokens": 1, "temperature": 0}}  # fmt: skip
            answer = _call(client, "POST", "/generate", body)
            with _as_expected("log-probs"):
                rows = answer["meta_info"]["input_token_logprobs"]
                other = [row[1] for row in rows] != list(one.tokens)
                if other:
                    raise ValueError("of other tokens than asked")
                found.append(_scored_of(one, [row[0] for row in rows]))
        return found

    return Artefact(_OWNERS["sglang"], logps, answers=_continuing(client, name))


# ---- llama.cpp ---------------------------------------------------------------------------------


def _llama_cpp(client: httpx.Client, vocabulary: int, plain_token: int) -> Artefact:
    def forced(ids: Sequence[int], token: int, most: int, **more: Any) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": most, "logit_bias": [[token, _FORCED]],
                "temperature": 1.0, "samplers": [], "cache_prompt": True, **more}  # fmt: skip
        return _call(client, "POST", "/completion", body)

    def logps(sequences: Sequence[Scored]) -> list[np.ndarray]:
        found = []
        for one in sequences:
            values = []
            for place in (at for at, wanted in enumerate(one.scored) if wanted):
                answer = forced(one.tokens[:place], plain_token, 1, n_probs=vocabulary)
                with _as_expected("log-probs"):
                    rows = answer["completion_probabilities"][0]["top_logprobs"]
                    values.append(next(r["logprob"] for r in rows if r["id"] == one.tokens[place]))
            found.append(np.array(values, dtype=np.float64))
        return found

    def ids_of(prompt: Prompt) -> tuple[int, ...]:
        text = prompt
        if not isinstance(prompt, str):
            body = {"messages": list(prompt), "add_generation_prompt": True}
            rendered = _call(client, "POST", "/apply-template", body)
            with _as_expected("rendered chats"):
                text = rendered["prompt"]
        # A chat template writes its own beginning; text gets the one that the tokenizer adds.
        asked = {"content": text, "add_special": isinstance(prompt, str), "parse_special": True}
        answer = _call(client, "POST", "/tokenize", asked)
        with _as_expected("token ids"):
            return tuple(map(int, answer["tokens"]))

    def prompt_ids(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        return [ids_of(prompt) for prompt in prompts]

    def ends_at(token: int) -> bool:
        return bool(forced([plain_token], token, 2).get("stop_type") == "eos")

    def answer(prompt: Prompt | None, ids: tuple[int, ...], most: int) -> Sample:
        body = {"prompt": list(ids), "n_predict": most, "temperature": 0, "top_k": 1,
                "return_tokens": True, "samplers": ["top_k"]}  # fmt: skip
        said = _call(client, "POST", "/completion", body)
        with _as_expected("answers"):
            stopped = said["stop_type"] != "limit"
            return Sample(said["content"], stopped, tuple(map(int, said["tokens"])))

    return Artefact(_OWNERS["llamacpp"], logps, prompt_ids, ends_at, _each(answer), MOST_POSITIONS)


# ---- OpenAI's protocol -------------------------------------------------------------------------


def _continuing(client: httpx.Client, name: str) -> Answers:
    """Greedy answers to token ids."""

    def answer(prompt: Prompt | None, ids: tuple[int, ...], most: int) -> Sample:
        body = {"model": name, "prompt": list(ids), "max_tokens": most, "temperature": 0}
        return _first_choice(_call(client, "POST", "/v1/completions", body), "text")

    return _each(answer)


def _answering(client: httpx.Client, name: str) -> Answers:
    """Greedy answers to chats, and to texts where the prompt is one."""

    def answer(prompt: Prompt | None, ids: tuple[int, ...], most: int) -> Sample:
        settings = {"model": name, "max_tokens": most, "temperature": 0}
        if isinstance(prompt, str):
            body = {**settings, "prompt": prompt}
            return _first_choice(_call(client, "POST", "/v1/completions", body), "text")
        if prompt is None:
            raise DataError("the messages of the prompts are not known", where="the run's data")
        body = {**settings, "messages": list(prompt)}
        return _first_choice(_call(client, "POST", "/v1/chat/completions", body), "message")

    return _each(answer)


def _first_choice(answer: dict[str, Any], key: str) -> Sample:
    with _as_expected("answers"):
        choice = answer["choices"][0]
        said = choice[key]["content"] if key == "message" else choice[key]
        if not isinstance(said, str):
            raise TypeError("no text")
        return Sample(said, choice["finish_reason"] == "stop")
