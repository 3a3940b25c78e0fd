"""A server of a model over real HTTP, which speaks as vLLM, SGLang or another does, and may lie."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_prompt
from likelier.export.artefact import of_policy
from likelier.generation.sample import Sample
from likelier.model.policy import Policy


class Model:
    """What a server answers with; a ``lie`` is one thing that it does otherwise."""

    def __init__(self, policy: Policy, kind: str, lie: str | None = None):
        self.policy, self.kind, self.lie = policy, kind, lie
        self.encoder: Encoder = policy.encoder()
        self.lock = threading.Lock()

    def logps(self, ids: list[int]) -> list[float | None]:
        """One a token, None for the first."""
        with torch.no_grad():
            logits_LV = self.policy.causal_lm(torch.tensor([ids])).logits[0].double()
        logp_LV = logits_LV.log_softmax(-1)
        found = [None, *(float(logp_LV[at, token]) for at, token in enumerate(ids[1:]))]
        return [None, None, *found[1:-1]] if self.lie == "shifted" else found

    def answer(self, ids: list[int], most: int) -> Sample:
        answers = of_policy(self.policy, self.encoder, "").answers
        assert answers is not None
        (found,) = answers([None], [tuple(ids)], most)
        if self.lie == "never stops":
            return Sample(found.text + " 하늘 하늘", stopped=False)
        return found

    def prompt_ids(self, body: dict[str, Any]) -> list[int]:
        messages = list(body.get("messages") or ())
        if self.lie == "own system prompt" and messages:
            messages = [{"role": "system", "content": "친절"}, *messages]
        return list(encode_prompt(self.encoder, messages or body["prompt"]))

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "tiny", "owned_by": self.kind}]}
        if path == "/tokenize":
            return {"tokens": self.prompt_ids(body)}
        if path == "/generate":
            rows = zip(self.logps(body["input_ids"]), body["input_ids"], strict=True)
            listed = [[logp, token, None] for logp, token in rows]
            return {"text": "", "meta_info": {"input_token_logprobs": listed}}
        if path == "/v1/chat/completions":
            said = self.answer(self.prompt_ids(body), body["max_tokens"])
            message = {"role": "assistant", "content": said.text}
            return {"choices": [{"message": message, "finish_reason": _reason(said)}]}
        assert path == "/v1/completions"
        if bias := body.get("logit_bias"):
            ends = int(next(iter(bias))) in self.encoder.end_ids.values()
            stops = ends and self.lie != "never stops"
            return {"choices": [{"text": "", "finish_reason": "stop" if stops else "length"}]}
        ids = body["prompt"] if isinstance(body["prompt"], list) else self.prompt_ids(body)
        said = self.answer(ids, body["max_tokens"])
        choice: dict[str, Any] = {"text": said.text, "finish_reason": _reason(said)}
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [
                None if logp is None else {str(token): {"logprob": logp, "rank": 1}}
                for logp, token in zip(self.logps(ids), ids, strict=True)
            ]
        return {"choices": [choice]}


def _reason(said: Sample) -> str:
    return "stop" if said.stopped else "length"


@contextmanager
def serving(model: Model) -> Iterator[str]:
    """The address of a server that answers by a model, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(model.reply(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with model.lock:
                self._send(model.reply(self.path, body))

        def _send(self, found: Any) -> None:
            sent = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
