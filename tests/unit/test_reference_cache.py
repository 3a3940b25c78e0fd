"""The reference column: keys, files, the cache, and whose values they are."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.support.tiny import tiny_model, tiny_tokenizer

from likelier.base.errors import RunFailed
from likelier.base.files import cache_dir
from likelier.batching.batch import Scored
from likelier.data.records import Completion, TokenPair
from likelier.model.load import quietly
from likelier.model.policy import Policy
from likelier.model.scorer import HeadRule
from likelier.reference import cache
from likelier.reference.cache import StoredReference, completion_key, fill, load_reference
from likelier.reference.fingerprint import model_identity, reference_identity, weights_identity


def answer(*tokens: int, prompt: int = 1) -> Scored:
    return Scored(tokens, (False,) * prompt + (True,) * (len(tokens) - prompt))


ONE, TWO, THREE = answer(1, 2, 3), answer(1, 2, 4), answer(5, 6)


def test_keys_tell_answers_apart() -> None:
    others = [answer(1, 2, 3), answer(1, 3, 2), answer(1, 2, 3, prompt=2), answer(1, 2), TWO]
    assert len({completion_key(one) for one in others}) == len(others)
    assert completion_key(ONE) == completion_key(answer(1, 2, 3))
    assert len(completion_key(ONE)) == 16


def column_of(*answers: Scored, add: float = 0.0) -> StoredReference:
    return StoredReference("who", {completion_key(a): live(a) + add for a in answers})


def live(one: Scored) -> torch.Tensor:
    """Something to stand for a log-prob of each scored token."""
    tokens = [token for token, scored in zip(one.tokens, one.scored, strict=True) if scored]
    return -0.1 * torch.tensor(tokens, dtype=torch.float32)


def test_a_file_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "column.safetensors"
    column_of(ONE, TWO, THREE).save(path)
    found = load_reference(path, "who")
    assert found is not None and found.identity == "who"
    assert found.values.keys() == column_of(ONE, TWO, THREE).values.keys()
    assert torch.equal(found.values[completion_key(TWO)], torch.tensor([-0.2, -0.4]))
    assert found.completion_logp(TWO) == pytest.approx(-0.6)
    with pytest.raises(KeyError):
        found.completion_logp(answer(9, 9))
    assert found.holds([THREE, TWO, ONE, ONE])
    assert not found.holds([ONE, TWO])
    assert not found.holds([ONE, TWO, THREE, answer(9, 9)])


def test_the_sum_is_in_float64() -> None:
    """A thousand tokens of -0.1 in float32 would miss by more than 1e-5."""
    long = answer(*[1] * 1001)
    column = StoredReference("who", {completion_key(long): torch.full((1000,), -0.1)})
    assert column.completion_logp(long) == pytest.approx(-1000 * 0.10000000149, abs=1e-9)


def test_tokens_count_what_their_weights_say() -> None:
    """They apply to the reference as to the policy, or its log-prob would stay in the margin."""
    assert column_of(TWO).completion_logp(TWO, (0.5, 0.0)) == pytest.approx(-0.1)


def test_same_content_same_bytes(tmp_path: Path) -> None:
    column_of(ONE, TWO, THREE).save(tmp_path / "a")
    column_of(THREE, ONE, TWO).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_identity_is_none(tmp_path: Path) -> None:
    column_of(ONE).save(tmp_path / "a")
    assert load_reference(tmp_path / "a", "someone else") is None
    assert load_reference(tmp_path / "a") is not None


def test_every_damaged_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "column"
    column_of(ONE, TWO, THREE).save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert load_reference(path, "who") is None, place
    for length in (0, 5, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_reference(path, "who") is None, length
    assert load_reference(tmp_path / "nothing") is None


class Scorer:
    """Scores passes and remembers which; ``error`` is what a value is off by."""

    def __init__(self, error: float = 0.0):
        self.error, self.asked = error, []

    def __call__(self, passes: Sequence[Sequence[Scored]]) -> Iterator[tuple[Scored, torch.Tensor]]:
        for answers in passes:
            self.asked.append(list(answers))
            for one in answers:
                # the last bits of a value depend on what shares its pass
                yield one, live(one) + self.error + 1e-6 * len(answers)


def test_only_what_is_missing_is_scored() -> None:
    first = Scorer()
    column = fill("who", [[ONE, TWO], [THREE]], first, 1e-4)
    assert first.asked == [[ONE, TWO], [THREE]]
    second = Scorer()
    again = fill("who", [[ONE, TWO], [THREE], [answer(7, 8)]], second, 1e-4)
    assert second.asked == [[ONE, TWO, THREE], [answer(7, 8)]]  # the spot check, then the rest
    for key, logps in column.values.items():
        assert torch.equal(again.values[key], logps)
    assert fill("someone else", [[ONE]], Scorer(), 1e-4).holds([ONE])


def test_a_value_belongs_to_its_pass() -> None:
    """As if nothing had been scored before, to the bit."""
    fill("who", [[ONE, TWO], [THREE]], Scorer(), 1e-4)
    warm = fill("who", [[ONE], [TWO, THREE]], Scorer(), 1e-4)
    cold = fill("cold", [[ONE], [TWO, THREE]], Scorer(), 1e-4)
    assert warm.values.keys() == cold.values.keys()
    for key, logps in cold.values.items():
        assert torch.equal(warm.values[key], logps)


def test_a_stopped_pass_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_COMPLETIONS_PER_FILE", 2)

    def dies(passes: Sequence[Sequence[Scored]]) -> Iterator[tuple[Scored, torch.Tensor]]:
        for count, value in enumerate(Scorer()(passes)):
            if count == 3:
                raise KeyboardInterrupt
            yield value

    passes = [[ONE], [TWO], [THREE], [answer(7, 8)]]
    with pytest.raises(KeyboardInterrupt):
        fill("who", passes, dies, 1e-4)
    rest = Scorer()
    fill("who", passes, rest, 1e-4)
    assert rest.asked == [[ONE, TWO], [THREE], [answer(7, 8)]]


@pytest.mark.parametrize(
    ("error", "fails"), [(0.0, False), (5e-5, False), (2e-4, True), (float("nan"), True)]
)
def test_the_spot_check(error: float, fails: bool) -> None:
    fill("who", [[ONE, TWO, THREE]], Scorer(), 1e-4)
    if not fails:
        fill("who", [[ONE, TWO, THREE]], Scorer(error), 1e-4)
        return
    with pytest.raises(RunFailed, match="cached reference log-probs differ from a live"):
        fill("who", [[ONE, TWO, THREE]], Scorer(error), 1e-4)


def test_the_spot_check_looks_across_the_whole() -> None:
    many = [answer(1, number) for number in range(2, 102)]
    fill("who", [many], Scorer(), 1e-4)
    check = Scorer()
    fill("who", [many], check, 1e-4)
    (looked_at,) = check.asked
    assert [one.tokens[1] for one in looked_at] == [2, 14, 26, 38, 50, 62, 74, 86]


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(RunFailed, match="the reference gives a log-prob that is not finite"):
        fill("who", [[ONE]], Scorer(float("nan")), 1e-4)
    assert cache.cached_values("who") == {}


def folder_of(identity: str) -> Path:
    return cache_dir() / "reference" / identity


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_cache_that_is_no_file_costs_time_only(put: Callable[[Path], None]) -> None:
    fill("who", [[ONE, TWO]], Scorer(), 1e-4)
    (file,) = folder_of("who").iterdir()
    file.unlink()
    put(file)
    again = Scorer()
    assert fill("who", [[ONE, TWO]], again, 1e-4).holds([ONE, TWO])
    assert again.asked == [[ONE, TWO]]


def test_a_swapped_or_flipped_file_is_made_again() -> None:
    """One of another model under this model's name, or one whose bits changed."""
    fill("other", [[ONE, TWO]], Scorer(0.5), 1e-4)
    fill("who", [[ONE, TWO]], Scorer(), 1e-4)
    (theirs,), (ours,) = folder_of("other").iterdir(), folder_of("who").iterdir()
    whole = ours.read_bytes()
    for content in (theirs.read_bytes(), whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):
        ours.write_bytes(content)
        again = Scorer()
        column = fill("who", [[ONE, TWO]], again, 1e-4)
        assert again.asked == [[ONE, TWO]]
        assert torch.equal(column.values[completion_key(ONE)], live(ONE) + 2e-6)
        assert ours.read_bytes() == whole


def test_a_file_where_the_folder_of_the_cache_belongs() -> None:
    folder_of("who").parent.mkdir(parents=True)
    folder_of("who").write_text("")
    assert fill("who", [[ONE]], Scorer(), 1e-4).holds([ONE])


def test_left_overs_of_the_dead_are_swept() -> None:
    """And what another process is writing at this moment is not."""
    for name in (".a.safetensors.1.2.tmp", ".b.safetensors.1.3.tmp"):
        (folder_of("who") / name).mkdir(parents=True)
    (folder_of("who") / ".tmpA1b2C3").touch()
    held = os.open(folder_of("who") / ".b.safetensors.1.3.tmp", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    assert cache.cached_values("who") == {}
    os.close(held)
    assert [left.name for left in folder_of("who").iterdir()] == [".b.safetensors.1.3.tmp"]


def test_tensors_of_wrong_types_are_none(tmp_path: Path) -> None:
    path = tmp_path / "column"
    for lengths in (torch.tensor([0.5]), torch.tensor([2, 3]), torch.tensor([-1])):
        tensors = {"keys": torch.zeros(16, dtype=torch.uint8), "lengths": lengths,
                   "values": torch.zeros(2)}  # fmt: skip
        save_file(tensors, path, {"identity": f"who {cache._seal(tensors)}"})
        assert load_reference(path, "who") is None


# Whose values they are.


def tiny(**changes: Any) -> Any:
    model = tiny_model(tiny_tokenizer())
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def test_identity_is_content(tmp_path: Path) -> None:
    """The same for an object and for its files, whatever the path."""
    model = tiny()
    model.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    loaded = [type(model).from_pretrained(tmp_path / name) for name in "ab"]
    assert len({model_identity(one) for one in (model, *loaded)}) == 1


def test_one_bit_of_a_weight_is_another_model() -> None:
    model = tiny()
    before = model_identity(model)
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight.view(torch.int32)[0, 0] ^= 1
    assert model_identity(model) != before


@pytest.mark.parametrize(
    "changes",
    [{"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}},
     {"sliding_window": 4}, {"layer_types": ["sliding_attention", "full_attention"]},
     {"hidden_act": "gelu"}],
)  # fmt: skip
def test_another_configuration_is_another_model(changes: dict) -> None:
    assert model_identity(tiny(**changes)) != model_identity(tiny())


@pytest.mark.parametrize(
    "changes",
    [{"attention_dropout": 0.5}, {"use_cache": False}, {"transformers_version": "9"},
     {"_name_or_path": "elsewhere"}, {"architectures": ["X"]}],
)  # fmt: skip
def test_what_no_log_prob_knows_of_does_not_matter(changes: dict) -> None:
    assert model_identity(tiny(**changes)) == model_identity(tiny())


def with_adapter(model: Any, alpha: int = 8, seed: int = 0) -> Any:
    wanted = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "up_proj"])
    with quietly(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, wanted)


def test_adapters_count_unless_they_are_off() -> None:
    bare = model_identity(tiny())
    adapted, scaled = with_adapter(tiny()), with_adapter(tiny(), alpha=16)
    assert model_identity(adapted.get_base_model(), base_only=True) == bare
    assert weights_identity(adapted.get_base_model(), base_only=True) == weights_identity(tiny())
    names = {model_identity(one.get_base_model()) for one in (adapted, scaled)}
    assert len(names | {bare}) == 3  # the scale of an adapter is in no tensor


def test_settings_of_scoring_count() -> None:
    tokenizer = tiny_tokenizer()
    float32 = Policy(tiny(), tokenizer)
    half = Policy(tiny().bfloat16(), tokenizer)
    assert reference_identity(float32, False) != reference_identity(half, False)


OF_SCORING = {"dtype": torch.float64, "backend": "dense", "device": torch.device("meta")}


@pytest.mark.parametrize("setting", [*OF_SCORING, "head"])
def test_every_setting_of_scoring_counts(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(tiny(), tiny_tokenizer())
    before = reference_identity(policy, False)
    if setting == "head":
        policy.scorer.rule = HeadRule(use_model_head=True)
    else:
        monkeypatch.setattr(Policy, setting, OF_SCORING[setting])
    assert reference_identity(policy, False) != before


def test_values_of_another_torch_or_number_of_threads_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, made_by = Policy(tiny(), tiny_tokenizer()), []

    def noted(identity: str, *rest: Any) -> StoredReference:
        made_by.append(identity)
        return StoredReference(identity, {})

    monkeypatch.setattr(cache, "fill", noted)
    cache.cached_reference(policy, {ONE}, 100)
    cache.cached_reference(policy, {ONE}, 100)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        cache.cached_reference(policy, {ONE}, 100)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        cache.cached_reference(policy, {ONE}, 100)
    assert made_by[0] == made_by[1] and len(set(made_by)) == 3


def test_a_run_that_resumes_takes_what_it_kept_if_it_is_its_own_and_whole(tmp_path: Path) -> None:
    policy = Policy(tiny(), tiny_tokenizer())
    sides = [Completion((3, 4), (True, True)), Completion((5,), (True,))]
    pairs = [TokenPair((1, 2), *sides, "train[0]")]

    def reference(resumes: bool) -> StoredReference:
        return cache.reference_of_run(
            policy, pairs, 100, tmp_path, base_only=False, resumes=resumes
        )

    made, kept = reference(resumes=False), tmp_path / "reference.safetensors"
    marked = replace(made, values={key: value - 1 for key, value in made.values.items()})

    def is_as_made(found: StoredReference) -> bool:
        return all(torch.equal(found.values[key], value) for key, value in made.values.items())

    marked.save(kept)
    assert not is_as_made(reference(resumes=True))
    assert is_as_made(reference(resumes=False))  # a new run reads nothing of an older one
    replace(marked, values=dict(list(marked.values.items())[:1])).save(kept)
    assert is_as_made(reference(resumes=True))
    replace(marked, identity=made.identity[::-1]).save(kept)
    assert is_as_made(reference(resumes=True))


def test_one_metadata_entry(tmp_path: Path) -> None:
    """safetensors writes several in another order each time: no bytes to compare then."""
    column_of(ONE).save(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert list(file.metadata()) == ["identity"]
    save_file(load_file(tmp_path / "a"), tmp_path / "b")
    assert load_reference(tmp_path / "b") is None
