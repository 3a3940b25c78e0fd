"""Servers beside what was trained: what each kind can be asked, and servers that lie."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.exported import moved_run
from tests.support.fake_server import Model, serving

from likelier.cli import main
from likelier.commands.verify import compared, trained_by
from likelier.model.load import load
from likelier.model.policy import Policy


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_run(tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def trained(run: Path) -> Policy:
    return load(run / "adapter")


def states(url: str, run: Path) -> dict[str, str]:
    return {one.name: one.state for one in compared(url, trained_by(run), 6)}


COMPARED = {"log-probs", "order", "prompts", "end", "answers"}


@pytest.mark.parametrize(
    ("kind", "unknown"),
    [
        ("vllm", set()),
        ("sglang", {"prompts", "end"}),
        ("somebody", {"log-probs", "prompts", "end"}),
    ],
)
def test_an_honest_server_is_the_same(run: Path, trained: Policy, kind: str, unknown: set) -> None:
    with serving(Model(trained, kind)) as url:
        found = states(url, run)
    known = COMPARED - unknown - ({"order"} if "log-probs" in unknown else set())
    assert found == dict.fromkeys(known, "same") | dict.fromkeys(unknown, "unknown")


@pytest.mark.parametrize(
    ("kind", "lie", "differs"),
    [
        ("vllm", "another model", "log-probs"),
        ("sglang", "shifted", "log-probs"),
        ("vllm", "own system prompt", "prompts"),
        ("vllm", "never stops", "end"),
        ("somebody", "another model", "answers"),
        ("somebody", "never stops", "answers"),
    ],
)
def test_a_server_that_lies_is_caught(
    run: Path, trained: Policy, kind: str, lie: str, differs: str
) -> None:
    policy = load(run.parent / "base") if lie == "another model" else trained
    with serving(Model(policy, kind, lie)) as url:
        assert states(url, run)[differs] == "differs"


def other_form(path: str, body: dict[str, Any]) -> Any:
    return {"data": [{"id": "x", "owned_by": "vllm"}]} if path == "/v1/models" else {"choices": []}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (other_form, "the server's log-probs have another form (IndexError"),
        (lambda path, body: {"data": []}, "lists no model"),
        (lambda path, body: ["no", "object"], "refuses with 200"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    run: Path, trained: Policy, reply: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(trained, "vllm")
    model.reply = reply  # type: ignore[method-assign]
    with serving(model) as url:
        assert main(["verify", url, "--against", str(run)]) == 65
    assert says in capsys.readouterr().err
