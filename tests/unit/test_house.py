"""The laws of the house: layers, sizes, names. Read from the syntax trees; nothing is imported."""

import ast
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "likelier"

# ---- ceilings: to be raised only on purpose, in the commit that says why -----------------------

ROAD = ("chat", "data", "batching", "losses", "model", "reference", "training", "run")
MOST_LINES_ON_THE_ROAD = 16_135  # to come down to 8_000
MOST_LINES = 37_050  # to come down to 14_000
MOST_MODULES = 190  # with code; packages whose __init__.py holds a docstring only are not counted
MOST_DATACLASSES = 100
MOST_FILES_IN_A_FOLDER = 12
# Each command is a file; training on many processes has files for what they exchange, who computes
# which pair, checkpoints in parts, and what it all takes. The report has what it examines, what it
# draws, and the comparison of several.
LARGER_FOLDERS = {"commands": 30, "model": 13, "training": 15, "report": 13}
MOST_LINES_IN_A_FUNCTION = 80
MOST_PARAMETERS_IN_THE_LOOP = 6

LINES = {
    "__init__": 50,
    "__main__": 12,
    "api": 200,
    "base": 1_900,
    "batching": 530,
    "chat": 1_900,
    "checks": 2_170,
    "cli": 940,
    "commands": 4_600,
    "config": 2_380,
    "data": 4_500,
    "demo": 760,
    "evaluation": 2_270,
    "export": 1_230,
    "generation": 1_000,
    "losses": 1_570,
    "model": 3_480,
    "pages": 1_020,
    "reference": 490,
    "report": 2_150,
    "run": 540,
    "testing": 170,
    "tracking": 280,
    "training": 3_300,
}

# ---- what is there -----------------------------------------------------------------------------


def _name(path: Path) -> str:
    """``data.read`` for data/read.py; the package's own files keep their names."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {_name(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def _room(module: str) -> str:
    return module.partition(".")[0]


def _lines_of_rooms() -> Counter[str]:
    lines: Counter[str] = Counter()
    for module, source in SOURCES.items():
        lines[_room(module)] += source.count("\n")
    return lines


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what stands under ``if TYPE_CHECKING`` does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for below in node.orelse:
                yield below
                yield from _statements(below)
        else:
            yield node
            yield from _statements(node)


def _imports(module: str) -> set[str]:
    """The modules of ours that a module imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in _statements(TREES[module]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in below if name.removeprefix("likelier.") in TREES}
            found |= modules or {node.module}
    ours = {name.removeprefix("likelier.") for name in found if name.startswith("likelier.")}
    return (ours | ({"__init__"} if "likelier" in found else set())) & TREES.keys()


def _functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION):
                yield module, node


# ---- rooms -------------------------------------------------------------------------------------


def _layers() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers: list[str] = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return layers


def test_imports_point_down_the_road() -> None:
    """pyproject.toml lists the rooms, the newest stop of the road on top."""
    depth = {
        room: depth for depth, line in enumerate(_layers()) for room in re.findall(r"\w+", line)
    }
    level = {room: ":" in line for line in _layers() for room in re.findall(r"\w+", line)}
    wrong = []
    for module in TREES.keys() - {"__init__"}:
        for other in _imports(module) - {"__init__"}:
            here, there = _room(module), _room(other)
            together = here == there or (depth[here] == depth[there] and level[here])
            if not together and depth[there] <= depth[here]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_rooms_do_not_import_each_other_in_circles() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module in TREES.keys() - {"__init__"}:
        rooms[_room(module)] |= {_room(other) for other in _imports(module)} - {_room(module)}
    for room in rooms:
        rooms[room].discard("__init__")  # holds the version, and imports when asked for a name
    TopologicalSorter(rooms).prepare()  # raises CycleError, which names the circle


def test_modules_do_not_import_each_other_in_circles() -> None:
    modules = {module: _imports(module) - {"__init__", module} for module in TREES}
    TopologicalSorter(modules).prepare()


def test_a_folder_holds_at_most_a_dozen_files() -> None:
    """Of code: one that says in its docstring what the folder is does not count."""
    paths = {name: path for path in PACKAGE.rglob("*.py") if (name := _name(path)) in TREES}
    files = Counter(p.parent for n, p in paths.items() if len(TREES[n].body) > 1)
    del files[PACKAGE]
    full = {
        folder.name: count
        for folder, count in files.items()
        if count > LARGER_FOLDERS.get(folder.name, MOST_FILES_IN_A_FOLDER)
    }
    assert not full


# ---- sizes -------------------------------------------------------------------------------------


def test_no_room_grows_unnoticed() -> None:
    lines = _lines_of_rooms()
    assert lines.keys() == LINES.keys()
    over = {room: (count, LINES[room]) for room, count in lines.items() if count > LINES[room]}
    assert not over, "lines, ceiling"


def test_the_whole_stays_small() -> None:
    lines = _lines_of_rooms()
    with_code = [tree for tree in TREES.values() if len(tree.body) > 1]  # one: a docstring
    records = sum(
        "dataclass" in ast.unparse(decorator)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
    )
    found = {
        "lines": (lines.total(), MOST_LINES),
        "lines on the road": (sum(lines[room] for room in ROAD), MOST_LINES_ON_THE_ROAD),
        f"modules with code, of {len(TREES)} files": (len(with_code), MOST_MODULES),
        "dataclasses": (records, MOST_DATACLASSES),
    }
    over = {what: counted for what, counted in found.items() if counted[0] > counted[1]}
    assert not over, "found, ceiling"


def test_no_function_is_long() -> None:
    long = {
        f"{module}.{node.name}": lines
        for module, node in _functions()
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_IN_A_FUNCTION
    }
    assert not long


def test_no_function_of_the_loop_takes_many_parameters() -> None:
    """The public ``train`` may: it takes what a caller may give as objects."""
    many = {}
    for module, node in _functions():
        given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(given) - (given[:1] in (["self"], ["cls"]))
        public = (module, node.name) == ("run", "train")
        in_the_loop = _room(module) in ("run", "training") and not public
        if in_the_loop and count > MOST_PARAMETERS_IN_THE_LOOP:
            many[f"{module}.{node.name}"] = count
    assert not many


# ---- names -------------------------------------------------------------------------------------

# Names that may stand in several modules: ``data.load`` loads data, ``likelier.load`` a model.
ALLOWED_TWICE: dict[str, set[str]] = {"load": {"data.load", "model.load"}}

# Words that the project no longer uses, anywhere in a name: docs/glossary.md has those it uses.
RETIRED = {
    "couples", "goes", "ledger", "ledgers", "mend", "mends", "pass", "passes", "sureness", "thumb",
    "thumbs", "told",
}  # fmt: skip
RETIRED_TEXT = re.compile(r"\b(?:couples|goes on|go on|mends?|sureness|thumbs?)\b")
# Names that do not say what they name: of modules, functions, classes, constants and fields.
EMPTY = {
    "MOST", "FEW", "SIZE", "LOOK", "part", "work", "look", "notice", "purpose", "places", "even",
    "go_on",
}  # fmt: skip


def _defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The names that a module defines at its top, with their lines."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | FUNCTION):
            yield node.name, node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from ((n.id, n.lineno) for n in ast.walk(target) if isinstance(n, ast.Name))


def _identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The names that a module gives: to functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | FUNCTION):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno


def _is_retired(name: str) -> bool:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return not RETIRED.isdisjoint(snake.replace("forward_pass", "").split("_"))


def test_a_name_is_defined_in_one_module() -> None:
    """The command line names its functions after the commands, so it is left out."""
    homes: dict[str, set[str]] = defaultdict(set)
    for module, tree in TREES.items():
        for name, _ in _defined(tree):
            if not name.startswith("_") and module != "cli":
                homes[name].add(module)
    twice = {name: sorted(found) for name, found in homes.items() if len(found) > 1}
    new = [
        f"{name}: {', '.join(twice[name])}" for name in sorted(twice.keys() - ALLOWED_TWICE.keys())
    ]
    assert not new, "\n".join(new)
    assert {name: set(twice.get(name, ())) for name in ALLOWED_TWICE} == ALLOWED_TWICE


def _fields(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for below in node.body:
                if isinstance(below, ast.AnnAssign) and isinstance(below.target, ast.Name):
                    yield below.target.id, below.lineno


def test_names_are_words_of_the_field() -> None:
    wrong = []
    for module, tree in TREES.items():
        if (last := module.rpartition(".")[2]) in {*EMPTY, "start"} or _is_retired(last):
            wrong.append(module)
        retired = {(name, line) for name, line in _identifiers(tree) if _is_retired(name)}
        empty = {(name, line) for name, line in (*_defined(tree), *_fields(tree)) if name in EMPTY}
        wrong += [f"{module}, line {line}: {name}" for name, line in sorted(retired | empty)]
    assert not wrong, "\n".join(wrong)


def test_texts_are_words_of_the_field() -> None:
    """In messages, docstrings, comments, and the texts of pages."""
    wrong = [
        f"{path.relative_to(PACKAGE)}, line {number}: {found[0]}"
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in (".py", ".html", ".yaml")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if (found := RETIRED_TEXT.search(line))
    ]
    assert not wrong, "\n".join(wrong)
