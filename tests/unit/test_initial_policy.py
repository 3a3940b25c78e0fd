"""What an initial policy computes in, on a processor with bfloat16 products and without."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.runs import make_place
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

from likelier.base.environment import multiplies_bfloat16
from likelier.config import config_from
from likelier.model.frozen import dtype_name
from likelier.model.load import initial_policy, load
from likelier.model.policy import Policy


@pytest.fixture
def without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    root = tmp_path_factory.mktemp("models")
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return {kind: save_tiny(root / dtype_name(kind), kind) for kind in kinds}


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("stored", "compute", "said"),
    [
        (F32, F32, ""),
        (BF16, BF16, ""),
        (F16, BF16, "computing in bfloat16: the weights are float16, which overflows"),
    ],
)
def test_auto_is_the_checkpoints_own_where_there_are_products(
    folders: dict[torch.dtype, Path],
    stored: torch.dtype,
    compute: torch.dtype,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert load(folders[stored]).causal_lm.dtype is compute
    told = capsys.readouterr().err
    assert said in told and bool(said) == bool(told)


@pytest.mark.usefixtures("without_products")
@pytest.mark.parametrize("stored", [F32, BF16, F16])
def test_auto_is_float32_where_there_are_none(
    folders: dict[torch.dtype, Path], stored: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load(folders[stored], dtype="float32")
    assert not capsys.readouterr().err
    policy = load(folders[stored])
    assert policy.causal_lm.dtype is torch.float32
    why = f"the weights are {dtype_name(stored)}, and this processor has no bfloat16 products"
    told = capsys.readouterr().err
    assert told == ("" if stored == F32 else f"computing in float32: {why}\n")
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, policy.model.get_parameter(name))


@pytest.mark.usefixtures("without_products")
def test_what_is_asked_for_is_done_and_said_to_be_slow(
    folders: dict[torch.dtype, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(folders[F32], dtype="bfloat16").causal_lm.dtype is torch.bfloat16
    assert "in bfloat16: this processor has no bfloat16 products" in capsys.readouterr().err


def test_a_configuration_that_names_no_dtype(
    folders: dict[torch.dtype, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers then looks at the weights."""
    folder = Path(shutil.copytree(folders[BF16], tmp_path / "unnamed"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert load(folder).causal_lm.dtype is torch.bfloat16
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)
    assert load(folder).causal_lm.dtype is torch.float32


@pytest.mark.usefixtures("without_products")
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_model_handed_over_stays_as_it_is(
    tmp_path: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    given = Policy(tiny_model(tokenizer, dtype), tokenizer)
    config = config_from(make_place(tmp_path, rows=1).config("run"), [])
    assert initial_policy(config, given) is given
    assert given.causal_lm.dtype is dtype
    told = "hand over model.to(torch.float32)" in capsys.readouterr().err
    assert told == (dtype == BF16)


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
