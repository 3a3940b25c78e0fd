"""`likelier report RUN --watch`: the report in a browser of this machine while the run trains.

A server on the loopback address sends one page under a path that nobody can guess. It answers
requests by its own name alone, so that a page of another site can read nothing of it through the
reader's browser, whatever name that site gives this machine.
"""

import os
import secrets
import sys
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from likelier.base.foreign import visible
from likelier.base.terminal import say
from likelier.report.page import make_report, write_report
from likelier.report.read import read_record

LOOKS = 0.5  # seconds between two looks at the files
REST = 3.0  # seconds, at least, between two pages
SHARE = 0.1  # of the time, at most, that making pages takes
LAST_PAGE = 10.0  # seconds that the browser has to ask for the page of a run that has ended
NOT_READ = {"report.html", "checkpoints", "model", "adapter", "lock"}
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Shown:
    """The page as it is now: its number, and the number of the last one that was sent."""

    page: bytes = b""
    version: int = 0
    sent: int = 0


def watch(run: Path, lang: str | None, browser: bool) -> None:
    """Show the report of a run, anew whenever its files change, until the run is finished.

    A run that is finished already is written and opened as it is. Raises what `write_report` does,
    and KeyboardInterrupt at Ctrl-C.
    """
    if read_record(run).get("status") == "finished":
        path = write_report(run, lang)
        say(f"{visible(str(run))} is finished: nothing to watch")
        print(path)
        if browser:
            _open(path.resolve().as_uri())
        return
    shown = Shown()
    with _server(shown) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            _show(run, lang, shown, server.address if browser else None, server.address)
        finally:
            server.shutdown()
    say(f"{visible(str(run))} is finished")
    print(write_report(run, lang))


def _show(run: Path, lang: str | None, shown: Shown, opened: str | None, address: str) -> None:
    """Make pages until the run is finished and its last page has been sent."""
    seen: Any = None
    due = 0.0
    while True:
        files = sorted(_files(run))
        if files != seen and time.monotonic() >= due:
            began = time.monotonic()
            status = read_record(run).get("status")  # before the page: the page then has the end
            page = make_report(run, lang, live=str(shown.version + 1))
            shown.page, shown.version = page.encode(), shown.version + 1
            seen, due = files, time.monotonic() + max(REST, _pause(time.monotonic() - began))
            if shown.version == 1:
                print(f"watching {visible(str(run))} at {address} (Ctrl-C ends)", flush=True)
                if opened:
                    _open(opened)
            if status == "finished":
                break
        time.sleep(LOOKS)
    until = time.monotonic() + LAST_PAGE
    while 0 < shown.sent < shown.version and time.monotonic() < until:
        time.sleep(LOOKS / 5)


def _pause(seconds: float) -> float:
    """How long to rest after a page that took so many seconds to make."""
    return seconds * (1 / SHARE - 1)


def _files(run: Path) -> Iterator[tuple[str, int, int]]:
    """What tells whether a page would be another: the files that it is made of."""
    for entry in run.iterdir():
        if entry.name in NOT_READ or entry.name.startswith("."):
            continue
        for file in entry.iterdir() if entry.is_dir() else [entry]:
            try:
                stat = file.stat()
            except OSError:  # gone since
                continue
            yield str(file), stat.st_mtime_ns, stat.st_size


class _Server(ThreadingHTTPServer):
    """Sends the page that is shown, and nothing else."""

    daemon_threads = True
    shown: Shown
    path: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"


def _server(shown: Shown) -> _Server:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.shown, server.path = shown, f"/{secrets.token_hex(16)}/"
    return server


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "likelier"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_page=True)

    def do_HEAD(self) -> None:
        self._answer(with_page=False)

    def _answer(self, with_page: bool) -> None:
        status = self._refusal()
        if status is not None:
            self.send_error(status)
            return
        page, version = self.server.shown.page, self.server.shown.version
        same = self.headers.get("If-None-Match") == f'"{version}"'
        self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
        for name, value in (HEADERS | {"ETag": f'"{version}"'}).items():
            self.send_header(name, value)
        if not same:
            self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if with_page:
            self.server.shown.sent = version
            if not same:
                self.wfile.write(page)

    def _refusal(self) -> HTTPStatus | None:
        """Why a request gets no page. Other sites may ask, by a name of theirs for this machine or
        from within their own pages; who knows neither port nor path is answered the same.
        """
        names = (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}")
        if self.headers.get("Host") not in names:
            return HTTPStatus.FORBIDDEN
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return HTTPStatus.FORBIDDEN
        if not secrets.compare_digest(self.path.encode(), self.server.path.encode()):
            return HTTPStatus.NOT_FOUND
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a terminal that lists requests shows nothing of the run."""


def _open(address: str) -> None:
    """Open an address in a browser with windows, where there is one: others take the terminal."""
    no_windows = sys.platform == "linux" and not any(
        os.environ.get(name)
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "BROWSER")
    )
    if no_windows or not webbrowser.open(address):
        say("no browser could be opened: open the address yourself")
