"""A real browser to look at a page with, spoken to through a pipe: no driver, no open port."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",  # a container's root user has none
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# The browser reads commands from file descriptor 3 and writes to 4. Both are copied out of the
# way first, since either may be the number that the other is to get.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
SETTLED = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))"
PATIENCE = 60.0  # seconds for any one answer


class Tab:
    """One page of the browser: what it requested, what it complained about, what it evaluates."""

    def __init__(self, read: int, write: int):
        self._read, self._write = read, write
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.renew()

    def renew(self) -> None:
        """Close the page, if one is open, and start with an empty tab."""
        if self._session is not None:
            self.call("Page.close")
        self._session = None
        self._loaded = False
        self._requests: dict[str, str] = {}
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    @property
    def requests(self) -> list[str]:
        """The addresses asked for, without those that the page's own policy stopped."""
        return list(self._requests.values())

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer, noting what happens meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self._note(reply)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return dict(reply["result"])

    def open(self, page: Path, settled: str = SETTLED) -> None:
        """Load a page of the disk, and wait until it has loaded and settled."""
        self.visit(page.as_uri(), settled)

    def visit(self, address: str, settled: str = SETTLED) -> None:
        """Load what is at an address, and wait until it has loaded and settled."""
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._note(self._next())
        self.evaluate(settled)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page (debuggers stand above its security policy)."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            assert time.monotonic() < until, "the browser does not answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has closed its pipe"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("sessionId") != self._session:
            return
        match event.get("method"), event.get("params"):
            case "Network.requestWillBeSent", params:
                self._requests[params["requestId"]] = params["request"]["url"]
            case "Network.loadingFailed", {"blockedReason": "csp", "requestId": request}:
                self._requests.pop(request, None)
            case "Log.entryAdded", params:
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled", params:
                self.complaints.append(f"console.{params['type']}")
            case "Runtime.exceptionThrown", params:
                self.complaints.append(params["exceptionDetails"]["text"])
            case "Page.loadEventFired", _:
                self._loaded = True


@contextmanager
def browser_tab(profile: Path) -> Iterator[Tab]:
    """A tab of a fresh browser, closed afterwards. Needs CHROMIUM."""
    assert CHROMIUM is not None
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    ends = (to_browser, from_browser)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", LAUNCH, *map(str, ends)),
            *(CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
        ],
        pass_fds=ends,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in ends:
        os.close(end)
    try:
        yield Tab(read, write)
    finally:
        os.close(write)  # it ends when its commands do
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(read)
