"""The list of planted bugs fits the present source and tests; `make faults` plants them."""

import subprocess
import sys

import pytest
from faults.planted import in_words, is_of_the_catalogue, planted, without_a_place, wrong_with

BUGS = planted()


def test_every_bug_can_be_planted_and_names_a_test() -> None:
    wrong = [f"{bug.id}: {why}" for bug in BUGS if (why := wrong_with(bug))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_a_bug_is_planted_and_caught() -> None:
    words = [sys.executable, "-m", "faults.planted", "--only", "warmup-zero"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    assert said.returncode == 0 and said.stdout.endswith("1 of 1 caught\n"), said.stderr


@pytest.mark.parametrize(
    ("code", "output", "words"),
    [
        (1, "1 failed in 2.00s", "caught"),
        (0, ".\n1 passed, 1 skipped in 2.00s\n", "survived"),
        (0, "s\n1 skipped in 0.10s\n", "the test was not run: 1 skipped in 0.10s"),
        (4, "ERROR: not found: x", "the test did not run (exit code 4): ERROR: not found: x"),
        (70, "", "the test did not run (exit code 70): it printed nothing"),
        (None, "", "ran out of time"),
    ],
)
def test_what_became_of_a_bug(code: int | None, output: str, words: str) -> None:
    assert in_words(code, output) == words


def test_the_catalogue_is_whole_and_forty_more() -> None:
    named = {bug.id[:3] for bug in BUGS if is_of_the_catalogue(bug.id)} | without_a_place().keys()
    assert named == {f"M{number:02}" for number in range(1, 37)}
    assert len({bug.id for bug in BUGS}) == len(BUGS)
    assert sum(not is_of_the_catalogue(bug.id) for bug in BUGS) >= 40
    assert all(reason.endswith(".") for reason in without_a_place().values())
