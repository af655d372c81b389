"""The chat: what it keeps, its slash commands, and how it behaves on a terminal. The model is a script."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from cli_fakes import FakeModel
from gemmule import Image
from gemmule.cli._chat_settings import ChatSettings
from gemmule.cli._repl import Repl

TESTS = Path(__file__).resolve().parent


class Script:
    """Lines as a user types them; `None` is Ctrl-C at the prompt."""

    def __init__(self, *lines: str | None, interactive: bool = False) -> None:
        self.interactive = interactive
        self.drafts: list[str] = []
        self._lines: Iterator[str | None] = iter(lines)

    def line(self, prompt: str, text: str = "") -> str:
        self.drafts.append(text)
        try:
            line = next(self._lines)
        except StopIteration:
            raise EOFError from None
        if line is None:
            raise KeyboardInterrupt
        return line


def chat(*lines: str | None, n_ctx: int = 200, interactive: bool = False, **more: Any) -> tuple[Repl, int]:
    model: Any = FakeModel(n_ctx)
    script = Script(*lines, interactive=interactive)
    repl = Repl(lambda path: model, Path("fake.gguf"), script, ChatSettings(), **more)
    return repl, repl.run()


def seen(repl: Repl) -> list[Any]:
    model: Any = repl.model
    requests: list[Any] = model.seen
    return requests


def texts(repl: Repl, turn: int = -1) -> list[str]:
    return [message.text for message in seen(repl)[turn][0]]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


def test_a_conversation_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    repl, code = chat("hello", "", "again")
    assert code == 0
    assert texts(repl) == ["hello", "you said: hello ", "again"]
    assert capsys.readouterr().out == "you said: hello \nyou said: again \n"


def test_several_lines_are_one_message() -> None:
    repl, _ = chat('"""one', "two", 'three"""', '"""four"""', '"""', "/five", '"""')
    assert [each.text for each in repl.conversation.exchanges] == ["one\ntwo\nthree", "four", "/five"]


def test_clear_undo_and_regen(capsys: pytest.CaptureFixture[str]) -> None:
    repl, _ = chat("a", "b", "/undo", "/regen", "/clear", "c")
    assert texts(repl, 2) == ["a"]
    assert texts(repl) == ["c"]
    assert "forgotten: b" in capsys.readouterr().err
    repl, code = chat("/regen")
    assert code == 2
    assert "no message yet" in capsys.readouterr().err


def test_a_failed_regen_keeps_the_old_answer() -> None:
    repl, code = chat("a", "b", n_ctx=30)
    assert code == 0
    repl.lines = Script("/regen")
    model: Any = repl.model
    repl.session.n_ctx = 1
    assert repl.run() == 2
    assert [each.text for each in repl.conversation.exchanges] == ["a", "b"]
    assert model.seen[-1][0][-1].text == "b"


def test_files_wait_for_the_message(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("tea", encoding="utf-8")
    repl, _ = chat(
        f"/image {picture}", f"'{picture}'", f"/file {note}", "/attachments", "/drop 2", f"see {note}", "next"
    )
    out = capsys.readouterr().out
    assert f"2: image {picture}" in out
    assert "[Image]" in out
    first = seen(repl)[0][0][0]
    assert [type(part) for part in first.content] == [Image, str]
    assert first.text.count("tea") == 2
    assert first.text.startswith("see\n\n")
    assert seen(repl)[1][0][-1].content == ("next",)
    assert chat("/drop 1")[1] == 2
    assert chat("/image none.png")[1] == 2
    assert chat("/file " + str(picture))[1] == 6


def test_settings_reach_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array"}', encoding="utf-8")
    repl, code = chat(
        "/set temperature 0.5", "/set think 64", "/set system Be kind.", "/set seed 3", "/set draft off",
        "/json on", "a", "/set temperature default", "/set draft 3", "/set think off", f"/json {schema}", "b",
        "/json off", "c", "/set",
    )  # fmt: skip
    assert code == 0
    first, second, third = (options for _, options in seen(repl))
    assert (first["temperature"], first["think"], first["seed"]) == (0.5, 64, 3)
    assert first["schema"] == {"type": "object"}
    assert (first["draft"], second["draft"]) == (False, 3)
    assert (second["temperature"], second["think"], second["schema"]) == (None, False, {"type": "array"})
    assert "schema" not in third
    assert texts(repl, 0) == ["Be kind.", "a"]
    assert re.search(r"^seed +3$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [
        "/set temperature hot", "/set temperature -1", "/set top_k 1.5", "/set think maybe", "/set nothing 1",
        "/set image_tokens 71", "/set draft maybe", "/set ctx auto",
        "/set max_tokens 0", "/nosuch", "/json none.json",
        "/tools on", "/tools none.py", "/drop x", "/save", "/load none.json", "/set system @none.txt",
        "/model none.gguf",
    ],
)  # fmt: skip
def test_wrong_commands_are_one_line_each(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    repl, code = chat(line, "still there")
    assert code in (2, 3)
    captured = capsys.readouterr()
    assert captured.err.startswith("gemmule: ")
    assert captured.err.count("\n") == 1
    assert captured.out == "you said: still there \n"
    assert len(repl.conversation.exchanges) == 1


def test_a_near_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    chat("/claer", "/exit", "never")
    captured = capsys.readouterr()
    assert "did you mean /clear?" in captured.err
    assert captured.out == ""


def test_save_load_and_export(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, page = tmp_path / "talk.json", tmp_path / "talk.md"
    tools = tmp_path / "tools.py"
    tools.write_text("def add(a: int, b: int) -> int:\n    return a + b\n", encoding="utf-8")
    repl, code = chat(
        "/set system Be kind.", f"/image {picture}", "what is it", f"/tools {tools}", "please add",
        "/tools off", f"/save {saved}", f"/export {page}",
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    again, code = chat(f"/load {saved}", "and now")
    assert code == 0, capsys.readouterr().err
    before = repl.conversation.messages()
    after = list(seen(again)[0][0])
    assert [m.to_dict()["role"] for m in after[:-1]] == [m.role for m in before]
    assert [(m.text, m.tool_calls, m.tool_call_id) for m in after[:-1]] == [
        (m.text, m.tool_calls, m.tool_call_id) for m in before
    ]
    assert [len(m.media) for m in after] == [len(m.media) for m in before] + [0]
    text = page.read_text(encoding="utf-8")
    assert "## You\n\n*image" in text
    assert "Calls `add`" in text
    document = json.loads(saved.read_text(encoding="utf-8"))
    assert len(document["exchanges"][0]["attachments"][0]["sha256"]) == 64
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert chat(f"/load {saved}")[1] == 6
    assert "has changed since" in capsys.readouterr().err
    picture.unlink()
    assert chat(f"/load {saved}")[1] == 6


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"format": "gemmule-chat"}', '{"format": "gemmule-chat", "version": 1}', "[" * 100000,
        '{"format": "gemmule-chat", "version": 1, "system": null, "exchanges": [{"text": 1}]}',
        '{"format": "gemmule-chat", "version": 1, "system": 1, "exchanges": []}',
        '{"format": "gemmule-chat", "version": 1, "system": null, "exchanges":'
        ' [{"text": "", "attachments": [{"kind": "text", "name": "x", "text": 1}], "replies": []}]}',
    ],
)  # fmt: skip
def test_what_is_no_saved_conversation(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    repl, code = chat("keep", f"/load {path}")
    assert code == 3
    assert str(path) in capsys.readouterr().err
    assert len(repl.conversation.exchanges) == 1


def test_tools_are_called_with_consent_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text(
        'def add(a: int, b: int) -> int:\n    """Add."""\n    return a + b\n\ndef _hidden() -> None: ...\n',
        encoding="utf-8",
    )
    repl, _ = chat(f"/tools {tools}", "add two and three")
    captured = capsys.readouterr()
    assert "refused" in captured.err
    assert "the tool said error:" in captured.out
    assert len(repl.conversation.exchanges[0].replies) == 3
    from gemmule.cli._toolbox import load_tools

    repl, _ = chat("add two and three", toolbox=load_tools(str(tools), always=True))
    captured = capsys.readouterr()
    assert "the tool said 5" in captured.out
    assert "add(a=2, b=3) -> 5" in captured.err


def test_a_full_context_is_said_and_compact_makes_room(capsys: pytest.CaptureFixture[str]) -> None:
    repl, code = chat("one two three", "four five six", "seven eight", "/compact", "seven eight", n_ctx=35)
    captured = capsys.readouterr()
    assert code == 2
    assert "the context is full" in captured.err
    assert "dropped the oldest 1 of 2 messages" in captured.err
    assert [each.text for each in repl.conversation.exchanges] == ["four five six", "seven eight"]


def test_an_error_takes_the_message_back(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repl, _ = chat(f"/image {picture}", "fail", interactive=True)
    assert "it failed" in capsys.readouterr().err
    assert repl.conversation.exchanges == []
    assert len(repl.pending) == 1
    script: Any = repl.lines
    assert script.drafts == ["", "", "fail"]


def test_the_clipboard(monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    from PIL import ImageGrab

    for found in (Picture.new("RGB", (3, 2)), [str(picture)]):
        monkeypatch.setattr(ImageGrab, "grabclipboard", lambda found=found: found)
        repl, code = chat("/paste", "look")
        assert code == 0
        assert len(seen(repl)[0][0][0].media) == 1

    def missing() -> None:
        raise NotImplementedError("no clipboard here")

    monkeypatch.setattr(ImageGrab, "grabclipboard", missing)
    assert chat("/paste")[1] == 2


def test_another_model(tmp_path: Path, tiny_gemma3_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repl, code = chat("hello", f"/model {tiny_gemma3_path}", "again", "/set ctx 4k", "/model")
    assert code == 0, capsys.readouterr().err
    assert repl.path == tiny_gemma3_path
    assert repl.session.n_ctx == 4096
    assert texts(repl) == ["hello", "you said: hello ", "again"]


def test_ctrl_c_at_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    _, code = chat(None, "hello", interactive=True)
    captured = capsys.readouterr()
    assert code == 0
    assert "Ctrl-D or /bye leaves" in captured.err
    assert "hello" in captured.out
    assert chat(None, None, "hello", interactive=True)[1] == 130


def test_status_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    chat("hello there", "/status", "/help")
    out = capsys.readouterr().out
    assert re.search(r"\[#+\.+\] \d+ of 200 tokens", out)
    for word in ("/regen", "/export", "Ctrl-G"):
        assert word in out


# -- as a process --------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "cli_fakes"]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    state = {"GEMMULE_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": path, "TERM": "xterm"}
    state["PROMPT_TOOLKIT_NO_CPR"] = "1"  # nobody answers here where the cursor is
    return {**os.environ, "PYTHONIOENCODING": "utf-8", **state, **more}


def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "fake.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_piped_lines_are_messages(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "chat", str(model_file(tmp_path)), "--think"],
        input="hello\n/set think off\nbye é\n/nosuch\nlast",
        capture_output=True, encoding="utf-8", env=environment(tmp_path), check=False,
    )  # fmt: skip
    assert done.stdout == "you said: hello \nyou said: bye é \nyou said: last \n"
    assert done.stderr == (
        "thinking:\nlet me see\n\nthink is off\ngemmule: there is no command /nosuch; /help lists them\n"
    )
    assert done.returncode == 2
    assert not (tmp_path / "state").exists()


class Terminal:
    """A pseudo terminal with the chat in it; what it shows collects in `shown`."""

    def __init__(self, tmp_path: Path, *arguments: str, module: str = "cli_fakes", **env: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=slave, stdout=slave, stderr=slave, env=environment(tmp_path, **env), start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self._read = 0  # where the last expected text ended

    def expect(self, text: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown[self._read :]:
            assert time.monotonic() < end, f"no {text!r} in {self.shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"ended before {text!r}: {self.shown!r}") from None
        self._read = self.shown.index(text, self._read) + len(text)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self, seconds: float = 30.0) -> int:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                if select.select([self.master], [], [], 0.1)[0] and not os.read(self.master, 65536):
                    break
        except OSError:  # the other side is closed
            pass
        code = self.process.wait(timeout=30)
        os.close(self.master)
        return code

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_ctrl_c_keeps_the_partial_answer(tmp_path: Path, term: str) -> None:
    with Terminal(tmp_path, "chat", str(model_file(tmp_path)), TERM=term) as terminal:
        terminal.expect(">>>")
        terminal.type("count\r")
        terminal.expect("3 4 ")
        terminal.type("\x03")
        terminal.expect("the answer so far is kept")
        terminal.expect(">>>")
        time.sleep(1.1)
        terminal.type(f"/save {tmp_path / 'talk.json'}\r")
        terminal.expect("saved 1 messages")
        terminal.expect(">>>")
        terminal.type("\x03")
        terminal.expect("leaves")
        terminal.expect(">>>")
        terminal.type("\x04")
        assert terminal.end() == 0
    (exchange,) = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["exchanges"]
    kept = exchange["replies"][0]["content"]
    assert kept.startswith("0 1 2 3 4 ")
    assert "99" not in kept


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_terminal_has_history_styles_and_completion(tmp_path: Path) -> None:
    editor = {"EDITOR": "sed -i s/hello/bye/", "VISUAL": ""}
    with Terminal(tmp_path, "run", str(model_file(tmp_path)), "--think", **editor) as terminal:
        terminal.expect(">>>")
        terminal.type("hello\r")
        terminal.expect("\x1b[2mlet me see\x1b[0m")
        terminal.expect("you said: hello")
        terminal.expect(">>>")
        terminal.type("/atta\t")
        terminal.expect("chments")
        terminal.type("\r")
        terminal.expect("no files")
        terminal.type("/edit\r")
        terminal.expect("you said: bye")
        terminal.expect(">>>")
        terminal.type("/bye\r")
        assert terminal.end() == 0
    history = tmp_path / "state" / "chat_history"
    assert "+hello" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0
    with Terminal(tmp_path, "chat", str(model_file(tmp_path)), "--no-history", NO_COLOR="1") as terminal:
        terminal.expect(">>>")
        terminal.type("secret words\r")
        terminal.expect("you said: secret")
        terminal.expect(">>>")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "\x1b[2m" not in terminal.shown
    assert "secret" not in history.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_the_terminal_is_asked_before_a_tool_runs(tmp_path: Path) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text("def add(a: int, b: int) -> int:\n    return a + b\n", encoding="utf-8")
    with Terminal(tmp_path, "chat", str(model_file(tmp_path)), "--tools", str(tools)) as terminal:
        terminal.expect(">>>")
        terminal.type("add\r")
        terminal.expect("call add(a=2, b=3)?")
        terminal.type("n\r")
        terminal.expect("the tool said error: the user refused")
        terminal.expect(">>>")
        terminal.type("add\r")
        terminal.expect("call add(a=2, b=3)?")
        terminal.type("a\r")
        terminal.expect("the tool said 5")
        terminal.expect(">>>")
        terminal.type("add\r")
        terminal.expect("the tool said 5")
        terminal.expect(">>>")
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_real_model_is_stopped_and_goes_on(tmp_path: Path, tiny_gemma4_path: Path) -> None:
    command = ["chat", str(tiny_gemma4_path), "--seed", "1", "--ctx", "64k", "--temperature", "0"]
    with Terminal(tmp_path, *command, module="gemmule") as terminal:
        terminal.expect(">>>")
        terminal.type("hello there\r")
        terminal.expect("\r\n")
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.expect("stopped")
        terminal.expect(">>>")
        terminal.type("\x15/clear\r")  # Ctrl-U: the message may have been taken back
        terminal.expect("is empty")
        terminal.expect(">>>")
        terminal.type("/set max_tokens 3\r")
        terminal.expect("max_tokens is 3")
        terminal.expect(">>>")
        terminal.type("hello\r")
        terminal.expect(">>>")
        terminal.type("/status\r")
        terminal.expect("3 completion tokens; finish length, seed 1")
        terminal.expect(">>>")
        terminal.type("\x04")
        assert terminal.end() == 0
