"""`gemmule run`, `tokenize`, `show --template` and help texts. Answers come from a script."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image as Picture

from cli_fakes import FakeModel
from gemmule.cli import run_command_line
from gemmule.cli._structure import schema_of, structure_of


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, with the scripted model unless `real`."""
    for name in ("GEMMULE_MODEL", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, stdin: bytes = b"", real: bool = False, **env: str) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for name, value in env.items():
                patch.setenv(name, value)
            if not real:
                model: Any = FakeModel()
                patch.setattr("gemmule.cli.run.open_model", lambda path, options: model)
            capsys.readouterr()
            code = run_command_line([str(argument) for argument in arguments])
            return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def model(tiny_gemma4_path: Path) -> Path:
    return tiny_gemma4_path  # only its header is read where the answers are scripted


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("command", ["run", "chat"])
def test_help_is_short_and_help_all_is_whole(run: Run, command: str) -> None:
    short = run(command, "--help").stdout
    whole = run(command, "--help-all").stdout

    def options(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("  -")]

    assert len(options(short)) <= 14
    assert len(options(whole)) > 30
    for name in ("--top-k", "--video-frames", "--grammar", "--kv"):
        assert name in whole
        assert name not in short


def test_a_question_with_files_and_a_pipe(run: Run, model: Path, picture: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("some words", encoding="utf-8")
    done = run("run", model, "look", picture, note, stdin=b"more\n")
    assert done.stdout == f"you said: look {note}: ``` some words ``` more [Image] \n"
    assert done.stderr == ""
    assert run("run", model, picture, "look").stdout == "you said: look [Image] \n"
    assert run("run", model, "look", stdin=picture.read_bytes()).stdout == "you said: look [Image] \n"
    assert run("run", model, "look", "-a", "-", stdin=picture.read_bytes()).stdout.endswith("[Image] \n")
    assert run("run", model, "-", stdin=b"piped").stdout == "you said: piped \n"
    assert run("run", "look", picture, GEMMULE_MODEL=str(model)).stdout == "you said: look [Image] \n"
    assert run("run", picture, "look", GEMMULE_MODEL=str(model)).stdout == "you said: look [Image] \n"


def test_thinking_goes_to_stderr(run: Run, model: Path) -> None:
    done = run("run", model, "hi", "--think-budget", "9")
    assert (done.stdout, done.stderr) == ("you said: hi \n", "thinking:\nlet me see\n\n")
    for hidden in (["--hide-thinking"], ["-q"]):
        assert run("run", model, "hi", "--think", *hidden).stderr == ""
    coloured = run("run", model, "hi", "--think", FORCE_COLOR="1")
    assert coloured.stderr == "\x1b[2mlet me see\x1b[0m\n\n"


def test_events_and_documents(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("run", model, "hi", "--think", "--jsonl")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events] == ["thinking", "thinking", "text", "text", "reply"]
    assert "".join(event.get("text", "") for event in events[2:-1]) == "you said: hi "
    assert events[-1]["text"] == "you said: hi "
    tools = tmp_path / "tools.py"
    tools.write_text("def add(a: int, b: int) -> int:\n    return a + b\n", encoding="utf-8")
    done = run("run", model, "add", "--jsonl", "--tools", tools, "--yes")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events] == ["tool_call", "tool_result", "text", "reply"]
    assert (events[0]["arguments"], events[1]["result"]) == ({"a": 2, "b": 3}, "5")
    refused = run("run", model, "add", "--tools", tools)
    assert "--yes allows" in refused.stderr
    assert refused.stdout == "the tool said error: the user refused this call\n"
    assert run("run", model, "hi", "--json", "--jsonl").returncode == 2


def test_the_output_has_the_answer_alone(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    done = run("run", model, "hi", "--think", "--stats", "-o", out)
    assert out.read_text(encoding="utf-8") == "you said: hi "
    assert "seed 1" in done.stderr


def test_wrong_requests(
    run: Run, model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.png"
    bad.write_bytes(bytes(range(200, 256)))
    for arguments, code, words in (
        (["hi", bad], 6, "neither an image"),
        (["hi", "none.png"], 2, "put it in quotes"),
        (["hi", "-a", "none.png"], 2, "there is no file none.png"),
        (["hi", "--image", tmp_path], 2, "is a folder"),
        (["hi", "-a", "https://example.org/x.png"], 6, "fetches nothing"),
        (["hi", "--raw", "--think"], 2, "--think needs a chat template, but --raw excludes it"),
        (["hi", "--no-think", "--think-budget", "3"], 2, "exclude each other"),
        (["hi", "--yes"], 2, "--yes goes with --tools"),
        (["hi", "--tools", "none.py"], 2, "there is no file none.py"),
        (["hi", "--tools", picture], 2, "must end in .py"),
        (["hi", "--schema", "{"], 2, "--schema is not JSON"),
        (["hi", "--schema", "none.json"], 2, "there is no file none.json"),
        (["hi", "--schema", "{}", "--regex", "a"], 2, "--schema and --regex exclude each other"),
        (["hi", "-s", "@none.txt"], 2, "there is no file none.txt"),
        (["hi", "--image-tokens", "71"], 2, "--image-tokens"),
        (["hi", "--repeat-penalty", "nan"], 2, "--repeat-penalty"),
        ([], 2, "there is no prompt"),
    ):
        done = run("run", model, *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert structure_of(None, None, (), None) == {}
    assert structure_of(None, "a+", (), None) == {"regex": "a+"}
    assert structure_of(None, None, ("a", "b"), None) == {"choices": ["a", "b"]}
    grammar = tmp_path / "g.lark"
    grammar.write_text('start: "a"', encoding="utf-8")
    assert structure_of(None, None, (), str(grammar)) == {"grammar": 'start: "a"'}
    assert schema_of(' {"type": "object"}') == {"type": "object"}
    (tmp_path / "my_shapes.py").write_text("class Point: ...\n", encoding="utf-8")
    (tmp_path / "my_broken.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert schema_of("py:my_shapes.Point").__name__ == "Point"
    for wrong in ("py:Point", "py:my_shapes.None_", "py:no_such_module.X", "py:my_broken.X", "[]", "{1"):
        with pytest.raises(click.UsageError, match="--schema"):
            schema_of(wrong)


def test_tool_files(tmp_path: Path) -> None:
    from gemmule.cli._toolbox import load_tools

    def names(text: str) -> Any:
        path = tmp_path / "some_tools.py"
        path.write_text(text, encoding="utf-8")
        return [tool.name for tool in load_tools(str(path)).tools]

    assert names("from json import dumps\ndef f(x: int) -> int: ...\ndef _g() -> None: ...\n") == ["f"]
    assert names("__all__ = ['_g']\ndef f() -> None: ...\ndef _g() -> None: ...\n") == ["_g"]
    for text in ("x = 1\n", "1 / 0\n", "def f(:\n"):
        with pytest.raises(click.UsageError, match="--tools"):
            names(text)


def test_a_terminal_gets_no_control_characters() -> None:
    import io

    from gemmule.cli._terminal import printable

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "a\x1b]0;title\x07b\tc\nd\x9b2J\r"
    assert printable(text, Screen()) == "a]0;titleb\tc\nd2J"
    assert printable(text, io.StringIO()) == text


def test_show_template(run: Run, model: Path) -> None:
    done = run("show", model, "--template", real=True)
    assert "<|turn>" in done.stdout
    document = json.loads(run("show", model, "--template", "--json", real=True).stdout)
    assert document["template"] + "\n" == done.stdout
