"""The list of planted bugs fits the present source and tests; `make faults` plants them."""

from faults.planted import is_of_the_catalogue, planted, without_a_place, wrong_with

BUGS = planted()


def test_every_bug_can_be_planted_and_names_a_test() -> None:
    wrong = [f"{bug.id}: {why}" for bug in BUGS if (why := wrong_with(bug))]
    assert not wrong, "\n".join(wrong)


def test_the_catalogue_is_whole_and_forty_more() -> None:
    named = {bug.id[:3] for bug in BUGS if is_of_the_catalogue(bug.id)} | without_a_place().keys()
    assert named == {f"M{number:02}" for number in range(1, 37)}
    assert len({bug.id for bug in BUGS}) == len(BUGS)
    assert sum(not is_of_the_catalogue(bug.id) for bug in BUGS) >= 40
    assert all(reason.endswith(".") for reason in without_a_place().values())
