"""An endpoint of OpenAI's protocol asked for one reply at a time, patiently, and within a budget.

What passes is asked again: rate limits, errors of the server, lost connections, time-outs and
replies that break off. Every request is paid for in advance with the most that it can cost.
"""

import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx2 as httpx

from likelier.base.errors import ConfigError, DataError, InputMissing, StoppedEarly

KEY_VARIABLE = "LIKELIER_JUDGE_API_KEY"  # a name whose value `base.foreign` stars everywhere
MAX_REPLY_BYTES = 4 * 2**20
LONGEST_WAIT_ASKED = 600.0  # seconds that a server may ask for; beyond, the command ends
_UNKNOWN = (401, 403)  # who asks
_AROUND = 64  # tokens of a request that are not in its texts
_RESUMES = "the same command continues; verdicts so far are kept"


class Refused(DataError):
    """The endpoint refuses this one request, such as one that is too long."""


class Patience(NamedTuple):
    """How long an endpoint is waited for, in seconds, and how often it is asked the same."""

    tries: int = 8
    first_wait: float = 1.0
    most_wait: float = 60.0
    timeout: float = 120.0  # of one reply


class Price(NamedTuple):
    """Dollars for a million tokens."""

    input: float = 0.0
    output: float = 0.0

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Dollars for so many tokens."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


class Reply(NamedTuple):
    """What was said, the tokens that the endpoint counted, and what all tries may have cost."""

    text: str
    input_tokens: int
    output_tokens: int
    cost: float


class Budget:
    """What may be spent, in dollars; None is no limit. Threads share it."""

    def __init__(self, cap: float | None = None, spent: float = 0.0):
        self.cap, self.spent = cap, spent
        self._reserved, self._changed = 0.0, threading.Condition()

    def reserve(self, most: float) -> None:
        """Set the most that a request can cost aside; where the cap allows it only once others have
        cost less than they could, wait for them. Raises StoppedEarly beyond the cap.
        """
        with self._changed:
            while self.cap is not None and self.spent + self._reserved + most > self.cap:
                if self.spent + most > self.cap or not self._reserved:
                    what = f"of ${self.cap:g} ${self.spent:.4f} are spent, and the next request "
                    hint = f"raise --judge-cost-cap: {_RESUMES}"
                    what += f"could cost ${most:.4f}"
                    raise StoppedEarly(what, where="--judge-cost-cap", hint=hint)
                self._changed.wait()
            self._reserved += most

    def settle(self, reserved: float, cost: float) -> None:
        """Put what a request did cost in the place of what it could."""
        with self._changed:
            self._reserved = max(0.0, self._reserved - reserved)
            self.spent += cost
            self._changed.notify_all()


class Endpoint:
    """An address such as ``https://host/v1``, and how it is asked.

    Args:
        key: sent as a bearer token, and nowhere else; None for none.
        most_tokens: of a reply.
    """

    def __init__(
        self, url: str, model: str | None, key: str | None, price: Price, budget: Budget,
        patience: Patience, most_tokens: int,
    ):  # fmt: skip
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self.price, self.budget, self.patience = url.rstrip("/"), price, budget, patience
        self._client = httpx.Client(timeout=patience.timeout, headers=headers)
        self.most_tokens = most_tokens
        self.stopping = threading.Event()  # set: no request is begun, no wait is finished
        self._limit_name = "max_tokens"
        self._not_before = 0.0
        self._has_answered = False
        try:
            self.model = model or self._only_model()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all connections."""
        self._client.close()

    def complete(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """The reply to a chat, at temperature 0.

        Raises Refused for this request alone, ConfigError where no request can succeed,
        InputMissing where nobody ever answered, StoppedEarly where nobody answers any more, a wait
        is too long, or the budget does not allow the request.
        """
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), "temperature": 0}
        # A token is at least one byte.
        most_input = sum(len(one["content"].encode()) for one in messages) + _AROUND
        most = self.price.of(most_input, self.most_tokens)
        lost = 0.0
        for attempt in range(1, self.patience.tries + 1):
            self._wait_until_allowed()
            self.budget.reserve(most)
            cost, asked = most, self._limit_name
            try:
                status, headers, content = self._exchange(
                    "POST", "/chat/completions", {**body, asked: self.most_tokens}
                )
                self._has_answered = True
                if status == 200:
                    found = _reply_in(content, self.price)
                    cost = most if found.cost < 0 else found.cost
                    return Reply(found.text, found.input_tokens, found.output_tokens, cost + lost)
                cost = 0.0
                reason = f"{status}: {_first_line(content)}"
                if status == 400 and b"max_completion_tokens" in content and asked == "max_tokens":
                    self._limit_name = "max_completion_tokens"  # the name for models that reason
                    continue
                self._refuse_for_good(status, reason)
                asked_wait = _retry_after(headers)
            except (httpx.HTTPError, ValueError) as error:
                # What broke off, or came too late, may have been computed, and paid for.
                cost = 0.0 if isinstance(error, httpx.ConnectError) else most
                reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                asked_wait = None
            finally:
                self.budget.settle(most, cost)
            lost += cost
            if attempt < self.patience.tries:
                self._wait(attempt, asked_wait, reason)
        what = f"no reply in {self.patience.tries} tries, the last: {reason}"
        if self._has_answered:
            raise StoppedEarly(what, where=self.url, hint=_RESUMES)
        raise InputMissing(what, where=self.url, hint="start the server, or correct its address")

    def _exchange(
        self, method: str, path: str, body: Any = None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one answer, whose length and time are bounded."""
        deadline = time.monotonic() + self.patience.timeout
        with self._client.stream(method, self.url + path, json=body) as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    raise httpx.ReadError("longer than any reply should be")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("it dribbles")
            return response.status_code, response.headers, bytes(content)

    def _refuse_for_good(self, status: int, reason: str) -> None:
        """Raise where asking again would not help."""
        if status in (408, 409, 425, 429) or status >= 500:
            return
        if status in (400, 413, 422):
            raise Refused(f"refuses with {reason}", where=self.url)
        hint = "correct the address of --judge, or --judge-model"
        if status in _UNKNOWN:
            hint = f"set the environment variable {KEY_VARIABLE}"
        raise ConfigError(f"refuses with {reason}", where=self.url, hint=hint)

    def _wait(self, attempt: int, asked: float | None, reason: str) -> None:
        """Wait before the next try: exponentially longer, by a random share, and no less than the
        server asked for, which then holds for all threads.
        """
        if asked is not None and asked > LONGEST_WAIT_ASKED:
            what = f"asks to wait {asked:.0f} seconds ({reason})"
            raise StoppedEarly(what, where=self.url, hint=_RESUMES)
        most = min(self.patience.most_wait, self.patience.first_wait * 2 ** (attempt - 1))
        wait = random.uniform(0, most)
        if asked is not None:
            self._not_before = max(self._not_before, time.monotonic() + asked)
            wait += asked
        self.stopping.wait(wait)

    def _wait_until_allowed(self) -> None:
        self.stopping.wait(max(0.0, self._not_before - time.monotonic()))
        if self.stopping.is_set():
            raise StoppedEarly("stopped", where=self.url, hint=_RESUMES)

    def _only_model(self) -> str:
        """The model that the endpoint lists, where it is one."""
        try:
            status, _, content = self._exchange("GET", "/models")
            if status in _UNKNOWN:
                self._refuse_for_good(status, f"{status}: {_first_line(content)}")
            names = [str(one["id"]) for one in json.loads(content)["data"]]
        except httpx.HTTPError as error:
            what = f"no answer: {type(error).__name__}: {error}".removesuffix(": ")
            hint = "start the server, or correct its address"
            raise InputMissing(what, where=self.url, hint=hint) from error
        except (ValueError, KeyError, TypeError, RecursionError):
            names = []
        if len(names) == 1:
            return names[0]
        what = f"lists {len(names)} models" + (f", such as {names[0]}" if names else "")
        raise ConfigError(what, where=self.url, hint="name one with --judge-model")


def _reply_in(content: bytes, price: Price) -> Reply:
    """The reply in a body; its cost is -1 where no usage is told.

    Raises ValueError where the body is none, which is how one that broke off looks.
    """
    try:
        found = json.loads(content)
        text = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("the body holds no reply") from error
    usage = found.get("usage")
    with suppress(KeyError, TypeError, ValueError):
        tokens = max(0, int(usage["prompt_tokens"])), max(0, int(usage["completion_tokens"]))
        return Reply(str(text or ""), *tokens, price.of(*tokens))
    return Reply(str(text or ""), 0, 0, -1.0)


def _first_line(content: bytes) -> str:
    return content.decode(errors="replace").strip().partition("\n")[0][:200]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, given as seconds or as a date (RFC 9110, 10.2.3)."""
    said = headers.get("retry-after", "").strip()
    with suppress(ValueError):
        return max(0.0, float(said))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None
