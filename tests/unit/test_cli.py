"""Commands turn words into calls, and everything that can go wrong into one line and a code."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.support.tiny import tiny_tokenizer

from likelier import cli
from likelier.base import errors
from likelier.base.findings import Finding
from likelier.base.foreign import visible, without_secrets
from likelier.checks.summary import Kind, print_kinds
from likelier.cli import app, main
from likelier.config import json_schema, load_config

COMMANDS = sorted(c.name or c.callback.__name__ for c in app.registered_commands)
GOOD = {"prompt": "파이썬이 뭐야?", "chosen": "배우기 쉬운 언어입니다.", "rejected": "뱀이지~"}


def run(*words: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "likelier", *words], capture_output=True, text=True, **settings
    )


@pytest.fixture
def pairs(tmp_path):
    def write(*rows: dict | str) -> str:
        path = tmp_path / "pairs.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def stand_in(monkeypatch):
    """Replace a module that a command imports by one whose function notes how it is called."""

    def replace(module: str, name: str, effect=None):
        calls = []

        def called(*args, **kwargs):
            calls.append((*args, kwargs) if kwargs else args)
            if isinstance(effect, BaseException):
                raise effect
            return effect

        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: called}))
        return calls

    return replace


# ---- help --------------------------------------------------------------------------------------


def test_the_commands_are_the_published_ones():
    assert {"demo", "check", "show", "score", "train", "report", "env", "schema"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Example: likelier {command}" in said
    assert main(["--help"]) == 0
    first = next(
        c.callback.__doc__
        for c in app.registered_commands
        if (c.name or c.callback.__name__) == command
    )
    assert first.splitlines()[0] in capsys.readouterr().out, "its line is not cut"


def test_no_words_show_the_help(capsys):
    assert main([]) == 0
    assert "likelier demo" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from likelier.cli import main\n"
        f"for words in [[]] + [[c] for c in {COMMANDS}]: assert main([*words, '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'plotly', 'pyarrow'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_answers_in_under_half_a_second():
    """By processor time of the best of five, so that a busy machine does not fail the test."""

    def seconds() -> float:
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert min(seconds() for _ in range(5)) < 0.5


def test_version(capsys):
    from likelier import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"likelier {__version__}\n"


# ---- wrong words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["xyzzy"], "No such command 'xyzzy'"),
        (["--verzion"], "No such option"),
        (["train"], "Missing argument 'CONFIG'"),
        (["score", "a.jsonl"], "Missing option '--model'"),
        (["check", "a.jsonl", "--modle", "m"], "--model"),
        (["show", "a.jsonl", "--model", "m", "-n", "0"], "'-n'"),
        (["demo", "--seed", "x"], "'--seed'"),
        (["check", "a.jsonl", "--columns", "prompt"], "'prompt' is not ours=theirs"),
        (["check", "a", "--columns", "prompt=q", "--columns", "prompt=r"], "given twice"),
        (["check", "a", "--template", "x"], "'x' is not name=value"),
        (["check", "a", "--template", "x=1"], "--template: has no effect without a model"),
        (["train", "loss.beta=0.1"], "model: is needed"),
        (["train", "learning_rate=1e-6"], "write optim.lr: 1.0e-06"),
    ],
)
def test_wrong_words_are_usage_errors(words, said, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and said in err
    assert "Traceback" not in err and len(err.splitlines()) <= 3


def test_a_missing_config_file_is_missing_input(capsys):
    assert main(["train", "absent.yaml"]) == 66
    assert capsys.readouterr().err.startswith("error: absent.yaml: there is no such file\n")


# ---- what commands call ------------------------------------------------------------------------


def test_demo(stand_in):
    calls = stand_in("likelier.demo", "demo")
    assert main(["demo", "--out", "runs/x", "--seed", "3"]) == 0
    assert main(["demo", "--lang", "ko"]) == 0
    assert calls == [
        (Path("runs/x"), {"seed": 3, "lang": None}),
        (Path("runs/demo"), {"seed": 0, "lang": "ko"}),
    ]


def test_train_reads_the_config_before_anything_else(stand_in, tmp_path, monkeypatch):
    calls = stand_in("likelier.run", "train")
    monkeypatch.setattr("likelier.commands.train.first_look", lambda config: True)
    path = tmp_path / "config.yaml"
    path.write_text("model: {path: m}\ndata: {train: a.jsonl}\nout: runs/a\n")
    assert main(["train", str(path), "loss.beta=0.3", "out=runs/b"]) == 0
    assert main(["train", "model.path=m", "data.train=a", "out=b"]) == 0
    assert main(["train", str(path), "loss.beta=-1"]) == 2
    assert [(c.model.path, c.loss.beta, c.out) for (c,) in calls] == [
        ("m", 0.3, Path("runs/b")),
        ("m", 0.1, Path("b")),
    ]


def test_train_takes_a_file_whose_name_holds_an_equals_sign(stand_in, tmp_path, monkeypatch):
    calls = stand_in("likelier.run", "train")
    monkeypatch.setattr("likelier.commands.train.first_look", lambda config: True)
    monkeypatch.chdir(tmp_path)
    Path("beta=0.3").write_text("model: {path: m}\ndata: {train: a}\nout: o\n")
    assert main(["train", "beta=0.3"]) == 0
    assert calls[0][0].out == Path("o")


def test_show_and_score(stand_in):
    shown, scored = (
        stand_in("likelier.commands.show", "show"),
        stand_in("likelier.commands.score", "score"),
    )
    columns = ["--columns", "prompt=질문", "--columns", "chosen=a=b"]
    assert main(["show", "a.jsonl", "--model", "m", "-n", "2", *columns]) == 0
    assert main(["score", "a.jsonl", "--model", "m", "--out", "o.jsonl"]) == 0
    settings = ["--chat", "--template", "thinking=false", "--dtype", "float32"]
    assert main(["score", "a.jsonl", "--model", "m", *settings]) == 0
    assert main(["score", "a.jsonl", "--model", "m", "--dtype", "int8"]) == 2
    named = {"prompt": "질문", "chosen": "a=b"}
    assert shown == [(Path("a.jsonl"), "m", 2, named, False, {}, None, None, None)]
    assert scored == [
        (Path("a.jsonl"), "m", Path("o.jsonl"), {}, False, {}, "auto"),
        (Path("a.jsonl"), "m", None, {}, True, {"thinking": False}, "float32"),
    ]


def test_report_says_where_it_is(stand_in, capsys):
    calls = stand_in("likelier.report.page", "write_report", Path("runs/a/report.html"))
    assert main(["report", "runs/a"]) == 0
    assert main(["report", "runs/a", "--lang", "ko"]) == 0
    assert calls == [(Path("runs/a"), None), (Path("runs/a"), "ko")]
    assert capsys.readouterr().out == "runs/a/report.html\n" * 2


def test_versions_are_checked_before_work(stand_in, monkeypatch, capsys):
    calls = stand_in("likelier.demo", "demo")
    monkeypatch.setattr("likelier.base.environment._installed", lambda name: "0.1")
    assert main(["demo"]) == 2
    assert calls == [] and "torch 0.1" in capsys.readouterr().err


def test_schema_is_the_configs(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_env_is_text_for_people_and_machines():
    done = run("env", env={**os.environ, "HF_TOKEN": "hf_canary012345"})
    told = yaml.safe_load(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert str(told["packages"]["torch"]).startswith("2.")
    assert "canary" not in done.stdout


# ---- check -------------------------------------------------------------------------------------


def test_check_of_good_data(pairs, capsys):
    assert main(["check", path := pairs(GOOD)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rows with a chosen and a rejected answer (texts, used without a chat template); "
        "columns: prompt, chosen, rejected",
        f"an example, {path}:1:",
        f"  prompt (prompt): {GOOD['prompt']}",
        f"  chosen (chosen): {GOOD['chosen']}",
        f"  rejected (rejected): {GOOD['rejected']}",
        "1 pair of 1 prompt",
        "1 of 1 rows can be used",
    ]


def test_check_names_places_and_ends_with_65(pairs, capsys):
    path = pairs(GOOD, '{"prompt": ', {**GOOD, "rejected": None})
    assert main(["check", path]) == 65
    said = capsys.readouterr().out
    assert f"error {path}:2" in said and f"error {path}:3 rejected: " in said
    assert "1 of 3 rows can be used" in said


def test_check_as_json(pairs, capsys):
    path = pairs(GOOD, GOOD, "{")
    assert main(["check", path, "--json"]) == 65
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["usable"]) == (3, 2)
    assert {(kind["severity"], kind["count"]) for kind in told["kinds"]} == {
        ("error", 1),
        ("warning", 1),
    }
    assert [place["source"] for place in told["places"]] == [f"{path}:3", f"{path}:2"]


def test_check_with_other_column_names(pairs, capsys):
    path = pairs({"질문": "q", "chosen": "a", "rejected": "b"})
    assert main(["check", path]) == 65
    assert main(["check", path, "--columns", "prompt=질문"]) == 0


def test_check_for_a_model_finds_what_its_template_cannot_do(pairs, tmp_path, capsys):
    chat = [{"role": "user", "content": "파이썬이 뭐야?"}]
    answers = {
        side: [{"role": "assistant", "content": GOOD[side]}] for side in GOOD if side != "prompt"
    }
    path = pairs(GOOD, {"prompt": chat, **answers})
    folder = tmp_path / "model"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "exaone4", "eos_token_id": 1}')
    assert main(["check", path, "--model", str(folder)]) == 0
    assert "2 of 2 rows can be used" in capsys.readouterr().out
    (folder / "chat_template.jinja").unlink()
    assert main(["check", path]) == 0, "without the model there is nothing wrong"
    capsys.readouterr()
    assert main(["check", path, "--model", str(folder)]) == 65
    said = capsys.readouterr().out
    assert f"error {path}:2" in said and "1 of 2 rows can be used" in said
    assert main(["check", path, "--model", str(tmp_path / "absent")]) == 66


def test_check_of_a_file_that_is_not_there(capsys):
    assert main(["check", "absent.jsonl"]) == 66
    assert capsys.readouterr().err.startswith("error: absent.jsonl: ")


def test_a_long_place_stays_on_one_line(capsys):
    place = Finding("x", "error", "a/" * 200 + "f.jsonl:7", "chosen", "m" * 300, "fix it")
    print_kinds((Kind("x", "error", 30, (place,)),), rows=30, usable=0)
    said = capsys.readouterr().out
    assert f"error {place.where}: {place.message}\n" in said
    assert "and 29 more x; --all shows them\n0 of 30 rows can be used\n" in said


def test_five_places_of_a_finding_are_shown_and_all_where_asked(capsys, pairs):
    path = pairs(*[{"prompt": "a"} for _ in range(27)], GOOD)
    places = [f"pairs.jsonl:{number} " for number in range(1, 28)]
    assert main(["check", path]) == 65
    said = capsys.readouterr().out
    assert [place for place in places if place in said] == places[:5]
    assert "and 22 more column; --all shows them" in said
    assert main(["check", path, "--all"]) == 65
    said = capsys.readouterr().out
    assert [place for place in places if place in said] == places and " more " not in said
    assert main(["check", path, "--all", "--json"]) == 65
    found = json.loads(capsys.readouterr().out)
    assert [len(kind["places"]) for kind in found["kinds"]] == [27]


def test_data_cannot_drive_the_terminal(capsys):
    place = Finding("x", "error", "f:1", None, "\x1b[31mred [bold]x[/] \u202ereversed\r\n가", "")
    print_kinds((Kind("x", "error", 1, (place,)),), rows=1, usable=0)
    said = capsys.readouterr().out
    assert r"\x1b[31mred [bold]x[/] \u202ereversed\r\n가" in said
    assert "\x1b" not in said and "\r" not in said
    assert visible("가\u200d나 é") == "가\u200d나 é"


# ---- errors and exit codes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.RunFailed, 1),
        (errors.ConfigError, 2),
        (errors.GateMissed, 3),
        (errors.DataError, 65),
        (errors.InputMissing, 66),
        (errors.OutputError, 73),
    ],
)
def test_our_errors_are_a_message_and_their_code(kind, code, stand_in, capsys):
    stand_in("likelier.demo", "demo", kind("is wrong", where="a.jsonl:3", hint="fix it"))
    assert main(["demo"]) == code
    assert capsys.readouterr().err == "error: a.jsonl:3: is wrong\n  fix it\n"


@pytest.mark.parametrize(("kind", "code"), [(errors.StoppedEarly, 75), (errors.Interrupted, 130)])
def test_a_stop_on_purpose_is_no_error(kind, code, stand_in, capsys):
    stop = kind("stopped after step 3", where="out", hint="the same command resumes from there")
    stand_in("likelier.demo", "demo", stop)
    assert main(["demo"]) == code
    said = capsys.readouterr().err
    assert said == "out: stopped after step 3\n  the same command resumes from there\n"


def test_debug_shows_the_traceback_wherever_it_stands(stand_in, capsys):
    stand_in("likelier.demo", "demo", errors.DataError("is wrong"))
    for words in (["--debug", "demo"], ["demo", "--debug"]):
        assert main(words) == 65
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and said.endswith("error: is wrong\n")


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--epochs", "3"], "train.epochs=3"),
        (["--batch-size=8"], "train.pairs_per_step=8"),
        (["--rank", "4"], "adapter.r=4"),
        (["--learning_rate", "5e-7"], "optim.lr=5.0e-07"),
        (["--bf16"], "model.dtype=bfloat16"),
        (["--beta", "0.2", "loss.name=hinge"], "loss.beta=0.2"),
        (["--model", "some/model"], "model.path=some/model"),
        (["--lora_target_modules", "[q, v]"], "'adapter.targets=[q, v]'"),
    ],
)
def test_an_option_is_answered_with_its_key(words, written, capsys):
    for command in ("train", "plan"):
        assert main([command, "config.yaml", *words]) == 2
        said = capsys.readouterr().err
        assert said.splitlines()[1] == f"  write {written}"
        keys = ["data.train=d.jsonl", "out=o", *shlex.split(written)]
        load_config(None, keys if "model.path=" in written else ["model.path=m", *keys])


def test_a_bug_is_one_line_and_70(stand_in, capsys):
    stand_in("likelier.demo", "demo", RuntimeError("first\nsecond"))
    assert main(["demo"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("error: RuntimeError: first\n") and "--debug" in said
    assert len(said.splitlines()) == 2 and "Traceback" not in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_73(number, stand_in, capsys):
    stand_in("likelier.demo", "demo", OSError(number, "No space left", "runs/demo/x"))
    assert main(["demo"]) == 73
    assert capsys.readouterr().err.startswith("error: runs/demo/x: No space left\n")


def test_other_os_errors_are_bugs(stand_in):
    stand_in("likelier.demo", "demo", OSError(errno.EIO, "Input/output error"))
    assert main(["demo"]) == 70


def test_secrets_are_starred_out(stand_in, capsys):
    leak = "401 for https://me:canary@host/x with hf_CANARYcanary123"
    stand_in("likelier.demo", "demo", RuntimeError(leak))
    assert main(["demo", "--debug"]) == 70
    said = capsys.readouterr().err
    assert "canary" not in said.lower() and "401 for https://***@host/x with ***" in said
    assert without_secrets("hf_hub and shf_abc") == "hf_hub and shf_abc"


def test_an_interrupt_is_130_without_a_traceback(stand_in, capsys):
    stand_in("likelier.demo", "demo", KeyboardInterrupt())
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("where", ["_open_streams", "harmless_streams"])
def test_an_interrupt_before_main_hears_of_it_is_130_too(where, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, where, interrupted)
    monkeypatch.setattr(sys, "argv", ["likelier", "schema"])
    with pytest.raises(SystemExit) as ended:
        cli.entry()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_on_the_real_process():
    code = (
        "import sys, time, types\n"
        "def demo(out, seed, lang):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        "sys.modules['likelier.demo'] = types.SimpleNamespace(demo=demo)\n"
        "sys.argv = ['likelier', 'demo']\n"
        "from likelier.cli import entry; entry()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "interrupted\n"


@pytest.mark.parametrize("words", [["schema"], ["check"], ["--version"]])
def test_a_reader_that_has_gone_is_no_error(words, pairs):
    if words == ["check"]:
        words = ["check", pairs(*["{" for _ in range(30)])]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "likelier", *words],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("word", ["schema", "--version"])
def test_output_onto_a_full_disk_is_73(word):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "likelier", word],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 73
    assert done.stderr.startswith("error: output: No space left") and "Exc" not in done.stderr


def test_a_terminal_without_unicode_gets_escapes(pairs):
    done = run(
        "check",
        pairs({"질문": "q", "chosen": "a"}),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 65 and done.stderr == ""
    assert r"\uc9c8\ubb38" in done.stdout


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_lead_nowhere(closed, pairs, tmp_path):
    """A pipe or file that is opened next must not be taken for the terminal."""
    page = tmp_path / "page.html"
    given = run(
        "check", pairs(GOOD, GOOD), "--html", str(page),
        preexec_fn=lambda: [os.close(number) for number in closed],
    )  # fmt: skip
    assert given.returncode == 0, given
    assert page.read_text().rstrip().endswith("</html>")
    assert ("page: " in given.stderr) is (2 not in closed)


def test_python_without_docstrings():
    given = run("losses", env={**os.environ, "PYTHONOPTIMIZE": "2"})
    assert given.returncode == 2
    assert given.stderr.startswith("error: PYTHONOPTIMIZE, -OO: ")
    assert run("losses", env={**os.environ, "PYTHONOPTIMIZE": "1"}).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ("score", "pairs.jsonl", "--model", "base", "--out"),
        ("check", "pairs.jsonl", "--html"),
        ("show", "pairs.jsonl", "--model", "base", "--html"),
    ],
)
def test_no_result_is_written_over_the_data(words, pairs, capsys):
    path = Path(pairs(GOOD))
    before = path.read_bytes()
    words = [str(path) if word == "pairs.jsonl" else word for word in words]
    assert main([*words, str(path)]) == 73
    assert f"{words[-1]} {path}: this is {path} itself, which is read" in capsys.readouterr().err
    assert path.read_bytes() == before
