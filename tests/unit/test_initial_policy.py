"""What is said of an initial policy that will be slow."""

from pathlib import Path

import pytest
import torch
from tests.support.runs import make_place

from likelier.base.environment import multiplies_bfloat16
from likelier.config import config_from
from likelier.model.load import initial_policy


@pytest.mark.parametrize("has_products", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slow_products_are_told(
    tmp_path: Path,
    dtype: torch.dtype,
    has_products: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda: has_products)
    place = make_place(tmp_path, rows=1, dtype=dtype)
    initial_policy(config_from(place.config("run"), []))
    told = "no bfloat16 products: model.dtype=float32" in capsys.readouterr().err
    assert told == (dtype == torch.bfloat16 and not has_products)


def test_the_processor_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert multiplies_bfloat16()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert multiplies_bfloat16()  # not told: nothing is claimed
