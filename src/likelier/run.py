"""START HERE: the whole road from preferences to a better model, in `train`."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.base.errors import LikelierError
from likelier.base.files import read_lines
from likelier.base.terminal import bar, say
from likelier.checks.inspector import Inspector
from likelier.config import Config, config_from, learning_rate, live
from likelier.data.load import Dataset, load, needs_of
from likelier.data.order import Order, make_order
from likelier.data.records import TokenPair
from likelier.evaluation.heldout import HeldOut
from likelier.evaluation.metrics import metrics
from likelier.export.save import save_policy
from likelier.losses.registry import BoundLoss, bind
from likelier.model.heap import freed_memory_kept
from likelier.model.score import Ready, make_ready
from likelier.model.scorer import Scorer
from likelier.reference.build import reference_column
from likelier.reference.column import NoReference, Reference
from likelier.start import adapt, encoder_of, handed_over, open_reference, open_start
from likelier.training.determinism import deterministic
from likelier.training.fitting import PassSize, gradients_that_fit
from likelier.training.folder import RunFolder, open_folder
from likelier.training.gate import pass_gate
from likelier.training.ledger import Ledger
from likelier.training.moving import MovingReference
from likelier.training.optimizer import MasterAdamW, schedule
from likelier.training.passes import PairPass, cut_passes
from likelier.training.stopping import StopRequest, listening

OnStep = Callable[[dict[str, float]], None]


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
    on_step: OnStep | None = None,
) -> Run:
    """Train a policy by Direct Preference Optimization, from a config to a run folder.

    Objects replace the matching keys of the config: ``model`` with ``tokenizer``, rows of
    ``train`` and ``eval``, a ``loss(values) -> (P,)``. A model handed over is trained in place.
    ``on_step(row)`` hears every row of the log. Run again, it goes on where it stopped, or says
    that it is finished.

    Raises the errors of `likelier.base.errors`; nothing is written before the data is known to be
    good.
    """
    config = config_from(config, handed_over(model, tokenizer, train, eval))
    if RunFolder(config.out).finished(config):
        return _nothing_to_do(config.out)

    objective = bind(live(config)["loss"], loss)
    start = open_start(config, model, tokenizer)
    encoder = encoder_of(config, start)
    needs = needs_of(config.loss)
    data = load(config.data, encoder, needs, config.train.seed, train, eval, Inspector())
    say(data.describe())
    say(f"loss: {objective.formula}")
    other = open_reference(config, start)
    policy = adapt(config, start)
    ready = make_ready(policy)
    if ready.backend_reason:
        say(f"one row a sequence, because {ready.backend_reason}")

    with open_folder(config.out) as folder, deterministic(config.train.deterministic):
        if folder.finished(config):  # by another process, meanwhile
            return _nothing_to_do(config.out)
        budget = folder.settle(config, data, ready, objective)
        own = other is None
        fresh_adapter = policy is not start
        column: Reference = NoReference()
        if objective.needs("reference"):
            column = reference_column(
                other or ready, data.pairs, budget, folder.path,
                base_only=own and fresh_adapter, goes_on=folder.goes_on,
            )  # fmt: skip
        ready = replace(ready, compiled=config.train.compile)  # the column never is
        del other  # a second model has said all that it is needed for
        starts_equal = own and objective.needs("reference")
        gate = pass_gate(ready, data.train, column, objective, budget, starts_equal)
        order = make_order(data.train, config.train)
        folder.begin(ready, data, column, gate, order.num_steps, objective)
        adamw = MasterAdamW(policy.model.named_parameters(), config.optim)
        with listening() as stop, closing(adamw) as optimizer:
            with ready.running() as scorer, freed_memory_kept():
                _take_steps(
                    config, folder, ready, scorer, data, column, order, objective, budget,
                    optimizer, stop, on_step or (lambda row: None),
                )  # fmt: skip
            optimizer.must_be_finite()
            save_policy(policy, optimizer.masters, config.model.save_dtype, config.out)
            folder.finish(order.num_steps)
    _write_report(config.out)
    return _result(config.out)


def _take_steps(
    config: Config,
    folder: RunFolder,
    ready: Ready,
    scorer: Scorer,
    data: Dataset,
    column: Reference,
    order: Order,
    objective: BoundLoss,
    budget: int,
    optimizer: MasterAdamW,
    stop: StopRequest,
    on_step: OnStep,
) -> None:
    """Every step from the last checkpoint on: gradient, update, log, now and then more."""
    held = HeldOut.of(data.eval, column, ready, budget, objective.tokens)
    rate = schedule(config.optim, learning_rate(config), order.num_steps)
    ledger = Ledger(folder.path / "ledger", objective.beta)
    moving = moving_reference(config, optimizer)
    first = folder.go_on(optimizer, objective, moving)
    size = PassSize(budget)
    ledger.cut_back(first)

    def log(row: dict[str, float]) -> None:
        folder.log(row)
        on_step(row)

    def save(step: int) -> None:
        optimizer.must_be_finite()
        ledger.write()
        folder.save(step, optimizer, config.train.keep, objective, moving)

    def evaluate(step: int, held: HeldOut) -> None:
        if moving is not None:
            held = replace(held, passes=tuple(moving.rescored(scorer, held.passes)))
        log({"step": step, **held.evaluate(scorer, objective)})

    if held and first == 0:
        evaluate(0, held)
    with bar("train", order.num_steps, first) as show:
        for step in range(first + 1, order.num_steps + 1):
            began = time.perf_counter()
            visits = [(epoch, data.train[index]) for epoch, index in order.step(step)]
            step_pairs = [pair for _, pair in visits]
            cut = partial(_passes, step_pairs, column, ready, scorer, objective, moving)
            passes, values = gradients_that_fit(scorer, cut, size, objective, optimizer)
            norm = optimizer.step(rate(step))
            if moving is not None:
                moving.after(step)
            row = {"step": step, **metrics(values, objective.beta),
                   "grad_norm": norm, "learning_rate": rate(step)}  # fmt: skip
            ledger.add(step, visits, values)
            folder.time(step, time.perf_counter() - began, passes, step_pairs)
            last = step == order.num_steps
            if last or step % config.train.log_every == 0:
                log(row)
            if held and (last or due(step, config.train.eval_every)):
                evaluate(step, held)
            show(1, f"loss {row['loss']:.4f}  margin {row.get('rewards/margins', 0.0):.3f}")
            if stop:
                save(step)
                folder.write_record(status="stopped")
                raise stop.error(step, str(folder.path))
            if due(step, config.train.save_every):
                save(step)
    ledger.write()


def _passes(
    pairs: list[TokenPair],
    column: Reference,
    ready: Ready,
    scorer: Scorer,
    objective: BoundLoss,
    moving: MovingReference | None,
    tokens: int,
) -> list[PairPass]:
    """The pairs of a step in passes of so many tokens; a moving reference is scored now."""
    passes = cut_passes(pairs, column, ready.backend, tokens, ready.policy.device, objective.tokens)
    return passes if moving is None else moving.rescored(scorer, passes)


def moving_reference(config: Config, optimizer: MasterAdamW) -> MovingReference | None:
    """The reference of TR-DPO, where the config asks for it."""
    every, mix = config.reference.update_every, config.reference.update_mix
    return None if every is None else MovingReference(optimizer, every, mix)


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens now; None is never."""
    return every is not None and step % every == 0


def _nothing_to_do(out: Path) -> Run:
    say(f"{out} is finished: nothing to do")
    return _result(out)


def _result(out: Path) -> Run:
    return Run(out, read_lines(out / "metrics.jsonl"))


def _write_report(out: Path) -> None:
    """The report of a run that is safe on disk already: what fails here must not fail the run."""
    from likelier.report.page import write_report

    try:
        say(f"report: {write_report(out)}")
    except Exception as error:
        kind = "" if isinstance(error, LikelierError) else f"{type(error).__name__}: "
        say(f"no report: {kind}{error}")
