"""`likelier query`: questions in SQL about the pairs and steps of a run, answered by DuckDB.

Views over the run's files are all that the SQL can see: it has no access to files or network.
"""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import yaml
from rich.cells import cell_len

from likelier.base.environment import needs_extra
from likelier.base.errors import ConfigError, DataError
from likelier.base.files import must_be_apart, open_regular, read_table, write_file, write_text
from likelier.base.foreign import visible
from likelier.base.terminal import say
from likelier.evaluation.held_out import TIE
from likelier.evaluation.registry import metrics_known
from likelier.report.read import number, pair_log_folder, read_jsonl, read_record, section

SHOWN_ROWS = 40  # of a table in the terminal
OUT_ENDINGS = (".parquet", ".csv", ".json", ".jsonl")
_PLACE = re.compile(r"^LINE (\d+): ", re.MULTILINE)
_SETTINGS = (
    "SET enable_progress_bar = false",  # it would stand in the output
    "SET python_enable_replacements = false",  # no variable of ours is a table
    "SET temp_directory = ''",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_MADE = """SELECT *, regexp_replace(source, '(:\\d+|\\[\\d+\\])(#\\d+)?$', '') AS file,
CASE WHEN abs({figure}) < {tie} THEN 0.5 WHEN {figure} > 0 THEN 1 ELSE 0 END::DOUBLE AS correct
FROM {name}"""
# Of an unpaired example its own reward counts, and whether that has the sign of its label.
_FIGURE = """(CASE WHEN label IS NULL THEN margin WHEN label = 1
THEN {beta} * (chosen_logp - reference_chosen_logp)
ELSE {beta} * (reference_chosen_logp - chosen_logp) END)"""


@cache
def _texts() -> dict[str, Any]:
    """The views, their columns and the ready questions."""
    loaded: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    return loaded


def ask_run(run: Path, sql: str | None, as_csv: bool, as_json: bool, out: Path | None) -> None:
    """Answer a question about a run: a table in the terminal, CSV, JSON, or a file.

    ``sql`` is SQL of DuckDB or the name of a ready question; None lists views and questions. Of an
    unfinished run what is on disk is asked.

    Raises InputMissing where there is no run, ConfigError for SQL that DuckDB refuses and for
    options that do not fit, DataError for a damaged file of the run, OutputError where the disk
    refuses.
    """
    needs_extra("query", "likelier query")
    ways = [name for name, on in (("--csv", as_csv), ("--json", as_json), ("--out", out)) if on]
    if len(ways) > 1 or (ways and sql is None):
        what = "has no effect without SQL" if sql is None else f"cannot be together with {ways[0]}"
        raise ConfigError(what, where=ways[-1], hint="leave it out")
    if out is not None:
        if out.suffix not in OUT_ENDINGS:
            what, hint = (
                f"{out.name} has none of the known endings",
                f"end in {', '.join(OUT_ENDINGS)}",
            )
            raise ConfigError(what, where="--out", hint=hint)
        must_be_apart(out, f"--out {out}", [run])
    record = read_record(run)
    import duckdb

    with closing(duckdb.connect(":memory:")) as connection:
        views = _Views(run)
        for name, table in views.tables.items():
            connection.register(f"{name}_as_stored", table)
            connection.execute(f"CREATE VIEW {name} AS {_view(name, record)}")
        for setting in _SETTINGS:
            connection.execute(setting)
        if sql is None:
            _list(connection)
            return
        try:
            asked = _statement(connection, sql)
            _until_stopped(connection, partial(_answer, connection, asked, as_csv, as_json, out))
        except duckdb.Error as error:
            views.must_be_whole()  # else this is what it stumbled over
            raise _located(str(error)) from error


class _Views:
    """The files of a run as tables; those of Parquet are read as they are asked for."""

    def __init__(self, run: Path):
        folders = {"pairs": pair_log_folder(run), "held_out": run / "held_out"}
        self.files = {name: _parquet_files(folder) for name, folder in folders.items()}
        self.tables: dict[str, Any] = {n: _dataset(n, files) for n, files in self.files.items()}
        gaps: list[str] = []
        for name in ("metrics", "timing"):
            self.tables[name] = _rows_as_table(name, read_jsonl(run / f"{name}.jsonl", gaps))
        empty = [name for name, files in self.files.items() if not files]
        for line in (*gaps, *(f"this run has no {name} on disk yet" for name in empty)):
            say(line)

    def must_be_whole(self) -> None:
        """Raise DataError for the first file that cannot be read to its end."""
        for file in (file for files in self.files.values() for file in files):
            with _damage(file):
                read_table(file)


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Turn what reading a Parquet file raises into a DataError that names it."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        what, hint = "damaged: not all of it can be read", "move it away, and the rest is asked"
        raise DataError(what, where=str(file), hint=hint) from error


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.parquet") if not p.name.startswith("."))


def _schema(name: str) -> pa.Schema:
    columns: Mapping[str, Sequence[str]] = _texts()["columns"][name]
    return pa.schema({column: pa.type_for_alias(about[0]) for column, about in columns.items()})


def _dataset(name: str, files: Sequence[Path]) -> Any:
    """Parquet files as one table; columns that a file of another version lacks are empty."""
    schemas = [_schema(name)]
    for file in files:
        with _damage(file), open_regular(file) as stream:
            schemas.append(pq.read_schema(stream))
            schemas = [pa.unify_schemas(schemas, promote_options="permissive")]
    if not files:
        return schemas[0].empty_table()
    checked = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=checked)
    return pyarrow.dataset.dataset([str(file) for file in files], schemas[0], form)


def _rows_as_table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    known = [*_texts()["columns"][name]]
    names = list(dict.fromkeys([*known, *(key for row in rows for key in row)]))
    columns = {key.replace("/", "_"): [number(row.get(key)) for row in rows] for key in names}
    table = pa.table({key: pa.array(column, pa.float64()) for key, column in columns.items()})
    steps = table["step"].cast(pa.int64(), safe=False)
    return table.set_column(table.column_names.index("step"), "step", steps)


def _view(name: str, record: Mapping[str, Any]) -> str:
    """What a view selects: the stored columns, and those made of them."""
    stored = f"{name}_as_stored"
    if name not in ("pairs", "held_out"):
        return f"SELECT * FROM {stored}"
    beta = number(section(record, "loss").get("reward_scale")) or 1.0
    figure = _FIGURE.format(beta=repr(beta))
    return _MADE.format(figure=figure, tie=repr(beta * TIE), name=stored)


def _statement(connection: Any, sql: str) -> str:
    """The SQL of a ready question, or what was given: one question, which changes nothing."""
    questions = _texts()["questions"]
    if sql in questions:
        return str(questions[sql]["sql"])
    if re.fullmatch(r"[\w-]+", sql.strip()):
        near = get_close_matches(sql.strip(), questions, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        what = f"no ready question is called {sql.strip()}"
        raise ConfigError(what, where="SQL", hint=f"{hint}There are: {', '.join(questions)}")
    found = connection.extract_statements(sql)
    if len(found) != 1 or found[0].type.name not in ("SELECT", "EXPLAIN"):
        what = f"{len(found)} statements" if len(found) != 1 else f"this is {found[0].type.name}"
        raise ConfigError(f"{what}, and one SELECT is answered", where="SQL", hint="ask one thing")
    return sql


def _located(message: str) -> ConfigError:
    """What DuckDB says of SQL in a line, with line and column."""
    said = [line for line in message.splitlines() if line.strip()]
    where = "SQL"
    for at, line in enumerate(said[:-1]):
        if (place := _PLACE.match(line)) and "^" in said[at + 1]:
            column = said[at + 1].index("^") - place.end() + 1
            cut = line[place.end() :].startswith("...")
            where = f"SQL:{place[1]}" + ("" if cut else f":{column}")
            said = said[:at]
            break
    what = said[0] if said else message
    hint = " ".join(said[1:]) or "`likelier query RUN` lists the views and their columns"
    return ConfigError(what, where=where, hint=hint)


# ---- the answer ------------------------------------------------------------------------------


def _until_stopped(connection: Any, answer: Callable[[], None]) -> None:
    """Call something that asks DuckDB; Ctrl-C ends it at once, and is heard by this thread."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(answer)
        try:
            asking.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _answer(connection: Any, sql: str, as_csv: bool, as_json: bool, out: Path | None) -> None:
    if out is not None and out.suffix == ".parquet":
        table = connection.sql(sql).to_arrow_table()
        write_file(out, lambda file: pq.write_table(table, file))
        say(f"{table.num_rows:,} rows in {out}")
        return
    result = connection.execute(sql)
    names = [column[0] for column in result.description]
    if out is None and not (as_csv or as_json):
        rows = result.fetchmany(SHOWN_ROWS + 1)
        for line in _table(names, rows[:SHOWN_ROWS]):
            print(line)
        if len(rows) > SHOWN_ROWS:
            say(f"the first {SHOWN_ROWS} rows; --csv, --json or --out FILE gives all")
        return
    rows = result.fetchall()
    written = _written(names, rows, out.suffix if out else ".csv" if as_csv else ".json")
    if out is None:
        sys.stdout.write(written)
    else:
        write_text(out, written)
        say(f"{len(rows):,} rows in {out}")


def _written(names: Sequence[str], rows: Sequence[Sequence[Any]], kind: str) -> str:
    """Rows as CSV, as one JSON array or as JSON lines."""
    if kind == ".csv":
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([names, *(["" if x is None else x for x in row] for row in rows)])
        return stream.getvalue()
    objects = (dict(zip(names, map(_plain, row), strict=True)) for row in rows)
    lines = [json.dumps(one, ensure_ascii=False, default=str) for one in objects]
    if kind == ".jsonl":
        return "".join(f"{line}\n" for line in lines)
    return "[" + ",\n ".join(lines) + "]\n"


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is not finite is null."""
    value = float(value) if isinstance(value, Decimal) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Rows in columns, numbers to the right."""
    cells = [[visible(_cell(value)) for value in row] for row in rows]
    heads = [visible(name) for name in names]
    for line, values in [(heads, rows[0] if rows else heads), *zip(cells, rows, strict=True)]:
        parts = []
        for at, (cell, value) in enumerate(zip(line, values, strict=True)):
            widest = max(cell_len(each[at]) for each in [heads, *cells])
            space = " " * (widest - cell_len(cell))
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            parts.append(space + cell if is_number else cell + space)
        yield "  ".join(parts).rstrip()
    if not rows:
        yield "(no rows)"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


# ---- what can be asked -----------------------------------------------------------------------


def _list(connection: Any) -> None:
    """Print the views with their columns and units, and the ready questions with their SQL."""
    texts = _texts()
    for name, what in texts["views"].items():
        (rows,) = connection.execute(f"SELECT count(*) FROM {name}").fetchone()
        print(f"{name}  {rows:,} rows: {what}")
        found = connection.execute(f"DESCRIBE {name}").fetchall()
        units = {column: _unit(name, column) for column, *_ in found}
        widths = [max(map(len, units)), max(len(unit) for unit, _ in units.values())]
        for column, (unit, meaning) in units.items():
            line = f"  {column:{widths[0]}}  {unit:{widths[1]}}  {meaning}"
            print(visible(line).rstrip())
        print()
    print("ready questions: likelier query RUN NAME")
    for name, question in texts["questions"].items():
        print(f"\n{name}: {question['what']}")
        for line in question["sql"].splitlines():
            print(f"  {line}")


def _unit(view: str, column: str) -> tuple[str, str]:
    """The unit and the meaning of a column."""
    texts = _texts()
    known = texts["columns"][view].get(column) or texts["made"].get(column)
    if known is not None:
        return known[1], known[2]
    for metric in metrics_known().values() if view == "metrics" else ():
        if column in (key.replace("/", "_") for key in metric.keys):
            return metric.unit, metric.meaning
    return "", ""
