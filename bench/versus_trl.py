"""likelier against TRL 1.16, side by side: speed, memory, and the same loss curve.

    python bench/versus_trl.py                     all workloads, float32 and bfloat16
    python bench/versus_trl.py --search            search TRL's best settings first
    python bench/versus_trl.py --pairs-in-one-pass 8       memory with the same pairs in a pass
    python bench/versus_trl.py --smoke             a minute's try with a tiny model

Both train the same model on the same pairs in the same order with the same optimizer, as
processes that take turns step by step, so that what disturbs the machine disturbs both. The first
step is a warm-up and left out. Start-up and the reference pass are shown apart, from empty caches.
A float32 comparison is void where the loss curves differ by more than 1e-4, or hardly move.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
import workloads
from race import TRL_PYTHON, Case, Settings, Told, make_case, race

ALLOWED = 1e-4  # nats of loss, float32, over the steps of the agreement run
MOVED = 100 * ALLOWED  # a flat curve agrees with any other
BATCHES = (1, 2, 4, 8)
WEIGHTS = {  # (weights, autocast) that TRL's user has for a precision; the first is its default
    "float32": (("float32", False),),
    "bfloat16": (("float32", True), ("bfloat16", True), ("bfloat16", False)),
}


def main() -> None:
    """Search where asked, then compare every workload in every precision."""
    options = _options()
    if not TRL_PYTHON.exists():
        sys.exit("error: .venv-trl is missing\n  fix: make bench-environment")
    work = Path(tempfile.mkdtemp(prefix="versus-trl-"))
    bench = Bench(options, work)
    try:
        bench.run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", nargs="+", choices=workloads.WORKLOADS, default=list(workloads.WORKLOADS))
    add("--dtype", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    add("--shape", choices=workloads.SHAPES, help="default: gpu where there is one, else cpu")
    add("--repeats", type=int, default=5, help="timed steps of each trainer")
    add("--pairs-per-step", type=int, default=8)
    add("--whole-prompts", action="store_true", help="more pairs a step, until no prompt is cut")
    add("--agree-steps", type=int, default=20, help="steps of the loss comparison; 0 leaves it out")
    add("--agree-pairs", type=int, default=1, help="pairs of each of those steps")
    add("--search", action="store_true", help="search TRL's settings even where some are stored")
    add("--search-only", action="store_true")
    add("--search-steps", type=int, default=2, help="the first is left out, unless it is the only")
    add("--pairs-in-one-pass", type=int, help="compare memory alone, with so many pairs in a pass")
    add("--lora", action="store_true", help="adapters of rank 16 instead of full fine-tuning")
    add("--lr", type=float, help="default: 1e-5, with adapters 2e-4")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="tiny model, short texts, few steps")
    add("--name", help="of the file in bench/results; a smoke run leaves none")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.repeats = "smoke", 2
        options.lr = options.lr or 1e-3
    options.lr = options.lr or (2e-4 if options.lora else 1e-5)
    if options.shape is None:
        import torch

        options.shape = "gpu" if torch.cuda.is_available() else "cpu"
    return options


class Bench:
    """The options, a folder to work in, and the model that all cases share."""

    def __init__(self, options: argparse.Namespace, work: Path):
        self.options, self.work = options, work
        self.shape = workloads.SHAPES[options.shape]
        self.model = work / "model"
        workloads.save_model(self.model, self.shape, options.seed)
        self.adapter = save_adapter(self.model, work / "adapter") if options.lora else None
        tuning = "-lora" if options.lora else ""
        kind = "-one-pass" if options.pairs_in_one_pass else ""
        self.name = options.name or f"versus_trl-{options.shape}{tuning}{kind}"
        self.stored = record.RESULTS / f"trl_settings-{options.shape}{tuning}.json"
        if options.smoke:
            self.name, self.stored = str(work / self.name), work / self.stored.name
        self.cases = 0

    def case(
        self, workload: str, dtype: str, steps: int, pairs_per_step: int, visits: int = 1
    ) -> Case:
        """A fresh case of pairs that are each visited so many times, epoch after epoch."""
        self.cases += 1
        pairs = -(-steps * pairs_per_step // visits)
        rows = workloads.draw(
            workloads.WORKLOADS[workload], pairs, self.shape["vocab_size"],
            self.options.seed, shrink=8 if self.options.smoke else 1,
        )  # fmt: skip
        folder = self.work / f"case-{self.cases}"
        return make_case(
            folder, self.model, rows, dtype, steps, pairs_per_step, self.adapter,
            lr=self.options.lr,
        )  # fmt: skip

    def run(self) -> None:
        """All that was asked for; the file is written anew after every workload."""
        rows: list[dict[str, Any]] = []
        for dtype in self.options.dtype:
            for workload in self.options.workload:
                if self.options.pairs_in_one_pass:
                    rows.append(self.one_pass(workload, dtype))
                else:
                    settings = self.settings(workload, dtype)
                    if self.options.search_only:
                        continue
                    rows.append(self.compare(workload, dtype, settings))
                record.write(self.name, {**self.described(), "rows": rows})
        print(flush=True)
        record.show([_line(row) for row in rows])
        void = [row for row in rows if row.get("void")]
        if void:
            sys.exit(f"void: {len(void)} comparisons train differently, see the loss difference")

    def described(self) -> dict[str, Any]:
        """What stands at the head of a results file."""
        trl = TRL_PYTHON.parent.parent.glob("lib/python*/site-packages/trl-*.dist-info")
        tuning = "LoRA, r 16, all linear layers" if self.options.lora else "full"
        return {"trl": [path.name for path in trl], "shape": self.shape, "tuning": tuning}

    def compare(self, workload: str, dtype: str, settings: Settings) -> dict[str, Any]:
        """Time and memory of both in turns, and how far their losses are apart."""
        options, per_step = self.options, self.options.pairs_per_step
        if options.whole_prompts:
            of_prompt = workloads.WORKLOADS[workload].pairs
            per_step = -(-per_step // of_prompt) * of_prompt
        case = self.case(workload, dtype, 1 + options.repeats, per_step)
        told = race(case, {"likelier": None, "trl": settings}, "timed")
        row: dict[str, Any] = {
            "workload": workload,
            "dtype": dtype,
            "pairs_per_step": per_step,
            "trl_settings": str(settings),
            "tokens_unshared": case.tokens,
            "tokens_tree": told["likelier"].tree_tokens,
            **{who: _figures(one, per_step) for who, one in told.items()},
        }
        theirs, ours = told["trl"].steps[1:], told["likelier"].steps[1:]
        row["faster"] = record.spread([t / o for t, o in zip(theirs, ours, strict=True)])
        row["memory_share"] = row["likelier"]["peak_mib_of_steps"] / row["trl"]["peak_mib_of_steps"]
        row["loss_difference"], moved = _apart(told), _moved(told)
        if options.agree_steps and dtype == "float32":  # bfloat16 rounds by itself
            small = replace(settings, batch=min(settings.batch, options.agree_pairs))
            # Pairs that come again: their loss falls, so that there is a curve to agree on.
            case = self.case(workload, dtype, options.agree_steps, options.agree_pairs, visits=4)
            curves = race(case, {"likelier": None, "trl": small}, "agree")
            row["agreement"] = {
                "steps": options.agree_steps,
                "pairs_per_step": options.agree_pairs,
                "loss_difference": _apart(curves),
                "loss_range": _moved(curves),
                "losses": {who: one.losses for who, one in curves.items()},
            }
            row["loss_difference"] = max(row["loss_difference"], _apart(curves))
            moved = max(moved, _moved(curves))
        agree = row["loss_difference"] <= ALLOWED and moved >= MOVED
        row["void"] = dtype == "float32" and not agree
        record.show([_line(row)])
        return row

    def one_pass(self, workload: str, dtype: str) -> dict[str, Any]:
        """Peak memory of both where one pass holds the same pairs: a step of one pass."""
        pairs = self.options.pairs_in_one_pass
        weights, autocast = WEIGHTS[dtype][-1]
        case = self.case(workload, dtype, 2, pairs)
        case.spec["likelier"]["train"]["tokens_per_batch"] = 2**20  # else a pass is smaller
        settings = Settings(pairs, True, weights, autocast)
        told = race(case, {"likelier": None, "trl": settings}, "one-pass")
        row = {"workload": workload, "dtype": dtype, "pairs_in_one_pass": pairs,
               "trl_settings": str(settings),
               **{who: _figures(one, pairs) for who, one in told.items()}}  # fmt: skip
        row["memory_share"] = row["likelier"]["peak_mib_of_steps"] / row["trl"]["peak_mib_of_steps"]
        return row

    def settings(self, workload: str, dtype: str) -> Settings:
        """TRL's best settings: those stored for this machine, or searched now and stored."""
        known = json.loads(self.stored.read_text("utf-8")) if self.stored.exists() else {}
        mine = {name: record.machine()[name] for name in ("cpu", "instructions", "threads", "gpu")}
        here = {name: known.get("machine", {}).get(name) for name in mine} == mine
        found = known.get("best", {}) if here else {}
        tried = known.get("tried", []) if here else []
        key = f"{workload} {dtype}"
        if self.options.search or self.options.search_only or key not in found:
            rows = self.search(workload, dtype)
            best = min(rows, key=lambda row: row["seconds_per_pair"])["settings"]
            others = [row for row in tried if (row["workload"], row["dtype"]) != (workload, dtype)]
            record.write(
                str(self.stored.with_suffix("")),
                {**self.described(), "best": {**found, key: best}, "tried": others + rows},
            )
            return Settings(**best)
        return Settings(**found[key])

    def search(self, workload: str, dtype: str) -> list[dict[str, Any]]:
        """One axis after another: batch size, kind of weights, then a live reference.

        Batches grow until one is slower by a fifth than the best: it only gets worse from there.
        """
        kinds = WEIGHTS[dtype]
        rows: list[dict[str, Any]] = []

        def best() -> Settings:
            return Settings(**min(rows, key=lambda row: row["seconds_per_pair"])["settings"])

        case = self.case(workload, dtype, self.options.search_steps, self.options.pairs_per_step)
        for batch in BATCHES[-1:] if self.options.smoke else BATCHES:
            if self.options.pairs_per_step % batch == 0:
                chosen = Settings(batch, True, *kinds[0])
                rows.append(self._try(case, chosen, workload, dtype))
                fastest = min(row["seconds_per_pair"] for row in rows)
                if rows[-1]["seconds_per_pair"] > 1.2 * fastest:
                    break
        for weights, autocast in kinds[1:]:
            chosen = replace(best(), weights=weights, autocast=autocast)
            rows.append(self._try(case, chosen, workload, dtype))
        rows.append(self._try(case, replace(best(), precompute=False), workload, dtype))
        return rows

    def _try(self, case: Case, settings: Settings, workload: str, dtype: str) -> dict[str, Any]:
        name = str(settings).replace(", ", "-").replace(" ", "_")
        told = race(case, {"trl": settings}, name)["trl"]
        row = {"workload": workload, "dtype": dtype, "settings": vars(settings),
               "seconds_per_pair": min(told.steps[1:] or told.steps) / self.options.pairs_per_step,
               "reference_seconds": told.reference,
               "peak_mib": max(told.peaks.values())}  # fmt: skip
        print(f"{workload} {dtype} {settings}: {1 / row['seconds_per_pair']:.3f} pairs/s, "
              f"peak {row['peak_mib']:.0f} MiB", flush=True)  # fmt: skip
        return row


def _figures(told: Told, pairs: int) -> dict[str, Any]:
    timed = told.steps[1:]
    return {
        "pairs_per_second": record.spread([pairs / seconds for seconds in timed]),
        "step_seconds": timed,
        "warm_up_step_seconds": told.steps[0],
        "start_up_seconds": told.start_up,
        "reference_seconds": told.reference,
        "peak_mib": max(told.peaks.values()),
        "peak_mib_of_steps": told.peaks["end"],
        "losses": told.losses,
    }


def _apart(told: dict[str, Told]) -> float:
    """The largest difference of two loss curves."""
    pairs = zip(told["likelier"].losses, told["trl"].losses, strict=True)
    return max(abs(ours - theirs) for ours, theirs in pairs)


def _moved(told: dict[str, Told]) -> float:
    """From the least to the largest loss of our curve."""
    return max(told["likelier"].losses) - min(told["likelier"].losses)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = row["likelier"], row["trl"]
    line = {
        "workload": row["workload"],
        "dtype": row["dtype"],
        "pairs/s": ours["pairs_per_second"]["median"],
        "TRL": theirs["pairs_per_second"]["median"],
        "MiB": ours["peak_mib_of_steps"],
        "TRL MiB": theirs["peak_mib_of_steps"],
        "memory share": row["memory_share"],
    }
    if "faster" not in row:
        return line
    faster = row["faster"]
    return {
        **line,
        "faster": f"{faster['median']:.2f} ({faster['least']:.2f}-{faster['most']:.2f})",
        "start-up s": ours["start_up_seconds"],
        "TRL start-up": theirs["start_up_seconds"],
        "reference s": ours["reference_seconds"],
        "TRL reference": theirs["reference_seconds"],
        "loss apart": f"{row['loss_difference']:.1e}" + (" VOID" if row["void"] else ""),
    }


def save_adapter(model: Path, folder: Path) -> Path:
    """A fresh adapter on the model, so that both trainers start from the same numbers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
