"""A report that is watched: it follows the run, ends with it, and no other site reads it."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.browser import CHROMIUM, browser_tab
from tests.support.report_runs import build_run, metrics, record, write_json

from likelier.cli import main
from likelier.commands.watch import REST, SHARE, _pause

PATIENCE = 60.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "run", steps=20, planned=60, status="running")


@contextmanager
def watching(run: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command as a process, and the address that it says."""
    command = [sys.executable, "-m", "likelier", "report", str(run), "--watch", "--no-browser"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, *options], text=True, **pipes)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/\w{32}/", said)
        assert found, (said, process.stderr and process.stderr.read())
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def get(address: str, **headers: str) -> tuple[int, dict[str, str], str]:
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(headers.pop("method", "GET"), parts.path, headers=named)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def go_on(run: Path, step: int) -> None:
    """The run has taken one step more."""
    row = next(row for row in metrics(60) if row["step"] == step and "loss" in row)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def until_newer(address: str, tag: str) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        status, headers, page = get(address, If_None_Match=tag)
        if status == 200:
            assert headers["ETag"] != tag
            return page
        assert status == 304 and page == ""
        time.sleep(0.2)
    raise AssertionError("no newer page came")


def test_the_page_follows_the_run_and_ends_with_it(run: Path) -> None:
    with watching(run, "--lang", "ko") as (process, address):
        status, headers, page = get(address)
        assert status == 200 and "스텝 20 / 60" in page and '<html lang="ko">' in page
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not (run / "report.html").exists()  # a page that asks for newer ones is no report
        go_on(run, 21)
        assert "스텝 21 / 60" in until_newer(address, headers["ETag"])
        go_on(run, 22)
        write_json(run / "run.json", record(22, 60, "finished"))
        tag = get(address)[1]["ETag"]
        assert "스텝 22 / 60" in until_newer(address, tag)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "is finished" in err
        assert out.strip().endswith("report.html")
    written = (run / "report.html").read_text("utf-8")
    assert '<html lang="ko">' in written
    assert "connect-src" not in written and 'name="version"' not in written


def test_no_other_site_reads_it(run: Path) -> None:
    with watching(run) as (_, address):
        port = urlsplit(address).port
        assert get(address)[0] == 200
        assert get(address, Host=f"localhost:{port}")[0] == 200
        for refused in (
            get(address, Host=f"attacker.example:{port}"),  # a name of theirs for this machine
            get(address, Host="127.0.0.1"),
            get(address, Sec_Fetch_Site="cross-site"),
            get(address, Sec_Fetch_Site="same-site"),
        ):
            assert refused[0] == 403 and "run" not in refused[2].split("</title>")[0]
        for path in ("/", "/report.html", "/../run.json", urlsplit(address).path + "run.json"):
            assert get(f"http://127.0.0.1:{port}{path}")[0] == 404
        assert get(address, method="POST")[0] == 501
        assert "Access-Control-Allow-Origin" not in get(address)[1]


def test_ctrl_c_ends_it_with_its_own_code(run: Path) -> None:
    with watching(run) as (process, address):
        assert get(address)[0] == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130 and "Traceback" not in err


def test_a_run_that_has_ended_is_written_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_run(tmp_path / "run", steps=2, planned=2)
    assert main(["report", str(run), "--watch", "--no-browser"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{run / 'report.html'}\n" and "nothing to watch" in err
    assert main(["report", str(run), "--no-browser"]) == 2
    assert "--no-browser" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), "--watch"]) == 66


def test_a_page_that_takes_long_is_made_seldom() -> None:
    """A tenth of the time at most, and a page of a small run every few seconds."""
    assert REST >= 2 and _pause(0.01) < REST
    for seconds in (0.5, 3.0, 20.0):
        assert seconds / (seconds + _pause(seconds)) == pytest.approx(SHARE)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium browser is installed")
def test_a_browser_shows_what_is_new_by_itself(run: Path, tmp_path: Path) -> None:
    with watching(run) as (_, address), browser_tab(tmp_path / "profile") as tab:
        tab.visit(address)
        assert "step 20 of 60" in tab.evaluate("document.querySelector('.status').textContent")
        go_on(run, 21)
        end = time.monotonic() + PATIENCE
        shown = ""
        while "step 21 of 60" not in shown and time.monotonic() < end:
            time.sleep(0.5)
            shown = tab.evaluate("document.querySelector('.status')?.textContent ?? ''")
        assert "step 21 of 60" in shown
        assert tab.complaints == []
        assert {*tab.requests} == {address}
