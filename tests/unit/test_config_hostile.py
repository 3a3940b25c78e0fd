"""Every key of the config with hostile values: a config, or one error of one clear line."""

from typing import Any

import pytest

from likelier.base.errors import ConfigError, InputMissing, LikelierError
from likelier.cli import main
from likelier.config import config_from, dump, load_config
from likelier.config.explain import _known_keys

VALUES: list[Any] = [
    10**400, -(10**400), 10**9, 10**18, 2**63, 1e308, -1e308, float("inf"), float("-inf"),
    float("nan"), -1, 0, -0.0, 1e-320, True, False, None, "", " ", "x", "\0", "a\nb", "\ud800",
    "x" * 5000, "/dev/zero", "://", "$X", "~nobody/x", "0%", "1e400%", "9" * 400 + "%", [], [1],
    ["x"], [[]], {}, {"x": 1}, {"": 1}, {"x": {"y": 1}}, {1: 2}, b"b",
]  # fmt: skip


@pytest.mark.parametrize("key", _known_keys())
def test_a_hostile_value_is_a_config_or_one_error(key: str) -> None:
    for value in VALUES:
        tree: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": "a"}, "out": "o"}
        *sections, last = key.split(".")
        below = tree
        for name in sections:
            below = below.setdefault(name, {})
            if not isinstance(below, dict):
                break
        else:
            below[last] = value
            try:
                dump(config_from(tree))
            except LikelierError as error:
                assert error.exit_code == 2 and len(str(error).splitlines()) <= 3


@pytest.mark.parametrize("path", ["x" * 5000, "a/" * 3000, "/dev/zero", "a\0b", "a\nb", "", "."])
def test_a_config_at_a_hostile_path(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((InputMissing, ConfigError)):
        load_config(path)
    assert main(["train", path]) in (2, 66)
    assert main(["plan", path + "=1"]) in (2, 66)
    assert "Traceback" not in capsys.readouterr().err
