"""START HERE: the whole road from preferences to a better model, in `train`."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.base.child import in_child
from likelier.base.environment import needs_extra
from likelier.base.errors import ConfigError, LikelierError, OutputError
from likelier.base.files import read_errors, read_lines, sha256
from likelier.base.terminal import bar, say
from likelier.batching.batch import Batch
from likelier.chat.tokenizer import Encoder
from likelier.checks.inspector import PairInspector
from likelier.checks.pairs import template_finding
from likelier.checks.summary import Tally, describe_example, kind_as_data
from likelier.config import Config, config_from, learning_rate, live
from likelier.data.encode import decode
from likelier.data.load import Dataset, load
from likelier.data.records import content_hash
from likelier.evaluation.evaluator import FOLDER, Evaluator
from likelier.evaluation.metrics import metrics
from likelier.evaluation.spikes import Spikes
from likelier.export.save import save_policy
from likelier.losses.registry import BoundLoss, bind
from likelier.model.adapters import adapt, for_training
from likelier.model.limits import say_limits
from likelier.model.load import (
    initial_policy,
    must_be_on_one_device,
    parse_dtype,
    reference_policy,
)
from likelier.model.policy import Policy
from likelier.model.quantise import numbers_of
from likelier.model.running import deterministic, freed_memory_kept
from likelier.model.sharding import in_parts_of, whole
from likelier.model.team import Team, joined_team
from likelier.reference.cache import NoReference, reference_of_run
from likelier.reference.fingerprint import hash_of, model_identity
from likelier.reference.moving import MovingReference, Reference
from likelier.tracking.mirror import mirrored
from likelier.training.batches import Batcher
from likelier.training.checkpoint import prune, resume, save_checkpoint
from likelier.training.logs import seals_of
from likelier.training.memory import mode_of, without_autos
from likelier.training.optimizer import MasterAdamW, schedule
from likelier.training.order import Order, make_order
from likelier.training.pair_log import PairLog
from likelier.training.preflight import preflight
from likelier.training.run_folder import OnRow, RunFolder, as_begun, asked, open_folder, sweep_run
from likelier.training.signals import StopRequest, listening
from likelier.training.step import gradients_that_fit, located

MAX_PLACES_LOGGED = 5  # of each kind of finding in the data, in run.json
NOTED_SHARES, FEWEST_STEPS = 10, 20  # at a run while it trains, and steps of one that is looked at
MAX_TOKENS_KEPT = 400  # of each answer of a pair that is kept token by token


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and what it logged."""

    folder: Path
    metrics: list[dict[str, float]]

    @property
    def model(self) -> Path:
        """The trained model folder, or the trained adapter folder."""
        full = self.folder / "model"
        return full if full.exists() else self.folder / "adapter"

    @property
    def best(self) -> Path | None:
        """The folder of the best evaluation's model, where `train.best` asked to keep it."""
        return max((self.folder / FOLDER).glob("step-*"), default=None)

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"


def train(
    config: Config | Mapping[str, Any] | str | Path,
    model: nn.Module | None = None,
    tokenizer: Tokenizer | None = None,
    train: Iterable[Any] | None = None,
    eval: Iterable[Any] | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
    on_step: OnRow | None = None,
) -> Run:
    """Train a policy by Direct Preference Optimization, from a config to a run folder.

    Objects replace the matching keys of the config: ``model`` with ``tokenizer``, rows of
    ``train`` and ``eval``, a ``loss(values) -> (P,)``. A model handed over is trained in place.
    ``on_step(row)`` hears every row of the log. Run again, it resumes where it stopped, or says
    that it is finished.

    Raises what `likelier.base.errors` has; nothing is written before the data is known to be good.
    """
    config = as_begun(config_from(config, _handed_over(model, tokenizer, train, eval)))
    needs_extra(config.track, "track")
    with joined_team(config.parallel) as team:
        there = RunFolder(config, team=team)
        if team.agreed(lambda: there.finished() and "pair_texts.jsonl" not in there.lacks()):
            say(f"{config.out} is finished: {there.what_to_do()}")
            return _result(config.out, team)
        objective = bind(live(config)["loss"], loss, config.train.seed)
        return _trained(config, team, objective, (model, tokenizer), (train, eval), on_step)


def _trained(
    config: Config,
    team: Team,
    objective: BoundLoss,
    given: tuple[nn.Module | None, Tokenizer | None],
    rows: tuple[Iterable[Any] | None, Iterable[Any] | None],
    on_step: OnRow | None,
) -> Run:
    """The road itself, on every process of a team: the model, the data, the steps, the files."""
    mode = mode_of(config, team, given[0] is not None)
    in_parts = mode != "replicate"
    initial = initial_policy(config, _given_policy(config, *given), in_parts)
    initial = replace(initial, team=team)
    encoder = initial.encoder(config.data.template, config.data.today)
    loss, seed = config.loss, config.train.seed
    data = team.first_alone(lambda: load(config.data, encoder, loss, seed, *rows, PairInspector()))
    data = _with_template_finding(data, encoder)
    for line in (*describe_example(data.example, data.form), data.describe()):
        say(line)
    say_limits(initial.causal_lm, config.data.max_length, data.pairs)
    say(f"loss: {objective.formula}")
    reference_model = reference_policy(config, initial, in_parts)  # None: the initial policy
    policy = adapt(config, initial)
    fresh_adapter = policy is not initial  # switched off, it leaves the initial policy
    _say_what_is_slow(policy)
    inputs = _inputs(config, data, policy, objective)
    team.must_agree(**inputs, **{"parallel.mode": mode})
    with (
        open_folder(config, on_step, team) as folder,
        deterministic(config.train.deterministic),
        for_training(policy, in_parts) as exact,
    ):
        folder.must_hold(**inputs)
        if team.agreed(folder.finished):  # but for its texts, or by another process meanwhile
            say(f"{config.out} is finished: {folder.what_to_do()}")
            _keep_texts(folder, data, policy)
            return _result(config.out, team)
        settings = without_autos(config, policy, data.train, folder.settings(), mode)
        budget: int = settings["train"]["tokens_per_batch"]
        base_only = fresh_adapter and reference_model is None
        scores = reference_model or policy
        known = None
        if objective.needs("reference"):  # all weights are read for it, and they are whole now
            known = model_identity(scores.causal_lm, base_only)
        if in_parts:
            policy = in_parts_of(policy, mode)
            scores = policy if reference_model is None else in_parts_of(scores, mode)
        reference: Reference = NoReference()
        if objective.needs("reference"):
            team.at("the reference")
            with located("the reference", data.pairs):
                reference = reference_of_run(
                    scores, data.pairs, budget, folder.path,
                    base_only=base_only, resumes=folder.resumes, model=known,
                )  # fmt: skip
            with read_errors(stored := folder.path / "reference.safetensors"):
                folder.must_hold(reference=team.agreed(lambda: sha256(stored)))
        starts_equal = reference_model is None and objective.needs("reference")
        del reference_model, scores  # its log-probs are all that is needed of it
        batcher = Batcher(policy, reference, objective, budget)
        team.at("the preflight")
        figures = preflight(batcher, data.train, starts_equal)
        order = make_order(data.train, config.train)
        steps = order.num_steps
        facts = {"preflight": figures, **_facts(folder, data, batcher, mode)}
        folder.begin(settings, steps=steps, **facts)
        answer = partial(_keep_answers, folder, policy, encoder, data, fresh_adapter)
        answer("before")
        adamw = MasterAdamW(policy.model.named_parameters(), config.optim, exact, team)
        with listening(of_many=team.size > 1) as stop, closing(adamw) as optimizer:
            with policy.running(), freed_memory_kept(), mirrored(folder):
                done = _take_steps(data, order, batcher, optimizer, folder, stop)
            _keep_pairs(folder, data, batcher, encoder)
            answer("after")
            _save(policy, optimizer, folder)
            team.meet()  # what is left the first one does alone
            if team.leads:
                prune(folder.path / "checkpoints", config.train.keep, ended=True)
                folder.finish(done)
    return _result(config.out, team)


def _save(
    policy: Policy,
    optimizer: MasterAdamW,
    folder: RunFolder,
    path: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """The model as it is now into the run folder, put together where processes hold it in parts;
    see `save_policy`.
    """
    policy.team.at("saving the model")
    masters: Mapping[str, Tensor] = optimizer.masters
    if policy.in_parts:
        masters = whole(optimizer.parameters, policy)
    if folder.writes:
        save_dtype = folder.config.model.save_dtype
        save_policy(policy, masters, save_dtype, folder.path, path, facts)


def _take_steps(
    data: Dataset,
    order: Order,
    batcher: Batcher,
    optimizer: MasterAdamW,
    folder: RunFolder,
    stop: StopRequest,
) -> int:
    """Every step from the last checkpoint on: gradient, update, log, now and then more.

    Returns the number of steps taken in all.
    """
    config, policy, loss = folder.config, batcher.policy, batcher.loss
    team, checkpoints = policy.team, folder.path / "checkpoints"
    rate = schedule(config.optim, learning_rate(config), order.num_steps)
    evaluate = Evaluator(folder, batcher, data.eval, partial(_save, policy, optimizer, folder))
    moving = None
    if config.reference.update_every is not None:
        moving = MovingReference(batcher.reference, policy, optimizer.masters, config.reference)
        batcher.reference = moving  # before resuming, which puts its weights back
    pair_log = PairLog(folder.path / "pair_log", loss.beta, folder.writes)
    logs = (folder.metrics, folder.timing, pair_log, evaluate.log) if folder.writes else ()
    # What was logged after the checkpoint is logged again.
    done, lost = resume(checkpoints, folder.inputs, optimizer, batcher, logs)
    folder.resumed(done, lost)

    def save(step: int) -> None:
        manifest = {"figures": loss.state, "logs": seals_of(logs), **folder.inputs}
        keep, reference = config.train.keep, batcher.moved_reference
        team.at(f"step {step}, saving")
        save_checkpoint(checkpoints, step, optimizer, manifest, keep, reference)
        folder.write_record(step=step, spikes=spikes.as_record())

    spikes, noted = _spikes_so_far(folder), set[str]()
    evaluate.resume(done)
    coming = order.visits(done + 1, data.train)
    with bar("train", order.num_steps, done) as show:
        for step in range(done + 1, order.num_steps + 1):
            if evaluate.is_over:
                break
            began = time.perf_counter()
            visits, coming = coming, order.visits(step + 1, data.train)
            pairs, following = ([pair for _, pair in some] for some in (visits, coming))
            last = step == order.num_steps
            team.at(f"step {step}, gradients")
            with located(f"step {step}", pairs, checkpoints):
                batches, values = gradients_that_fit(batcher, pairs, optimizer, following)
                norm = optimizer.step(rate(step))
            if moving is not None:
                moving.after(step)
            took = time.perf_counter() - began
            row = {"step": step, **metrics(values, loss.beta), "grad_norm": norm}
            row["learning_rate"] = rate(step)
            pair_log.add(step, visits, values)
            if last or step % config.train.log_every == 0:
                folder.log(row)
                if spikes.hear(row) and (line := spikes.in_words(row)):
                    say(line)
            if data.eval and (last or due(step, config.train.eval_every)):
                evaluate(step)
            asked, computed = _of_all(team, stop, batches)
            folder.time(step, took, computed, pairs)
            done = step
            show(1, f"{_in_words(row)}{evaluate.words}")
            if team.leads:
                _look(folder, step, order.num_steps, noted)
            if asked or last or due(step, config.train.save_every):
                with located(f"step {step}", pairs, checkpoints):
                    optimizer.must_be_finite()
            if asked:
                stop.signal = asked
                save(step)
                _leave_stopped(folder, data, policy)
                raise stop.error(step, str(folder.path))
            if due(step, config.train.save_every):
                save(step)
    pair_log.write()
    folder.write_record(spikes=spikes.as_record(), figures=dict(loss.state))
    evaluate.say_best()
    return done


def _look(folder: RunFolder, step: int, steps: int, said: set[str]) -> None:
    """Notes on the run as it stands, after every tenth of its steps; a short run waits for its end.
    All rows are read each time.
    """
    if steps < FEWEST_STEPS or step < FEWEST_STEPS // 2 or step == steps:
        return
    if step * NOTED_SHARES // steps > (step - 1) * NOTED_SHARES // steps:
        from likelier.report.notes import say_new_notes  # with Arrow: no first step waits for it

        say_new_notes(folder.path, step, said)


def _leave_stopped(folder: RunFolder, data: Dataset, policy: Policy) -> None:
    """What a run that was asked to stop leaves beside its checkpoint."""
    folder.write_record(status="stopped")
    _keep_texts(folder, data, policy)
    policy.team.meet()  # the first says it, and is not given up meanwhile


def _spikes_so_far(folder: RunFolder) -> Spikes:
    """What heard every row of the log that is there."""
    spikes = Spikes()
    for row in read_lines(folder.path / "metrics.jsonl"):
        spikes.hear(row)
    return spikes


def _of_all(
    team: Team, stop: StopRequest, batches: Sequence[Batch]
) -> tuple[int | None, list[int]]:
    """What the processes tell each other after a step: the signal that one of them was sent to
    stop, and the tokens of all their batches. A signal that comes meanwhile waits a step.
    """
    of_all = team.gathered((stop.signal, [batch.num_tokens for batch in batches]))
    signals = [signal for signal, _ in of_all if signal is not None]
    return (signals[0] if signals else None), [n for _, computed in of_all for n in computed]


def _in_words(row: Mapping[str, float]) -> str:
    """The figures of a step, as they stand beside the bar."""
    return f"loss {row['loss']:.4f}  margin {row.get('rewards/margins', 0.0):.3f}"


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens now; None is never."""
    return every is not None and step % every == 0


def _handed_over(
    model: nn.Module | None,
    tokenizer: Tokenizer | None,
    train: Iterable[Any] | None,
    eval: Iterable[Any] | None,
) -> list[str]:
    """The config keys that Python objects replace.

    Raises ConfigError for a model without a tokenizer, or the reverse.
    """
    if (model is None) != (tokenizer is None):
        raise ConfigError(
            "model and tokenizer go together",
            where="likelier.train",
            hint="hand over both, or neither and set model.path",
        )
    objects = {"model.path": model, "data.train": train, "data.eval": eval}
    return [key for key, given in objects.items() if given is not None]


def _given_policy(
    config: Config, model: nn.Module | None, tokenizer: Tokenizer | None
) -> Policy | None:
    """The policy that was handed over, as it is: keys that say otherwise are an error."""
    if model is None or tokenizer is None:
        return None
    must_be_on_one_device(model, "model")
    policy = Policy(model.train(), tokenizer)
    if policy.has_adapter and policy.causal_lm is policy.model:
        raise ConfigError(
            "the model handed over has adapters inside, as an earlier run leaves them",
            where="model",
            hint="hand over a fresh one, or load the run's adapter folder",
        )
    for key, unset in (("revision", None), ("quantise", "none"), ("stream", "auto")):
        if getattr(config.model, key) != unset:
            raise ConfigError(
                "has no effect: the model was handed over",
                where=f"model.{key}",
                hint=f"remove model.{key}",
            )
    if parse_dtype(config.model.dtype) not in ("auto", policy.dtype):
        raise ConfigError(
            f"the model handed over computes in {policy.dtype}",
            where=f"model.dtype: {config.model.dtype}",
            hint="remove model.dtype, or hand over model.to(…)",
        )
    return policy


def _with_template_finding(data: Dataset, encoder: Encoder) -> Dataset:
    """The data, and said with its cure where the model's chat template is not used for them."""
    found = data.example and in_child(template_finding, encoder, data.example)
    if not found or found.code != "plain":
        return data
    say(f"{found.message}; set data.chat: true to use it")
    return replace(data, findings=(*data.findings, found))


def _say_what_is_slow(policy: Policy) -> None:
    if policy.backend_in_words:
        say(policy.backend_in_words)
    if policy.scorer.rule.use_model_head:
        say(f"using the model's own head, which makes all logits: {policy.scorer.rule.reason}")


def _inputs(config: Config, data: Dataset, policy: Policy, loss: BoundLoss) -> dict[str, str]:
    """The content behind a run, by one hash each; ``policy`` is as it is before training."""
    return {
        "config": hash_of(**asked(config)),
        "data": content_hash(data.pairs),
        "model": model_identity(policy.causal_lm),
        "loss": loss.name,
    }


def _facts(folder: RunFolder, data: Dataset, batcher: Batcher, mode: str) -> dict[str, Any]:
    """What the report must know of a run: it reads ``run.json`` and computes nothing of a loss."""
    policy, loss, reference = batcher.policy, batcher.loss, batcher.reference
    parameters = list(policy.model.parameters())
    return {
        "pairs": len(data.train),
        "eval_pairs": len(data.eval),
        "data": data.counts,
        "findings": _findings(data),
        "device": str(policy.device),
        "processes": {"number": policy.team.size, "mode": mode},
        "backend": policy.backend,
        "backend_reason": policy.backend_reason,
        "objective": loss.formula,
        "loss": loss.as_record(),
        "reference": {
            "identity": reference.identity,
            "column": folder.inputs.get("reference"),
            "answers": len(reference.values),
        },
        "parameters": sum(map(numbers_of, parameters)),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }


def _findings(data: Dataset) -> list[dict[str, Any]]:
    """The kinds of findings in the data, each with its first places and what to do."""
    tally = Tally()
    tally.add(data.findings)
    return [kind_as_data(kind, MAX_PLACES_LOGGED) for kind in tally.kinds()]


def _result(out: Path, team: Team) -> Run:
    """The finished run, its report written where it is not there, and nothing left beside it."""
    if team.leads:
        if not (out / "report.html").exists():
            _write_report(out)
        sweep_run(out, alone=False)
    return Run(out, read_lines(out / "metrics.jsonl"))


def _keep_answers(
    folder: RunFolder, policy: Policy, encoder: Encoder, data: Dataset, fresh_adapter: bool,
    when: str,
) -> None:  # fmt: skip
    """Answers to ``eval.samples`` prompts; generation is imported where there are any."""
    if folder.config.eval.samples:
        from likelier.generation.answers import keep_answers

        keep_answers(folder, policy, encoder, data, fresh_adapter, when)


def _keep_texts(folder: RunFolder, data: Dataset, policy: Policy) -> None:
    """What the pairs say that the report names: where it fails, the report is without it."""
    if not folder.writes:
        return
    from likelier.report.pair_texts import keep_pair_texts

    try:
        keep_pair_texts(folder.path, data.pairs, partial(decode, policy.tokenizer))
    except Exception as error:
        say(f"the report will show no texts of pairs: {_reason(error)}")


def _keep_pairs(folder: RunFolder, data: Dataset, batcher: Batcher, encoder: Encoder) -> None:
    """The pairs that the report names, as texts and token by token."""
    _keep_texts(folder, data, batcher.policy)
    _keep_tokens(folder, data, batcher, encoder)


def _keep_tokens(folder: RunFolder, data: Dataset, batcher: Batcher, encoder: Encoder) -> None:
    """Some pairs token by token, by the policy as it is now; where it fails, the report is without.

    Processes that hold the model in parts run it together. Raises OutputError where the disk
    refuses.
    """
    policy, loss = batcher.policy, batcher.loss
    if not (folder.writes or policy.in_parts):
        return
    from likelier.evaluation.pair_tokens import keep_pair_tokens, scored_pairs
    from likelier.report.pair_texts import pairs_by_token
    from likelier.report.read import PAIR_TOKENS

    try:
        find = partial(pairs_by_token, folder.path)
        named = set(policy.team.agreed(find) if policy.in_parts else find())
        pairs = [pair for pair in data.pairs if pair.source in named]
        scored = list(scored_pairs(policy, pairs, loss, batcher.reference))
        if folder.writes:
            keep_pair_tokens(folder.path / PAIR_TOKENS, scored, loss, encoder, MAX_TOKENS_KEPT)
    except OutputError:  # once the run is finished nothing could make the file again
        raise
    except Exception as error:
        say(f"the report will show no tokens of pairs: {_reason(error)}")


def _write_report(out: Path) -> None:
    """The report of a run that is safe on disk already: what fails here must not fail the run."""
    from likelier.report.notes import say_notes
    from likelier.report.page import write_report

    say_notes(out)
    try:
        say(f"report: {write_report(out)}")
    except Exception as error:
        say(f"no report: {_reason(error)}")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, LikelierError) else f"{type(error).__name__}: {error}"
