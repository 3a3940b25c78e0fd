"""The command line: words into calls, and errors into one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from likelier.base.errors import CLOSED_PIPE, INTERRUPTED, describe_error, without_secrets

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
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="NAME=VALUE",
        help="For the chat template, such as enable_thinking=false. Once for each.",
    ),
]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="Make a user's and an assistant's turn of plain texts.")
]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Model folder or Hub id.")
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS",
        help="Where a column has another name, such as prompt=question. Once for each.",
    ),
]


def _say_version(wanted: bool) -> None:
    if wanted:
        from likelier import __version__

        print(f"likelier {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say the version.", callback=_say_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """Train language models by Direct Preference Optimization, with evidence at every step."""


@app.command(epilog="Example: likelier demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Train a tiny model offline, from nothing to a report, in minutes."""
    _check_versions()
    from likelier.demo import demo as run_demo

    run_demo(out, seed=seed)


@app.command(epilog="Example: likelier check pairs.jsonl --model ./my-model --html check.html")
def check(
    data: DataArgument,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also look at the pairs as this model would see them."),
    ] = None,
    columns: ColumnsOption = None,
    chat: ChatOption = False,
    template: TemplateOption = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="Of ranked lists: best-worst (default), best-rest or all."
        ),
    ] = None,
    min_gap: Annotated[
        float | None, typer.Option(min=0, help="Of ranked lists: least difference of two scores.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--eval", metavar="DATA", help="Held-out data: find prompts in both."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Find pairs of more tokens; needs --model.")
    ] = None,
    score: Annotated[
        int, typer.Option(min=0, help="Score so many pairs with the model: margin and noise.")
    ] = 0,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMIT", help='End with 3 if missed, as "conflicts<=0.01".'),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write a cleaned copy, with a list of every change."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is wrong with preference data, and where.

    Also why it matters and what to do about it. DATA may be the config of a run (.yaml): then its
    training data are looked at, with its settings. Reads everything once; ends with 65 where there
    are errors, with 3 where a gate is missed.
    """
    with_config = data.suffix in (".yaml", ".yml")
    if with_config or model is not None:
        _check_versions()
    from likelier.checks.examine import question_of_config, question_of_options
    from likelier.commands.check import check as check_data

    if with_config:
        question = question_of_config(
            _settings(str(data), None),
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
    code = check_data(question, gate or [], fix, html, as_json)
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
) -> None:
    """Show what the model sees of a pair, token by token.

    What is prompt, scored and stop, where the answers part, and what the tree shares.
    """
    _check_versions()
    from likelier.commands.show import show as show_pairs

    show_pairs(data, model, number, _columns(columns), chat, _template(template), html)


@app.command(epilog="Example: likelier score pairs.jsonl --model ./my-model --out scores.jsonl")
def score(
    data: DataArgument,
    model: ModelOption,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file, replaced whole; else to the terminal.")
    ] = None,
    columns: ColumnsOption = None,
) -> None:
    """Write the log-probs of every chosen and rejected answer.

    One JSON object a row, in file order; log-probs are sums over the answer's tokens, in nats.
    """
    _check_versions()
    from likelier.commands.score import score as score_pairs

    score_pairs(data, model, out, _columns(columns))


ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file; may be left out if keys say all.")
]
KeysArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="These win over the file.")
]


@app.command(epilog="Example: likelier plan config.yaml train.pairs_per_step=64")
def plan(
    config: ConfigArgument,
    keys: KeysArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run will take: memory, time and disk.

    Also the settings it would choose. Loads the model and the data and measures two steps;
    nothing is written.
    """
    settings = _settings(config, keys)
    _check_versions()
    from likelier.commands.plan import plan as plan_run
    from likelier.commands.plan import print_plan

    print_plan(plan_run(settings), as_json)


@app.command(epilog="Example: likelier train config.yaml loss.beta=0.2 out=runs/second")
def train(
    config: ConfigArgument,
    keys: KeysArgument = None,
) -> None:
    """Train a model by a config.

    Stop it with Ctrl-C and give the same command again to resume.
    """
    settings = _settings(config, keys)
    _check_versions()
    from likelier.run import train as run_train

    run_train(settings)


@app.command(epilog="Example: likelier report runs/demo")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
) -> None:
    """Write a run's report again and say where it is."""
    from likelier.report.page import write_report

    print(write_report(run))


@app.command(epilog="Example: likelier losses simpo")
def losses(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A loss, for its whole card.")
    ] = None,
) -> None:
    """List every loss, or show one card.

    With its paper, formula, hyper-parameters and their ranges, when to use it, and its trap.
    """
    from likelier.commands.losses import card, table
    from likelier.losses.declare import find_loss

    print(table() if name is None else card(find_loss(name, "NAME")), end="")


@app.command(epilog="Example: likelier env")
def env() -> None:
    """Say the versions and the hardware, for a bug report.

    No variable of the environment is shown but a few harmless ones.
    """
    from likelier.base.environment import environment
    from likelier.config import dump

    print(dump(environment()), end="")


@app.command(epilog="Example: likelier schema > likelier.schema.json")
def schema() -> None:
    """Print every config key as JSON Schema, for editors.

    With its type, range, default and meaning.
    """
    import json

    from likelier.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _check_versions() -> None:
    from likelier.base.environment import check_versions

    check_versions()


def _settings(config: str, keys: Sequence[str] | None) -> "Config":
    from likelier.config import load_config

    only_keys = "=" in config and not Path(config).exists()
    words = [config, *(keys or ())] if only_keys else list(keys or ())
    return load_config(None if only_keys else Path(config), words)


def _columns(words: Sequence[str] | None) -> dict[str, str]:
    return _named(words, "--columns", "ours=theirs")


def _template(words: Sequence[str] | None) -> dict[str, Any]:
    """Values as JSON where they are, else as text."""
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
    """Run one command line and return its exit code; nothing but a bug of ours gets past."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = _run([word for word in words if word != "--debug"] or ["--help"])
        print(end="", flush=True)  # also where stdout is closed
        return code
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "likelier"
        return _print_error(error.format_message(), f"see `{command} --help`", error.exit_code)
    except BrokenPipeError:
        return CLOSED_PIPE
    except SystemExit as stop:  # rich ends the process where its reader has gone
        if isinstance(stop.__context__, BrokenPipeError):
            return CLOSED_PIPE
        raise
    except KeyboardInterrupt:
        return _print_error("interrupted", None, INTERRUPTED)
    except Exception as error:
        if debug:
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        return _print_error(*describe_error(error))


def _print_error(what: str, hint: str | None, code: int) -> int:
    message = f"error: {what}" + (f"\n  {hint}" if hint else "")
    print(without_secrets(message), file=sys.stderr)
    return code


def entry() -> None:
    """The command ``likelier``: escape what the terminal cannot show, and exit with the code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not under every embedding
            stream.reconfigure(errors="backslashreplace")
    code = main()
    try:
        print(end="", flush=True)
    except OSError:  # said by main already; the interpreter must not try again and say more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Parse and call. Not ``app(...)``: that ends the process with codes of its own."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("likelier", words) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0
