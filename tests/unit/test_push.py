"""Sending a folder to the Hub: a fake one over real HTTP hears what is sent, and nothing else."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from likelier.base.errors import ConfigError, OutputError
from likelier.export.push import must_be_able_to_push, push


class FakeHub:
    """Answers as the Hub does to making a repository and to a commit of small files."""

    def __init__(self, refuses: int | None = None):
        self.heard: list[tuple[str, str, bytes]] = []
        self.refuses = refuses
        self.address = ""

    def reply(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.heard.append((method, path, body))
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if self.refuses:
            return self.refuses, {"error": "you may not write there"}
        if path == "/api/repos/create":
            return 200, {"url": f"{self.address}/me/tuned", "name": "me/tuned"}
        if "/preupload/" in path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": files}
        if "/commit/" in path:
            return 200, {"commitUrl": f"{self.address}/me/tuned/commit/1", "commitOid": "1" * 40,
                         "pullRequestUrl": None}  # fmt: skip
        return 200, {"sha": "1" * 40, "id": "me/tuned", "siblings": [], "private": True, "tags": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, found = fake.reply(method, self.path.partition("?")[0], body)
            sent = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    fake.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", fake.address)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\n# 모델\n")
    (tmp_path / "MANIFEST.json").write_text("{}")
    return tmp_path


def test_every_file_but_the_manifest_is_named_and_sent(
    hub: FakeHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    must_be_able_to_push("me/tuned")
    push(folder, "me/tuned")
    made = next(json.loads(body) for _, path, body in hub.heard if path == "/api/repos/create")
    assert made["name"] == "tuned" and made["visibility"] == "private"
    commit = next(body for _, path, body in hub.heard if "/commit/" in path)
    rows = [json.loads(line) for line in commit.decode().splitlines()]
    sent = {row["value"]["path"] for row in rows if row["key"] == "file"}
    assert sent == {"config.json", "README.md"}
    said = capsys.readouterr().err
    assert "sending 2 files" in said and "config.json  2 bytes" in said and "MANIFEST" not in said


def test_a_repository_is_public_only_when_said(hub: FakeHub, folder: Path) -> None:
    push(folder, "me/tuned", public=True)
    made = next(json.loads(body) for _, path, body in hub.heard if path == "/api/repos/create")
    assert made["visibility"] == "public"


def test_a_refusal_is_one_line(hub: FakeHub, folder: Path) -> None:
    hub.refuses = 403
    with pytest.raises(OutputError, match=r"--push me/tuned: the Hub refuses: .*403"):
        push(folder, "me/tuned")


@pytest.mark.parametrize("name", ["tuned", "me/tuned/x", "me/--", ""])
def test_a_name_that_no_repository_has(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a repository"):
        must_be_able_to_push(name)


def test_nobody_is_logged_in(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(OutputError, match=r"--push me/tuned: the Hub refuses.*\n.*hf auth login"):
        must_be_able_to_push("me/tuned")
    assert not hub.heard
