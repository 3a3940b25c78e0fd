"""`likelier eval --judge` is killed midway and started again: nothing that was answered is paid
for twice.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.children import PATIENCE
from tests.support.judge_server import judging_apart
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.cli import main
from likelier.run import train

PROMPTS, AT_ONCE = 200, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        place = make_place(tmp_path_factory.mktemp("place"))
        write_rows(place.data, pair_rows(3 * PROMPTS)[::3])  # one pair of each prompt
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        patch.setattr("likelier.run._write_report", lambda out: None)
        lora = {"kind": "lora", "r": 4, "targets": ["q_proj", "v_proj"]}
        few = {"train__eval_every": None, "train__save_every": None}
        train(place.config("run", adapter=lora, optim__lr=1e-2, **few))
        yield place


def words(place: Place, url: str, verdicts: Path, *more: str) -> list[str]:
    return ["eval", str(place.folder / "run"), str(place.data), "--judge", url, "--verdicts",
            str(verdicts), "--max-new-tokens", "6", "--json", *more]  # fmt: skip


def test_a_kill_costs_nothing_twice(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "verdicts.jsonl"
    with judging_apart(delay=0.03) as server:
        command = [sys.executable, "-m", "likelier", *words(place, server.url, path)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child:
            deadline = time.monotonic() + PATIENCE
            while server.state()[0].total() < 60:
                assert child.poll() is None and time.monotonic() < deadline, child.communicate()
                time.sleep(0.01)
            child.kill()
            child.communicate()
            assert child.returncode == -signal.SIGKILL
        time.sleep(0.3)  # what the server was still working on
        kept = path.read_bytes().count(b"\n")
        sent, requests = server.state()
        assert 60 - AT_ONCE <= kept <= sent.total() < 2 * PROMPTS
        assert main(words(place, server.url, path)) == 0
        figures = json.loads(capsys.readouterr().out)["judged"]["judges"][0]
        asked = 2 * (PROMPTS - figures["equal_answers"])
        after, more = server.state()
        assert more - requests == asked - kept  # every verdict that was kept is not asked again
        # What was under way in the moment of the kill is all that was asked twice.
        assert after.total() - asked <= AT_ONCE and max(after.values()) <= 2
        assert len(after) == asked and sent.keys() <= after.keys()
        assert figures["input_tokens"] == 100 * asked and figures["no_verdict"] == 0
        assert main(words(place, server.url, path)) == 0
        assert json.loads(capsys.readouterr().out)["judged"]["judges"][0] == figures
        assert server.state()[0] == after
    assert figures["wins"] + figures["ties"] + figures["losses"] == figures["prompts"] == PROMPTS
    assert figures["order_inconsistent"] == 0 and figures["equal_answers"] < PROMPTS / 2


def test_a_judge_that_prefers_the_first_gives_ties(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judging_apart("first") as server:
        assert main(words(place, server.url, tmp_path / "v.jsonl", "--samples", "30")) == 0
    figures = json.loads(capsys.readouterr().out)["judged"]["judges"][0]
    assert figures["order_inconsistent"] == 30 - figures["equal_answers"]
    assert figures["ties"] == 30 and figures["first_preferred"] == 1.0
    assert figures["win_rate"]["mean"] == 0.5 and figures["length_controlled"] is None


def test_a_cap_ends_with_75_and_a_higher_one_continues(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.jsonl"
    more = ["--judge-price", "10,20", "--samples", "30", "--judge-cost-cap"]
    with judging_apart() as server:
        assert main(words(place, server.url, path, *more, "0.06")) == 75
        captured = capsys.readouterr()
        assert "are spent, and the next request could cost" in captured.err and not captured.out
        paid = sum(json.loads(line)["cost"] for line in path.read_text().splitlines())
        assert 0.02 < paid <= 0.06
        assert main(words(place, server.url, path, *more, "0.06")) == 75  # all runs count
        assert sum(json.loads(one)["cost"] for one in path.read_text().splitlines()) <= 0.06
        capsys.readouterr()
        assert main(words(place, server.url, path, *more, "1")) == 0
        verdicts, _ = server.state()
    figures = json.loads(capsys.readouterr().out)["judged"]["judges"][0]
    assert max(verdicts.values()) == 1
    assert figures["cost"] == pytest.approx(0.0012 * verdicts.total())


def test_two_judges_and_their_agreement(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, out = tmp_path / "rules.py", tmp_path / "out.jsonl"
    rules.write_text(
        "def longer(prompt, a, b):\n    return len(a) - len(b)\n"
        "def shorter(prompt, a, b):\n    return len(b) - len(a)\n"
    )
    common = [str(place.folder / "run"), str(place.data), "--samples", "40"]
    judges = [word for name in ("longer", "shorter") for word in ("--judge", f"{rules}:{name}")]
    told = ["eval", *common, "--max-new-tokens", "6", *judges, "--out", str(out)]
    assert main([*told, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["judged"]
    longer, shorter = found["judges"]
    assert (longer["wins"], longer["losses"]) == (shorter["losses"], shorter["wins"])
    assert longer["win_rate"]["mean"] + shorter["win_rate"]["mean"] == pytest.approx(1)
    assert found["agreement"]["share"][0] == pytest.approx(longer["ties"] / 40)
    chance = (2 * longer["wins"] * longer["losses"] + longer["ties"] ** 2) / 40**2
    kappa = (longer["ties"] / 40 - chance) / (1 - chance)
    assert found["agreement"]["kappa"][0] == pytest.approx(kappa)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    judged = [row for row in rows if "answers" in row]
    assert len(rows) == PROMPTS and len(judged) == 40
    for row in judged:
        two, ours = row["answers"], row["verdicts"]["rules.py:longer"]
        apart = len(two["tuned"]) - len(two["base"])
        if two["tuned"] == two["base"]:
            assert ours is None
        else:
            assert ours == [("tuned" if apart > 0 else "base") if apart else "tie"] * 2
    assert main(told) == 0
    printed = capsys.readouterr().out
    assert "tuned against base, by rules.py:longer, 40 prompts in both orders" in printed
    assert f"Cohen's kappa {kappa:.2f}" in printed and "cut off at --max-new-tokens" in printed


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--samples", "3"], 2, "--samples: has no effect without --judge"),
        (["--judge", "RULE", "--judge-model", "x"], 2, "no judge is an address"),
        (["--judge", "RULE", "--judge", "RULE"], 2, "names a judge twice"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-cost-cap", "1"], 2, "--judge-price IN,OUT"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-price", "1"], 2, "'1' is not IN,OUT"),
        (["--judge", "http://127.0.0.1:9/v1"], 66, "no answer: ConnectError"),
        (["--judge", "http://me:word@127.0.0.1:9/v1"], 2, "more than a place"),
        (["--judge", "nowhere.py:rule"], 66, "nowhere.py: No such file"),
        (["--judge", "RULES:none"], 2, "holds no function none"),
        (["--judge", "nowhere"], 66, "no folder of a reward model"),
        (["--judge", "RULE", "--verdicts", "RUN/v.jsonl"], 73, "which is read"),
    ],
)
def test_bad_options_are_one_line_before_any_model_is_loaded(
    place: Place, tmp_path: Path, more: list[str], code: int, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rules = tmp_path / "rules.py"
    rules.write_text("def rule(prompt, first, second):\n    return 0\n")
    names = {"RULES": str(rules), "RULE": f"{rules}:rule", "RUN": str(place.folder / "run")}
    given = [f"{rules}:none" if one == "RULES:none" else names.get(one, one) for one in more]
    given = [one.replace("RUN/", f"{names['RUN']}/") for one in given]
    assert main(["eval", names["RUN"], str(place.data), *given]) == code
    error = capsys.readouterr().err
    assert said in error and "loading" not in error and "Traceback" not in error


def test_one_model_cannot_be_judged_alone(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("def rule(prompt, first, second):\n    return 0\n")
    told = ["eval", str(place.base), str(place.data), "--judge", f"{rules}:rule"]
    assert main(told) == 2
    assert "a judge compares the answers of two" in capsys.readouterr().err
    also = ["--also", str(place.folder / "run"), "--samples", "5", "--max-new-tokens", "4"]
    assert main([*told, *also, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["judged"]
    assert (found["of"], found["against"]) == ("model", str(place.folder / "run"))
