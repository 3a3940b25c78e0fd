"""The command line: words into calls, and errors into one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

from likelier.base.errors import (
    CLOSED_PIPE,
    INTERRUPTED,
    ConfigError,
    StoppedEarly,
    describe_error,
)
from likelier.base.foreign import WRITTEN_OUT, harmless, harmless_streams
from likelier.base.heap import without_small_caches

if TYPE_CHECKING:
    from likelier.config import Config

app = typer.Typer(
    name="likelier",
    epilog="Start with: likelier demo",
    add_completion=False,
    rich_markup_mode=None,  # rich's help takes a tenth of a second longer
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="File (JSONL, JSON, CSV, Parquet), folder or Hub id (id:split)."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="NAME=VALUE",
        help="An argument of the chat template, such as enable_thinking=false. Repeatable.",
    ),
]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="Turn plain texts into a user's and an assistant's turn.")
]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Model folder or Hub id.")
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS",
        help="A column with another name, such as prompt=question; null: none. Repeatable.",
    ),
]


LangOption = Annotated[
    Literal["en", "ko"] | None,
    typer.Option("--lang", help="Language; default: the config's or the system's."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from likelier import __version__

        print(f"likelier {__version__}")
        raise typer.Exit


def _print_completion(shell: str | None) -> None:
    if shell is not None:
        from likelier.commands.completion import answer_shell

        raise typer.Exit(answer_shell(typer.main.get_command(app), f"source_{shell}"))


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")
    ] = False,
    completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            "--show-completion",
            metavar="SHELL",
            callback=_print_completion,
            is_eager=True,
            help="Print what makes bash, zsh or fish complete commands and options.",
        ),
    ] = None,
) -> None:
    """Train language models by Direct Preference Optimization, with evidence at every step."""


@app.command(epilog="Example: likelier demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Decides everything random.")] = 0,
    notebook: Annotated[
        bool, typer.Option("--notebook", help="Open the walk-through in JupyterLab instead.")
    ] = False,
    lang: LangOption = None,
) -> None:
    """Train a tiny model offline, from nothing to a report, in minutes."""
    _check_versions()
    if notebook:
        from likelier.demo.notebook import open_notebook

        if out != Path("runs/demo") or seed or lang:
            what = "has no effect together with --notebook"
            raise ConfigError(what, where="--out, --seed or --lang", hint="leave it out")

        open_notebook(Path.cwd())
    from likelier.demo import demo as run_demo

    run_demo(out, seed=seed, lang=lang)


@app.command(epilog="Example: likelier check pairs.jsonl --model ./my-model --html check.html")
def check(
    data: DataArgument,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also check the pairs as this model would see them."),
    ] = None,
    columns: ColumnsOption = None,
    chat: ChatOption = False,
    template: TemplateOption = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="Pairs of a ranked list: best-worst (default), best-rest or all."
        ),
    ] = None,
    min_gap: Annotated[
        float | None, typer.Option(min=0, help="Least difference of two scores of a ranked list.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="DATA", help="Held-out data: report prompts that are in both."
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Report pairs with more tokens; needs --model.")
    ] = None,
    score: Annotated[
        int,
        typer.Option(
            min=0, help="Score this many pairs with the model: their margins and the noise."
        ),
    ] = 0,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT", help='Exit with code 3 unless this holds: "conflicts<=0.01".'
        ),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write a cleaned copy, and a list of every change."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    all_places: Annotated[
        bool, typer.Option("--all", help="Show every place of a finding, not the first few.")
    ] = False,
    lang: LangOption = None,
) -> None:
    """Find what is wrong with preference data, and where.

    Each finding says why it matters and what to do about it. DATA may be the config of a run
    (.yaml): its training data are then checked with its settings. The exit code is 65 where
    there are errors, and 3 where a gate is missed.
    """
    with_config = data.suffix in (".yaml", ".yml")
    if with_config or model is not None:
        _check_versions()
    from likelier.checks.examine import question_of_config, question_of_options
    from likelier.commands.check import check as check_data

    settings = _settings(str(data), None) if with_config else None
    if settings is not None:
        question = question_of_config(
            settings,
            score,
            {"--model": model, "--columns": columns, "--chat": chat, "--template": template,
             "--pairs": pairs, "--min-gap": min_gap, "--eval": held_out,
             "--max-length": max_length},
        )  # fmt: skip
    else:
        question = question_of_options(
            data, model, _columns(columns), chat, _template(template), pairs, min_gap, held_out,
            max_length, score,
        )  # fmt: skip
    question = replace(question, all_places=all_places)
    code = check_data(question, gate or [], fix, html, as_json, lang, settings)
    if code:
        raise typer.Exit(code)


@app.command(epilog="Example: likelier show pairs.jsonl --model ./my-model -n 1")
def show(
    data: DataArgument,
    model: ModelOption,
    number: Annotated[int, typer.Option("-n", min=1, help="How many pairs.")] = 3,
    columns: ColumnsOption = None,
    chat: ChatOption = False,
    template: TemplateOption = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead of the terminal.")
    ] = None,
    row: Annotated[
        str | None, typer.Option(metavar="ROW", help="Show this row: its number, or FILE:NUMBER.")
    ] = None,
    lang: LangOption = None,
) -> None:
    """Show what the model sees of a pair, token by token.

    It marks the prompt, the scored and the stop tokens, where the answers part, and what they
    share in the prefix tree. Of a row that cannot be used it shows why, and what the chat
    template makes of it; where all are such rows, the exit code is 65.
    """
    _check_versions()
    from likelier.commands.show import show as show_pairs

    columns_of, keywords = _columns(columns), _template(template)
    code = show_pairs(data, model, number, columns_of, chat, keywords, html, row, lang)
    if code:
        raise typer.Exit(code)


@app.command(epilog="Example: likelier score pairs.jsonl --model ./my-model --out scores.jsonl")
def score(
    data: DataArgument,
    model: ModelOption,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file, which is replaced; without it, the terminal.")
    ] = None,
    columns: ColumnsOption = None,
    chat: ChatOption = False,
    template: TemplateOption = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float64"],
        typer.Option(help="What to compute in; auto is the checkpoint's own where fast."),
    ] = "auto",
) -> None:
    """Write the log-probs of every chosen and rejected answer.

    One JSON object a row, in file order; log-probs are sums over the answer's tokens, in nats.
    """
    _check_versions()
    from likelier.commands.score import score as score_pairs

    score_pairs(data, model, out, _columns(columns), chat, _template(template), dtype)


ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="YAML file; may be left out if the keys say everything."),
]
KeysArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys that win over the file.")
]


@app.command(epilog="Example: likelier plan config.yaml train.pairs_per_step=64 --gpus 8x80GB")
def plan(
    config: ConfigArgument,
    keys: KeysArgument = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of a card that is not here: 24GB, 80GiB."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="NxSIZE", help="Several: 8x80GB, 2x8x80GB (two nodes), 8xH100."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how much memory, time and disk a run will take.

    Loads the model and the data, measures two steps, and shows the settings that the run would
    choose and what would need less. Nothing is written. With --device nothing is computed: memory
    is counted for a card of that size, and no time is said. With --gpus memory is that of one of
    several, and a step's time follows from the data sheet of a card that is named. The exit code
    is 2 where it does not fit.
    """
    if device is not None and gpus is not None:
        raise ConfigError("is for one card", where="--device", hint="leave it or --gpus out")
    settings = _settings(config, keys)
    _check_versions()
    from likelier.commands import plan as command

    card = None if device is None else command.parse_size(device)
    cluster = None if gpus is None else command.parse_gpus(gpus)
    planned = command.plan(settings, card, cluster)
    command.print_plan(planned, as_json)
    if not planned.fits:
        raise command.does_not_fit(planned)


@app.command(epilog="Example: likelier train config.yaml loss.beta=0.2 out=runs/second")
def train(config: ConfigArgument, keys: KeysArgument = None) -> None:
    """Train a model by a config, on all visible GPUs.

    Stop it with Ctrl-C and give the same command again to resume. parallel.processes=N starts N
    processes that train together; torchrun may start them, too, also on several machines.
    """
    settings = _settings(config, keys)
    _check_versions()
    _train(settings, ["train", str(config), *(keys or ())])


@app.command(epilog="Example: likelier sweep config.yaml loss.beta=0.05,0.1,0.3 out=runs/betas")
def sweep(
    config: ConfigArgument,
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=A,B", help="Keys that win over the file; a comma parts values to try."
        ),
    ] = None,
    stopping: Annotated[
        bool,
        typer.Option(
            "--stopping/--no-stopping", help="Stop runs that are surely worse at half their steps."
        ),
    ] = True,
    run: Annotated[str | None, typer.Option("--run", hidden=True)] = None,
) -> None:
    """Train a grid of runs, compare them and say which is best.

    Every value of a key is tried with each of every other key, a run in its own folder of out.
    The reference log-probs are computed once. Stop it with Ctrl-C and give the same command again
    to resume; runs that are done stay. At the end stand comparison.html and best.yaml.
    """
    _check_versions()
    from likelier.commands import sweep as command
    from likelier.config.grid import read_grid

    if run is not None:  # one of the runs, in a process of its own
        settings, on_step = command.open_run(Path(config), run)
        return _train(settings, ["sweep", config, "--run", run], on_step=on_step)
    out, runs = read_grid(*_file_and_keys(config, keys))
    if code := command.run_sweep(out, runs, stopping, _debug()):
        raise typer.Exit(code)


@app.command(
    "import", epilog="Example: likelier import dpo.yaml model.path=./my-model --out config.yaml"
)
def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A config of TRL, Axolotl or LLaMA-Factory."),
    ],
    keys: KeysArgument = None,
    program: Annotated[
        Literal["trl", "axolotl", "llama-factory"] | None,
        typer.Option("--from", help="Whose config it is; without it, its keys tell."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many processes it was launched with.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Write the config to this new file, not to stdout."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print config and answers as one JSON object.")
    ] = False,
) -> None:
    """Turn a config of another trainer into one of likelier.

    Prints our config, and to stderr an answer for every key of theirs (taken, converted, with
    another meaning, without a counterpart) and what that program does otherwise. What it takes
    where its file is silent is written out. KEY=VALUE are keys of ours that win.
    """
    from likelier.commands.import_config import import_config

    import_config(file, keys or [], program, processes, out, as_json)


@app.command(epilog="Example: likelier export runs/first --to gguf --out models/first")
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder for the model, which must not exist yet.")],
    to: Annotated[
        Literal["merged", "adapter", "gguf"],
        typer.Option(help="One plain model, the adapter alone, or a file for llama.cpp."),
    ] = "merged",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights; auto is the base's own."),
    ] = "auto",
    converter: Annotated[
        Path | None,
        typer.Option(help="llama.cpp's convert_hf_to_gguf.py, where it is not on PATH."),
    ] = None,
    quantise: Annotated[
        Literal["q8_0", "q4_k_m"] | None, typer.Option(help="Round a GGUF file to fewer bits.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Send it to the Hub, to a private repository."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare it with what was trained.")] = True,
) -> None:
    """Write what a run trained as others run it, and compare.

    An adapter is merged into its base in float32; a base in four bits is unpacked. What is written
    is asked for the log-probs of held-out pairs, its prompts and its answers, and exits with 3
    where they are not those of the trained model.
    """
    _check_versions()
    from likelier.commands.export import Wanted
    from likelier.commands.export import export as export_run

    wanted = Wanted(to, dtype, converter, quantise, push, public, verify)
    export_run(run, out, wanted)


@app.command(epilog="Example: likelier verify models/first --against runs/first --gate")
def verify(
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT", help="Model or adapter folder, GGUF file, or address of a server."
        ),
    ],
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run that trained it.")],
    pairs: Annotated[int, typer.Option(min=1, help="Held-out pairs to compare, at most.")] = 64,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 3 where they differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare an exported model or a server with a run.

    Both are asked the same: log-probs of held-out pairs, token ids of prompts, what ends an
    answer, greedy answers. A server is one of vLLM, SGLang or llama.cpp; of others only answers
    are compared.
    """
    _check_versions()
    from likelier.commands.verify import verify as verify_artefact

    verify_artefact(artefact, against, pairs, gate, as_json)


TargetArgument = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, model or adapter, or Hub id.")
]
OnlyOption = Annotated[
    Literal["base", "tuned"] | None, typer.Option(help="Ask one of the two models alone.")
]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Of sampling; 0 is greedy.")]
NewTokensOption = Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides what is drawn.")]


@app.command(epilog="Example: likelier chat runs/demo --system 'Answer in one sentence.'")
def chat(
    target: TargetArgument,
    only: OnlyOption = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system text.")] = "",
    template: TemplateOption = None,
    temperature: TemperatureOption = 0.7,
    max_new_tokens: NewTokensOption = 1024,
    seed: SeedOption = 0,
) -> None:
    """Talk with a model; of a run, base and tuned answer together.

    Each keeps its own conversation. /help lists what can be typed beside questions. Lines may
    also come from a file or pipe.
    """
    _check_versions()
    from likelier.commands.chat import chat as talk

    talk(target, only, system, _template(template), temperature, max_new_tokens, seed)


@app.command(
    epilog="Example: likelier sample runs/demo --prompts prompts.jsonl --out answers.jsonl"
)
def sample(
    target: TargetArgument,
    prompts: Annotated[
        Path, typer.Option(metavar="DATA", help="File, folder or Hub id of prompts, or of pairs.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file, a row an answer.")],
    number: Annotated[int, typer.Option("-n", "--n", min=1, help="Answers to each prompt.")] = 1,
    only: OnlyOption = None,
    columns: ColumnsOption = None,
    chat: ChatOption = False,
    template: TemplateOption = None,
    temperature: TemperatureOption = 1.0,
    max_new_tokens: NewTokensOption = 512,
    seed: SeedOption = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Answers at once; default: what memory allows.")
    ] = None,
) -> None:
    """Write many answers to the prompts of a file.

    Of a run the tuned model answers, unless --only base. Stop it with Ctrl-C and give the same
    command again to continue: the file is the same as of a run that was not stopped.
    """
    _check_versions()
    from likelier.commands.sample import Draws, sample_prompts

    draws = Draws(number, temperature, max_new_tokens, seed, batch_size)
    sample_prompts(target, prompts, out, draws, only, _columns(columns), chat, _template(template))


@app.command("eval", epilog="Example: likelier eval runs/demo held-out.jsonl --out figures.jsonl")
def eval_(
    target: TargetArgument,
    data: DataArgument,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="MODEL", help="A further model or run. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL file, a row a pair; is replaced.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    columns: ColumnsOption = None,
    chat: ChatOption = False,
    template: TemplateOption = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="Have base and tuned answer, and judge them: the address of an endpoint "
            "(https://…/v1), a reward model folder, or file.py:function. Twice for two judges.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Prompts to answer and judge; default: 200.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of an answer; default: 512.")
    ] = None,
    judge_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The endpoint's model, where it serves several."),
    ] = None,
    judge_price: Annotated[
        list[str] | None,
        typer.Option(metavar="IN,OUT", help="Dollars for a million tokens read, and written."),
    ] = None,
    judge_cost_cap: Annotated[
        float | None, typer.Option(min=0, metavar="DOLLARS", help="Stop before it costs more.")
    ] = None,
    judge_timeout: Annotated[
        float | None, typer.Option(min=0.01, metavar="SECONDS", help="Of a reply; default: 120.")
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where verdicts are kept; default: in the cache."),
    ] = None,
) -> None:
    """Measure what a model, or a run, learned, on held-out pairs.

    Of a run or an adapter these are base and tuned, with what training changed: accuracies,
    margins and drifts with 95 % intervals, and whether a difference can be told from chance.
    With --judge both answer the prompts, and a judge says in both orders which answer is better.
    Its key is read from LIKELIER_JUDGE_API_KEY (LIKELIER_JUDGE2_API_KEY of the second). Stopped,
    or stopped by the cap (exit code 75), the same command continues and pays nothing twice.
    """
    _check_versions()
    from likelier.commands.evaluate import evaluate
    from likelier.commands.judge import JudgeOptions

    options = JudgeOptions(
        judge or [], samples, max_new_tokens, judge_model or [], judge_price or [], judge_cost_cap,
        judge_timeout, verdicts,
    )  # fmt: skip
    evaluate(
        target, data, also or [], out, as_json, _columns(columns), chat, _template(template),
        options,
    )  # fmt: skip


@app.command(epilog="Example: likelier report runs/demo --watch")
def report(
    run: RunArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it in a browser while the run trains.")
    ] = False,
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Open a browser, or only say the address."),
    ] = True,
    lang: LangOption = None,
) -> None:
    """Write the report of a run again and print where it is.

    With --watch a page on this machine shows the run as it goes, until it is finished or Ctrl-C
    is pressed (exit code 130).
    """
    if watch:
        from likelier.commands.watch import watch as watch_run

        watch_run(run, lang, browser)
        return
    if not browser:
        what, hint = "has no effect without --watch", "leave it out"
        raise ConfigError(what, where="--no-browser", hint=hint)
    from likelier.report.page import write_report

    print(write_report(run, lang))


@app.command(epilog="Example: likelier compare runs/first runs/second --html compare.html")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Folders of runs.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    lang: LangOption = None,
) -> None:
    """Compare runs: what differs, by how much, and which is best.

    Every run is compared with the first one over the held-out pairs of both, with intervals that
    know which pairs share a prompt, and losses only where loss.* is the same. The best has the
    highest accuracy; of those that the data does not tell apart, it moved least.
    """
    from likelier.commands.compare import show_comparison

    show_comparison(runs, html, as_json, lang)


@app.command(epilog="Example: likelier explain runs/demo --pair worst --html pair.html")
def explain(
    run: RunArgument,
    pair: Annotated[
        str,
        typer.Option(metavar="N", help="Row number, FILE:NUMBER, or best, worst or most-changed."),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead of the terminal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Print a table of tokens; so does NO_COLOR.")
    ] = False,
    lang: LangOption = None,
) -> None:
    """Explain one pair of a finished run.

    The formula of the run's loss with this pair's own numbers, and token by token what policy and
    reference give, and where the margin comes from.
    """
    _check_versions()
    from likelier.commands.explain import explain_pair

    explain_pair(run, pair, html, as_json, no_color, lang)


@app.command(epilog="Example: likelier query runs/demo never-flipped")
def query(
    run: RunArgument,
    sql: Annotated[
        str | None,
        typer.Argument(metavar="SQL", help="SQL, or a ready question; without it, all are listed."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write .parquet, .csv, .json or .jsonl instead."),
    ] = None,
) -> None:
    """Ask a run's pairs and steps in SQL, by DuckDB.

    The views are pairs, held_out, metrics and timing; without SQL they are listed with their
    columns, units and ready questions. Nothing can be changed, and no other file is read.
    """
    from likelier.commands.query import ask_run

    ask_run(run, sql, as_csv, as_json, out)


@app.command(epilog="Example: likelier losses simpo")
def losses(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A loss, to show its whole card.")
    ] = None,
) -> None:
    """List every loss, or show the card of one.

    A card holds the paper, the formula, the hyper-parameters and their ranges, when to use the
    loss, and its trap.
    """
    from likelier.commands.losses import card, table
    from likelier.losses.declare import find_loss

    print(table() if name is None else card(find_loss(name, "NAME")), end="")


@app.command(epilog="Example: likelier env")
def env() -> None:
    """Print the versions and the hardware, for a bug report.

    Of the environment's variables, only a few harmless ones are shown.
    """
    from likelier.base.environment import environment
    from likelier.config import dump

    print(dump(environment()), end="")


@app.command(epilog="Example: likelier schema > likelier.schema.json")
def schema() -> None:
    """Print every config key as JSON Schema, for editors.

    The schema holds the type, range, default and meaning of each key.
    """
    import json

    from likelier.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _check_versions() -> None:
    from likelier.base.environment import check_versions

    check_versions()


def _train(settings: "Config", words: Sequence[str], **given: Any) -> None:
    """Train by a config in this process, or in several that are started by the same ``words``."""
    from likelier.commands.train import begin_train

    code = begin_train(settings, [*words, *_debug()])
    if code is not None:
        raise typer.Exit(code)
    from likelier.run import train as run_train  # imports torch

    run_train(settings, **given)


def _debug() -> list[str]:
    """The words for every process that this one starts."""
    return ["--debug"] if "--debug" in sys.argv else []


def _settings(config: str, keys: Sequence[str] | None) -> "Config":
    from likelier.config import load_config

    return load_config(*_file_and_keys(config, keys))


def _file_and_keys(config: str, keys: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """The config file, None where the words are keys from the first on, and the keys."""
    if "=" in config and not os.path.exists(config):
        return None, [config, *(keys or ())]
    return Path(config), list(keys or ())


def _columns(words: Sequence[str] | None) -> dict[str, str | None]:
    named = _named(words, "--columns", "ours=theirs")
    return {ours: None if theirs == "null" else theirs for ours, theirs in named.items()}


def _template(words: Sequence[str] | None) -> dict[str, Any]:
    """Each value as JSON where it is JSON, else as text."""
    import json

    values: dict[str, Any] = {}
    for name, text in _named(words, "--template", "name=value").items():
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _named(words: Sequence[str] | None, option: str, form: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in named:
            problem = "is given twice" if name in named else f"is not {form}"
            raise typer.BadParameter(f"{word!r} {problem}", param_hint=option)
        named[name] = value
    return named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every error becomes a line on stderr."""
    with harmless_streams():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(words: list[str]) -> int:
    debug = "--debug" in words
    try:
        if sys.flags.optimize > 1:
            raise ConfigError(
                "Python was told to drop docstrings, without which transformers loads no model",
                where="PYTHONOPTIMIZE, -OO",
                hint="start it without",
            )
        code = _run([word for word in words if word != "--debug"] or ["--help"])
        print(end="", flush=True)  # also where stdout is closed
        return code
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "likelier"
        hint = _key_instead(error, words) or f"see `{command} --help`"
        return _print_error(harmless(error.format_message()), hint, error.exit_code)
    except BrokenPipeError:
        return CLOSED_PIPE
    except SystemExit as stop:  # rich ends the process where its reader has gone
        if isinstance(stop.__context__, BrokenPipeError):
            return CLOSED_PIPE
        raise
    except KeyboardInterrupt as stop:
        if getattr(stop, "is_said", False):
            return INTERRUPTED
        return _print_end("interrupted", INTERRUPTED)
    except StoppedEarly as stop:  # on purpose, so no error
        return stop.exit_code if stop.is_said else _print_end(str(stop), stop.exit_code)
    except Exception as error:
        if debug:
            print(traceback.format_exc(), end="", file=sys.stderr)
        described = describe_error(error)
        is_said = getattr(error, "is_said", False)  # by another process of the run
        return described[-1] if is_said else _print_error(*described)


def _key_instead(error: TyperException, words: Sequence[str]) -> str | None:
    """What to write for an option such as ``--epochs 3`` where a command takes keys of a config."""
    option = getattr(error, "option_name", None)
    if option is None or words[0] not in ("train", "sweep", "plan"):
        return None
    from likelier.config.explain import hint_for_word
    from likelier.config.strict_yaml import argument

    given = next(word for word in words if word.partition("=")[0] == option)
    name, equals, value = given.lstrip("-").replace("-", "_").partition("=")
    following = [*words[words.index(given) + 1 :], "true"][0]
    value = given.partition("=")[2] if equals else following
    return hint_for_word(name, True if value.startswith("-") else argument(value, name))


def _print_error(what: str, hint: str | None, code: int) -> int:
    return _print_end(f"error: {what}" + (f"\n  {hint}" if hint else ""), code)


def _print_end(message: str, code: int) -> int:
    with suppress(OSError):  # a full disk may be what it says
        print(message, file=sys.stderr)
    return code


def entry() -> None:
    """The command ``likelier``: escape what the terminal cannot show, and exit with the code."""
    try:
        code = _entered()
    except KeyboardInterrupt:  # just before `main` hears of it, or just behind
        code = _print_end("interrupted", INTERRUPTED)
    sys.exit(code)


def _entered() -> int:
    if sys.argv[1:2] in (["train"], ["sweep"], ["plan"]):  # a plan measures what a run will hold
        without_small_caches()
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # other interpreters run nothing of this folder
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not under every embedding
            stream.reconfigure(errors=WRITTEN_OUT)
    if sys.argv[1:2] == ["show"]:
        _hide_torch()
    code = main()
    try:
        print(end="", flush=True)
    except OSError:  # main has reported it; the interpreter must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _open_streams() -> None:
    """Closed standard streams lead nowhere: else a file or pipe of ours takes their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _hide_torch() -> None:
    """Have transformers do without torch in this process: `show` needs tokenizers only.

    None in ``sys.modules`` is how Python itself marks a module that is not to be had.
    """
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # the types leave None out


def _run(words: list[str]) -> int:
    """Parse and call. Not ``app(...)``: that ends the process with codes of its own."""
    command = typer.main.get_command(app)
    if question := os.environ.get("_LIKELIER_COMPLETE"):  # the shell asks, at a tab
        from likelier.commands.completion import answer_shell

        return answer_shell(command, question)
    try:
        with command.make_context("likelier", words) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0
