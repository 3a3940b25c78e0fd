"""Whatever strangers' files, names and words hold, no byte of it drives the terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.base.terminal import bar, console, counting, say
from likelier.cli import main

# A title, hidden text, C1, an override, a return, a rub-out, no width, a line separator, a tag.
HOSTILE = "a\x1b]0;pwned\x07\x1b[8mb\x9b31m\u202ec\rd\x7fe\u200bf\u2028g\U000e0041h"
NOT_UTF8 = os.fsdecode(b"\xff\x1b[8mb")  # a file name with a lone surrogate
JSON_SAFE = HOSTILE + "\ud800"


def harmless(said: bytes) -> str:
    """The text, which holds nothing but letters, spaces and line ends."""
    text = said.decode("utf-8")
    odd = [c for c in text if c != "\n" and unicodedata.category(c)[0] == "C" and c != "\u200d"]
    assert not odd, (odd, text)
    assert "\u2028" not in text
    return text


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=6)


@pytest.fixture
def place(good: Place, tmp_path: Path) -> Place:
    """A place that a test may spoil: the weights are links, the rest a copy."""
    place = Place(tmp_path / "place")
    place.base.mkdir(parents=True)
    for file in good.base.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, place.base / file.name)
        else:
            (place.base / file.name).write_bytes(file.read_bytes())
    place.data.write_bytes(good.data.read_bytes())
    return place


def edited(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def named(place: Place, name: str) -> str:
    """The pairs under another name."""
    return str(place.data.rename(place.folder / f"{name}.jsonl"))


def rows(place: Place, **changes: object) -> str:
    """The pairs, each with other columns."""
    write_rows_of(place, [{**row, **changes} for row in pair_rows(6)])
    return str(place.data)


def write_rows_of(place: Place, content: list[dict]) -> None:
    place.data.write_text("".join(json.dumps(row) + "\n" for row in content))  # ASCII, escaped


def columns_of_parquet(place: Place) -> str:
    path = place.folder / "pairs.parquet"
    pq.write_table(pa.table({"prompt": ["a"], HOSTILE: ["b"], "chosen": [HOSTILE]}), path)
    return str(path)


def template(place: Place, text: str) -> list[str]:
    (place.base / "chat_template.jinja").write_text(text, encoding="utf-8")
    return ["show", str(place.data), "--model", str(place.base)]


def added_token(place: Place) -> list[str]:
    path = place.base / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    token = {**content["added_tokens"][0], "id": 600, "content": HOSTILE, "special": False}
    content["added_tokens"].append(token)
    path.write_text(json.dumps(content), encoding="utf-8")
    chat = [{"role": "user", "content": HOSTILE}]
    return ["show", rows(place, prompt=chat), "--model", str(place.base)]


def config(place: Place, **changes: object) -> list[str]:
    path = place.folder / "config.yaml"
    path.write_text(yaml.safe_dump(place.config("out") | changes), encoding="utf-8")
    return ["train", str(path)]


def adapter(place: Place, **changes: object) -> list[str]:
    folder = place.folder / "adapter"
    folder.mkdir()
    given: dict[str, object] = {"base_model_name_or_path": str(place.base), **changes}
    edited(folder / "adapter_config.json", **given)
    return ["score", str(place.data), "--model", str(folder)]


def model(place: Place, **changes: object) -> list[str]:
    edited(place.base / "config.json", **changes)
    return ["score", str(place.data), "--model", str(place.base)]


def run_folder(place: Place, name: str = HOSTILE) -> list[str]:
    folder = place.folder / name
    folder.mkdir()
    edited(folder / "run.json", command=HOSTILE, objective=HOSTILE, status=HOSTILE)
    return ["report", str(folder)]


def locked(place: Place) -> list[str]:
    import fcntl

    out = place.folder / "out"
    out.mkdir()
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT)
    os.write(lock, HOSTILE.encode())
    fcntl.flock(lock, fcntl.LOCK_EX)
    return config(place)


RAISES = "{{ raise_exception(" + repr(HOSTILE) + ") }}"
CASES: dict[str, Callable[[Place], list[str]]] = {
    "name of data": lambda p: ["check", named(p, HOSTILE)],
    "name of data, shown": lambda p: ["show", named(p, HOSTILE), "--model", str(p.base)],
    "name of data, not UTF-8": lambda p: ["check", named(p, NOT_UTF8)],
    "name of data, scored": lambda p: ["score", named(p, HOSTILE), "--model", str(p.base)],
    "name of data, not UTF-8, shown": lambda p: [
        "show", named(p, NOT_UTF8), "--model", str(p.base)
    ],
    "name of a folder": lambda p: ["check", str(place_in(p, HOSTILE))],
    "no such data": lambda p: ["check", HOSTILE],
    "no such model": lambda p: ["show", str(p.data), "--model", HOSTILE],
    "no such run": lambda p: ["report", HOSTILE],
    "no such command": lambda p: [HOSTILE],
    "no such option": lambda p: ["check", f"--{HOSTILE}"],
    "no such loss": lambda p: ["losses", HOSTILE],
    "--columns": lambda p: ["check", str(p.data), "--columns", HOSTILE],
    "--gate": lambda p: ["check", str(p.data), "--gate", HOSTILE],
    "--html": lambda p: ["check", str(p.data), "--html", str(p.folder / HOSTILE)],
    "--fix": lambda p: ["check", str(p.data), "--fix", str(p.folder / f"{HOSTILE}.jsonl")],
    "--template": lambda p: [*template(p, "{{ x }}"), "--template", f"{HOSTILE}=1"],
    "--row": lambda p: ["show", str(p.data), "--model", str(p.base), "--row", HOSTILE],
    "key on the line": lambda p: ["train", f"{HOSTILE}=1"],
    "option for a key": lambda p: ["train", "c.yaml", f"--{HOSTILE}", HOSTILE],
    "key of a config": lambda p: config(p, **{HOSTILE: 1}),
    "key below": lambda p: config(p, model={"path": str(p.base), HOSTILE: HOSTILE}),
    "value of a config": lambda p: config(p, loss={"name": HOSTILE}),
    "number of a config": lambda p: config(p, train={"steps": HOSTILE}),
    "path in a config": lambda p: config(p, out=HOSTILE),
    "model of a config": lambda p: config(p, model={"path": HOSTILE}),
    "target of an adapter": lambda p: config(p, adapter={"kind": "lora", "targets": [HOSTILE]}),
    "holder of a lock": locked,
    "column": lambda p: ["check", rows(p, **{HOSTILE: "x"})],
    "unknown column": lambda p: ["check", rows(p, chosen=None, **{HOSTILE: "x"})],
    "column of Parquet": lambda p: ["check", columns_of_parquet(p)],
    "prompt": lambda p: ["check", rows(p, prompt=HOSTILE, chosen="b", rejected=HOSTILE)],
    "prompt, shown": lambda p: [
        "show", rows(p, prompt=HOSTILE, chosen="b", rejected=HOSTILE), "--model", str(p.base)
    ],
    "role": lambda p: ["check", rows(p, prompt=[{"role": HOSTILE, "content": "a"}])],
    "key of a message": lambda p: [
        "show", rows(p, prompt=[{"role": "user", "content": "a", HOSTILE: "b"}]),
        "--model", str(p.base),
    ],
    "error of a template": lambda p: template(p, RAISES),
    "text of a template": lambda p: template(p, HOSTILE + "{{ messages }}"),
    "broken template": lambda p: template(p, "{% " + HOSTILE + " %}"),
    "added token": added_token,
    "kind of adapter": lambda p: adapter(p, peft_type=HOSTILE),
    "base of an adapter": lambda p: adapter(p, peft_type="LORA", base_model_name_or_path=HOSTILE),
    "targets of an adapter": lambda p: adapter(p, peft_type="LORA", target_modules=[HOSTILE]),
    "kind of model": lambda p: model(p, model_type=HOSTILE),
    "activation": lambda p: model(p, hidden_act=HOSTILE),
    "dtype of a model": lambda p: model(p, dtype=HOSTILE),
    "run folder": run_folder,
}  # fmt: skip


def place_in(place: Place, name: str) -> Path:
    folder = place.folder / name
    folder.mkdir()
    write_rows(folder / f"{name}.jsonl", pair_rows(3))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_no_control_character_leaves(
    place: Place, name: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code = main(CASES[name](place))
    out, err = capfdbinary.readouterr()
    assert code != 70, err.decode()
    assert "Traceback" not in harmless(out) + harmless(err)


def test_debug_tells_no_more_control_characters(
    place: Place, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main([*config(place, loss={"name": HOSTILE}), "--debug"]) == 2
    assert harmless(capfdbinary.readouterr().err).startswith("Traceback")


class Elements(HTMLParser):
    """The elements of a page in their order, with the names of their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))


MARKUP = '"><img src=x onerror=alert(1)></p></script><script>x</script><b onclick=x>{{ 7 * 7 }}'


@pytest.mark.parametrize("command", ["check", "show"])
def test_small_pages_gain_no_element(place: Place, command: str) -> None:
    """The same page, once with plain words and once with markup wherever a stranger may write."""
    found = []
    for number, word in enumerate(("W" * len(MARKUP), MARKUP)):
        folder = place.folder / f"{number}"
        folder.mkdir()
        data = folder / f"{word.replace('/', '')}.jsonl"
        given = [{"prompt": word, "chosen": word, "rejected": word, word: word}, [word],
                 {"prompt": [{"role": word, "content": word}], "chosen": word, "rejected": "b"},
                 {"prompt": word, "chosen": f"a {word}", "rejected": "b"}]  # fmt: skip
        data.write_text("".join(json.dumps(row) + "\n" for row in given))
        page = folder / "page.html"
        model = ["--model", str(place.base), "-n", "9"] if command == "show" else []
        assert main([command, str(data), *model, "--html", str(page)]) in (0, 65)
        written = page.read_text("utf-8")
        assert word in unescape(written)
        found.append(Elements(written).found)
    assert len(found[0]) > 20
    ours = {element for element in found[0]} | {("mark",)}
    assert {element for element in found[1]} <= ours
    tags = [sorted(tag for tag, *_ in one if tag != "mark") for one in found]
    assert command == "show" or tags[0] == tags[1]


def test_an_error_stays_one_line_of_its_own(
    place: Place, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["check", "x\nerror: another\n.jsonl"]) == 66
    assert harmless(capfdbinary.readouterr().err).startswith(r"error: x\nerror: another\n.jsonl: ")


def test_json_says_the_same_as_before(
    place: Place, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = rows(place, prompt="a", chosen="", rejected="c", **{JSON_SAFE: "x"})
    assert main(["check", named(place, HOSTILE), "--json"]) == 65
    found = json.loads(harmless(capfdbinary.readouterr().out))
    assert "pwned" in found["kinds"][0]["places"][0]["source"]
    assert not Path(data).exists()
    for word in ("\x9b", "\u202e", "\x7f", "\U000e0041", "\ud800"):
        print_through_main(json.dumps({"a\\" + word: word}, ensure_ascii=False))
        assert json.loads(harmless(capfdbinary.readouterr().out)) == {"a\\" + word: word}


def print_through_main(text: str) -> None:
    from likelier.base.foreign import harmless_streams

    with harmless_streams():
        print(text)


LIBRARY = """
import logging, sys, types, warnings

def demo(out, seed, lang):
    warnings.warn({0!r})
    logging.warning({0!r})
    logger = logging.getLogger("library")
    logger.addHandler(logging.StreamHandler())
    logger.error("of a library: %s", {0!r})
    print({0!r})
    sys.stderr.writelines([{0!r}, "\\n"])
    try:
        raise ValueError({0!r})
    except ValueError:
        logging.exception("failed")
    class Fails:
        def __del__(self):
            raise ValueError({0!r})
    Fails()

sys.modules["likelier.demo"] = types.SimpleNamespace(demo=demo)
sys.argv = ["likelier", "demo"]
from likelier.cli import entry
entry()
"""


def test_what_libraries_print_is_harmless_too() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY.format(HOSTILE)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert harmless(done.stdout).count("pwned") == 1
    assert harmless(done.stderr).count("pwned") >= 6


def test_a_stream_that_takes_ascii_only_gets_json_that_can_be_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "값.jsonl", [{"prompt": "a", "chosen": "é", "rejected": "é"}])
    done = subprocess.run(
        [sys.executable, "-m", "likelier", "check", "값.jsonl", "--json"],
        capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (
        json.loads(done.stdout.decode("ascii"))["kinds"][0]["places"][0]["source"] == "값.jsonl:1"
    )


def in_a_terminal(act: Callable[[], object]) -> str:
    """What a terminal receives of stderr and stdout, in order."""
    reader, writer = pty.openpty()
    with open(writer, "w", encoding="utf-8") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "200")
        act()
    said = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # the other end is closed
            break
        said += part
    os.close(reader)
    return said.decode("utf-8")


OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\x1b\[2K|\r")


def own_styles_only(said: str) -> None:
    assert "pwned" in said
    assert "\x1b[8m" not in said and ";8m" not in said
    harmless(OURS.sub("", said).encode())


def test_bars_keep_their_own_movements_only() -> None:
    def work() -> None:
        with bar(f"[red]{HOSTILE}", 3) as advance:
            advance(1, HOSTILE)
            say(HOSTILE)
            print(HOSTILE, file=sys.stderr)
            advance(2, HOSTILE)
        with counting("reading", HOSTILE) as count:
            count(5)

    said = in_a_terminal(work)
    own_styles_only(said)
    assert "\x1b[" in said and "3/3" in said and "[red]a" in said


def test_colours_are_ours(place: Place) -> None:
    def work() -> None:
        assert main(["check", rows(place, prompt=HOSTILE, chosen="b", rejected="b")]) == 65
        assert main(["show", str(place.data), "--model", str(place.base)]) == 65
        console().print(f"[bold]{HOSTILE}", style="green")

    said = in_a_terminal(work)
    own_styles_only(said)
    assert "\x1b[32m[bold]a" in said and re.search(r"\x1b\[[0-9;]*31m", said)
