"""Put the tables of bench/results into docs/performance.md and scaling.md, between their markers.

python bench/page.py            write the pages
python bench/page.py --check    fail where one is not what the results say
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = [HERE.parent / "docs" / name for name in ("performance.md", "scaling.md")]
Row = Mapping[str, Any]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; columns are the keys of the first row."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _range(found: Row, digits: int = 2) -> str:
    median, least, most = (f"{found[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def versus(row: Row) -> dict[str, str]:
    """Speed and memory beside TRL."""
    ours, theirs = row["likelier"], row["trl"]
    return {
        "workload": row["workload"],
        "precision": row["dtype"],
        "pairs a step": str(row["pairs_per_step"]),
        "pairs/s": _range(ours["pairs_per_second"]),
        "TRL": _range(theirs["pairs_per_second"]),
        "faster": _range(row["faster"], 1),
        "reference pass, s": f"{ours['reference_seconds']:.0f} against "
        f"{theirs['reference_seconds']:.0f}",
        "start-up, s": f"{ours['start_up_seconds']:.0f} against {theirs['start_up_seconds']:.0f}",
        "peak MiB": f"{ours['peak_mib_of_steps']:.0f} against {theirs['peak_mib_of_steps']:.0f}",
        "TRL's settings": row["trl_settings"],
        "losses apart": f"{row['loss_difference']:.1e}" + (" (void)" if row["void"] else ""),
    }


def one_pass(row: Row) -> dict[str, str]:
    """Memory with the same pairs in one pass."""
    return {
        "workload": row["workload"],
        "precision": row["dtype"],
        "pairs in a pass": str(row["pairs_in_one_pass"]),
        "peak MiB": f"{row['likelier']['peak_mib_of_steps']:.0f}",
        "TRL": f"{row['trl']['peak_mib_of_steps']:.0f}",
        "share": f"{row['memory_share']:.2f}",
    }


def limit(row: Row) -> dict[str, str]:
    """Useful arithmetic beside the matrix rate."""
    return {
        "workload": row["workload"],
        "precision": row["dtype"],
        "useful GFLOP/s": _range(row["reached"], 0),
        "matrix rate": f"{row['limit']:.0f}",
        "share": _range(row["share"]),
        **{part: f"{of:.0%}" for part, of in row["parts"].items()},
    }


def foretold(row: Row) -> dict[str, str]:
    """`likelier plan` beside the run."""
    return {
        "weights": row["size"],
        "tuning": row["tuning"],
        "used, MiB": _range(row["used_mib"], 0),
        "planned, MiB": _range(row["planned_mib"], 0),
        "planned / used": _range(row["memory_ratio"]),
        "counted alone / used": _range(row["counted_ratio"]),
        "planned / run, seconds": _range(row["time_ratio"]),
    }


def scaling(row: Row) -> dict[str, str]:
    """Growth along one axis."""
    return {
        "what grows": row["axis"],
        "to": " ".join(map(str, row["values"])),
        "seconds": " ".join(f"{one['median']:.2f}" for one in row["seconds"]),
        "time exponent": f"{row['seconds_exponent']:.3f}",
        "MiB": " ".join(f"{one['median']:.0f}" for one in row["mib"]),
        "memory exponent": f"{row['mib_exponent']:.3f}",
    }


def beyond(row: Row) -> dict[str, str]:
    """Memory of a step beyond what it must keep."""
    return {
        "workload": row["workload"],
        "tokens of the largest pass": str(row["tokens"]),
        "must keep, MiB": f"{row['must_mib']:.0f}",
        "took, MiB": f"{row['took_mib']:.0f}",
        "beyond": f"{row['beyond']:.0%}",
    }


def saved(row: Row) -> dict[str, str]:
    """What a token keeps for the backward, and what that costs."""
    found = {
        "tuning": {"lora": "LoRA", "full": "full"}[row["tuning"]],
        "precision": row["dtype"],
        "plain, KiB a token": f"{row['plain_kib']:.0f}",
    }
    for way in ("none", "layers"):
        found[f"`{way}`"] = f"{row[f'{way}_kib']:.0f}"
        found[f"`{way}`, share"] = f"{row[f'{way}_share']:.2f}"
        found[f"`{way}`, time"] = _range(row[f"{way}_time"])
    return found


def prepared(row: Row) -> dict[str, str]:
    """Time and memory of reading data."""
    return {
        "what": f"{row['what']}, {row['who']}",
        "processes": str(row["processes"]),
        "file, MiB": f"{row['file_mib']:,}",
        "seconds": _range(row["seconds"], 1),
        "processor, s": f"{row['processor']:.0f}" if row["processor"] else "",
        "peak MiB": f"{row['peak_mib']:,}",
        "shared once": f"{row['shared_once_mib']:,}",
        "largest": f"{row['largest_mib']:,}",
    }


def dealing(row: Row) -> dict[str, str]:
    """The slowest rank, as pairs are dealt and in two simpler ways."""
    return {
        "workload": row["workload"],
        "ranks": str(row["ranks"]),
        "pairs a step": str(row["pairs"]),
        "dealt": _range(row["dealt"], 3),
        "in turn": _range(row["in_turn"]),
        "by count": _range(row["by_count"]),
        "over units": _range(row["of_units"], 3),
        "computed": _range(row["computed"]),
        "ms": _range(row["milliseconds"], 0),
    }


def on_gpus(row: Row) -> dict[str, str]:
    """A model on many GPUs, computed."""
    again = ", layers again" if row["checkpointing"] == "layers" else ""
    fits = "bound" not in row
    found = {
        "model": row["model"],
        "tuning": row["tuning"],
        "GPUs": str(row["gpus"]),
        "mode": f"{row['mode']}{again}" if fits else "does not fit",
        "GB a GPU": f"{row['peak'] / 1e9:.0f}",
        "longest pair": f"{row['longest']:,}" if fits else "-",
    }
    for pairs in (256, 4096):
        found[f"{pairs} pairs, s"] = f"{row[f'seconds_{pairs}']:.2f}" if fits else "-"
        found[f"computing, {pairs}"] = f"{row[f'arithmetic_{pairs}']:.0%}" if fits else "-"
        bound = row.get(f"bound_{pairs}", "").partition(" ")[0]
        found[f"bound, {pairs}"] = {"sending": "gradients", "": "memory"}.get(bound, bound)
    return found


def cards(row: Row) -> dict[str, str]:
    """What is assumed of cards."""
    return {
        "card": row["name"],
        "memory, GB": f"{row['memory'] / 1e9:.0f}",
        "bfloat16, 10¹² operations a second": f"{row['rate'] / 1e12:.0f}",
        "to GPUs of the node, GB/s": f"{row['link'] / 1e9:.0f}",
        "to other nodes, GB/s a GPU": f"{row['network'] / 1e9:.0f}",
    }


def limits(row: Row) -> dict[str, str]:
    """What no number of GPUs changes."""
    return {
        "model": row["model"],
        "tuning": row["tuning"],
        "gathered at once, GB": f"{row['gathered'] / 1e9:.1f}",
        "a token keeps, MB": f"{row['per_token_none'] / 1e6:.2f}",
        "layers again": f"{row['per_token_layers'] / 1e6:.2f}",
        "tokens a batch, a node": f"{row['tokens_1']:,.0f}",
        "8 nodes": f"{row['tokens_8']:,.0f}",
    }


def first_step(row: Row) -> dict[str, str]:
    """A tiny run to its first step beside the imports alone."""
    return {
        "what": row["what"],
        "seconds": _range(row["wall"]),
        "processor, s": _range(row["processor"]),
        "first step, times this": _range(row["wall_ratio"]),
        "of the processor": _range(row["processor_ratio"]),
    }


def eight_bits(row: Row) -> dict[str, str]:
    """AdamW's averages in eight bits beside float32."""
    held = [row["held_out"][kind] for kind in ("adamw", "adamw8bit")]
    return {
        "seed": str(row["seed"]),
        "steps": str(row["steps"]),
        "losses apart": f"{row['loss_apart']['mean']:.1e}, at most {row['loss_apart']['most']:.1e}",
        "weights apart": f"{row['weights_apart']:.1%} of their way",
        "held-out loss": " against ".join(f"{one['eval_loss']:.4f}" for one in held),
        "held-out accuracy": " against ".join(
            f"{one['eval_rewards/accuracies']:.1%}" for one in held
        ),
    }


def big_model(row: Row) -> dict[str, str]:
    """A first hour with a model of real size."""
    ours, theirs = row["likelier"], row["trl"]

    def both(name: str) -> str:
        return f"{ours[name]:.0f} against {theirs[name]:.0f}"

    steps = [f"{one['step_seconds'][-1]:.0f}" for one in (ours, theirs)]
    alone = row["score"]
    return {
        "workload": row["workload"],
        "computes in": row["dtype"],
        "tokens a pair": f"{row['tokens_of_a_pair']:.0f}",
        "`score` of 20 pairs": f"{alone['seconds']:.0f} s, {alone['peak_mib']:.0f} MiB",
        "start-up, s": both("start_up_seconds"),
        "reference of 20 pairs, s": both("reference_seconds"),
        f"a step of {row['pairs_per_step']} pairs, s": " against ".join(steps),
        "peak MiB": both("peak_mib"),
        "TRL's settings": row["trl_settings"],
        "losses apart": f"{row['losses_apart']:.1e}",
    }


def real_size(row: Row) -> dict[str, str]:
    """A LoRA run of real size, as a whole command."""
    return {
        "weights": row["size"],
        "how they are held": row["way"],
        "computes in": {"auto": "bfloat16"}.get(row["dtype"], row["dtype"]),
        "anonymous, MiB": f"{row['peak_anonymous_mib']:.0f}",
        "resident, MiB": f"{row['peak_resident_mib']:.0f}",
        "a pair, s": f"{row['seconds_a_pair']:.0f}",
        "the run, s": f"{row['whole_run_seconds']:.0f}",
    }


def ranks(row: Row) -> dict[str, str]:
    """One run on several processes of this machine."""
    return {
        "model": {"cpu": "26M"}.get(row["size"], row["size"]),
        "processes": str(row["processes"]),
        "mode": row["mode"],
        "pairs/s": _range(row["pairs_per_second"]),
        "beside one": _range(row["faster"]) if row["faster"] else "-",
        "the first, MiB": f"{row['first_mib']:.0f}",
        "others, MiB": f"{row['others_mib']:.0f}" if row["processes"] > 1 else "-",
    }


TABLES: dict[str, Callable[[Row], dict[str, str]]] = {
    "versus_trl-cpu": versus,
    "versus_trl-cpu-groups": versus,
    "versus_trl-cpu-one-pass": one_pass,
    "big_model-cpu": big_model,
    "real_size-1.28B-cpu": real_size,
    "real_size-8B-cpu": real_size,
    "limit-cpu": limit,
    "data": prepared,
    "first_step": first_step,
    "dealing": dealing,
    "ranks-cpu": ranks,
    "scaling_model": on_gpus,
    "scaling_limits": limits,
    "scaling_cards": cards,
    "plan-cpu": foretold,
    "scaling": scaling,
    "step_memory-cpu": beyond,
    "eight_bits": eight_bits,
    "saved_bytes": saved,
    "versus_trl-gpu": versus,
}


def rendered(name: str) -> str:
    """A results file as a table, with the command, the machine and the date under it."""
    file = HERE / "results" / f"{name}.json"
    if not file.exists():
        return "Not measured."
    record = json.loads(file.read_text("utf-8"))
    machine, versions = record["machine"], record["versions"]
    processor = " ".join([machine["cpu"], machine.get("instructions", "")]).strip()
    what = machine["gpu"] or f"{processor}, {machine['threads']} threads"
    if "card" in record:
        what = (
            f"computed, not measured: {record['card']}s, {record['products_reach']:.0%} of their "
        )
        what += f"rate, {record['transfers_reach']:.0%} of their links"
    return (
        f"{table([TABLES[name](row) for row in record['rows']])}\n\n"
        f"`{record['command']}`, {what}, torch {versions['torch']}, {record['date'][:10]}"
    )


def filled(text: str, marker: str, made: Callable[[str], str]) -> str:
    """The text with what stands between its markers of a kind made anew, by their names."""
    return re.sub(
        rf"(<!-- {marker} (\S+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{made(found[2])}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def write_or_check(file: Path, page: Callable[[str], str], results: str, command: str) -> None:
    """Write a page of docs/, or with --check fail where it is not what its results say."""
    before = file.read_text("utf-8")
    after = page(before)
    if "--check" in sys.argv and before != after:
        sys.exit(f"docs/{file.name} is not what {results} says\n  fix: {command}")
    file.write_text(after, "utf-8")


def page(text: str) -> str:
    """The text with every table between its markers made anew."""
    return filled(text, "table", rendered)


def main() -> None:
    """Write the pages, or compare them."""
    for file in PAGES:
        write_or_check(file, page, "bench/results", "python bench/page.py")


if __name__ == "__main__":
    main()
