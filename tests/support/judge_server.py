"""An endpoint of OpenAI's protocol over real HTTP that judges answers, with planted faults.

Threads of a server in this process would be forked with it where a command forks its child, so
whole commands are judged by a server in a process of its own.
"""

import json
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Rule = Callable[[str, str], str]  # first and second answer to "first", "second" or "tie"
_PARTS = re.compile(
    r"----- (\w{16}) request -----\n(.*)\n----- \1 first answer -----\n(.*)\n"
    r"----- \1 second answer -----\n(.*)\n----- \1 end -----",
    re.DOTALL,
)
FAULTS = ("rate limit", "busy", "broken body", "closed", "not JSON", "no verdict", "slow")


def longer(first: str, second: str) -> str:
    """The longer answer is better."""
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


class JudgeServer:
    """What it answers: ``rule``, after each of its ``faults`` with that chance."""

    def __init__(self, rule: Rule = longer, faults: dict[str, float] | None = None, seed: int = 0):
        self.rule, self.faults = rule, faults or {}
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.seen: Counter[str] = Counter()  # requests, faults, and what was asked
        self.verdicts: Counter[tuple[str, str, str]] = Counter()  # those that were sent whole
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.not_before = 0.0
        self.too_early = 0  # requests that did not wait as they were asked to
        self.slow = 0.0  # seconds, of the fault
        self.delay = 0.0  # seconds, of every reply
        self.refuses: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda body: None

    def fault(self) -> str | None:
        with self.lock:
            self.seen["requests"] += 1
            self.too_early += time.monotonic() < self.not_before
            at = self.random.random()
            for name, chance in self.faults.items():
                if (at := at - chance) < 0:
                    self.seen[name] += 1
                    return name
        return None


@contextmanager
def judging(judge: JudgeServer) -> Iterator[str]:
    """The address of an endpoint, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/state":
                with judge.lock:
                    sent = list(judge.verdicts.items())
                    self._send(200, {"verdicts": sent, "requests": len(judge.bodies)})
            else:
                self._send(200, {"object": "list", "data": [{"id": "tiny-judge"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                judge.headers.append(dict(self.headers))
                judge.bodies.append(body)
            if judge.delay:
                time.sleep(judge.delay)
            if refusal := judge.refuses(body):
                self._send(refusal[0], {"error": {"message": refusal[1]}})
                return
            asked = _PARTS.search(body["messages"][1]["content"])
            assert asked
            fault = judge.fault()
            if fault == "rate limit":
                with judge.lock:
                    judge.not_before = max(judge.not_before, time.monotonic() + 0.04)
                self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"})
            elif fault == "busy":
                self._send(503, {"error": {"message": "busy"}})
            elif fault == "broken body":
                whole = json.dumps(_reply('{"better": "first"}')).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
            elif fault == "closed":
                self.close_connection = True
            elif fault == "not JSON":
                self._raw(200, b"<html>gateway</html>")
            elif fault == "no verdict":
                self._send(200, _reply("Both answers have their merits."))
            else:
                if fault == "slow":
                    time.sleep(judge.slow)
                question = asked[2], asked[3], asked[4]
                said = judge.rule(*question[1:])
                self._send(200, _reply(json.dumps({"better": said})))
                with judge.lock:
                    judge.verdicts[question] += 1

        def _send(self, status: int, found: Any, more: dict[str, str] | None = None) -> None:
            self._raw(status, json.dumps(found).encode(), more)

        def _raw(self, status: int, sent: bytes, more: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(sent)), **(more or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)
            except OSError:
                self.close_connection = True  # who asked has gone

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _reply(text: str) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


class Remote:
    """A server in another process, and what it has answered so far."""

    def __init__(self, url: str):
        self.url = url

    def state(self) -> tuple[Counter[tuple[str, ...]], int]:
        """The verdicts that were sent whole, and the number of requests."""
        with urllib.request.urlopen(self.url.replace("/v1", "/state")) as answer:
            found = json.loads(answer.read())
        return Counter({tuple(asked): count for asked, count in found["verdicts"]}), found[
            "requests"
        ]


RULES: dict[str, Rule] = {"longer": longer, "first": lambda first, second: "first"}


@contextmanager
def judging_apart(rule: str = "longer", delay: float = 0.0) -> Iterator[Remote]:
    """A server in a process of its own, until the block ends."""
    command = [sys.executable, "-m", "tests.support.judge_server", rule, str(delay)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield Remote(process.stdout.readline().strip())
        finally:
            process.kill()


if __name__ == "__main__":
    served = JudgeServer(RULES[sys.argv[1]])
    served.delay = float(sys.argv[2])
    with judging(served) as address:
        print(address, flush=True)
        threading.Event().wait()
