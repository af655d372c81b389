"""The slash commands of the chat. Each is a function of the chat and of what follows the command's name."""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._chat_settings import SETTINGS
from gemmule.cli._terminal import note, printable

if TYPE_CHECKING:
    from gemmule.cli._repl import Repl

__all__ = ["COMMANDS", "completions", "is_command", "run_command_line"]

_BAR = 30


@dataclasses.dataclass(frozen=True, slots=True)
class _Command:
    run: "Callable[[Repl, str], None]"
    usage: str
    text: str
    values: tuple[str, ...] | None = ()  # what may follow, for completion; None: a path


COMMANDS: dict[str, _Command] = {}
_ALIASES = {"exit": "bye", "quit": "bye", "?": "help"}


def _command(
    usage: str, text: str, values: tuple[str, ...] | None = ()
) -> "Callable[[Callable[[Repl, str], None]], Callable[[Repl, str], None]]":
    def enter(function: "Callable[[Repl, str], None]") -> "Callable[[Repl, str], None]":
        COMMANDS[usage.split()[0]] = _Command(function, usage, text, values)
        return function

    return enter


def completions() -> dict[str, tuple[str, ...] | None]:
    """For each command what may follow it."""
    return {name: command.values for name, command in COMMANDS.items()}


def is_command(line: str) -> bool:
    """Whether a line that begins with a slash begins with the name of a command."""
    name = line[1:].partition(" ")[0].strip()
    return name in COMMANDS or name in _ALIASES


def run_command_line(repl: "Repl", line: str) -> None:
    """Runs a line that begins with a slash."""
    name, _, rest = line[1:].strip().partition(" ")
    name = _ALIASES.get(name, name)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise click.UsageError(f"there is no command /{name}; {hint}")
    COMMANDS[name].run(repl, rest.strip())


def _say(text: str) -> None:
    print(printable(text, sys.stdout), flush=True)


def _path(text: str, what: str) -> Path:
    """A path as it is typed or dragged: maybe in quotes, with backslashes before spaces, or file://."""
    from gemmule.cli._dragged import dragged_files

    if not text:
        raise click.UsageError(f"name the file: {what}")
    if text.startswith("file://") and (found := dragged_files(text)[1]):
        return found[0]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    elif not Path(text).expanduser().exists():
        text = re.sub(r"\\(.)", r"\1", text)
    return Path(text).expanduser()


def _needs_exchange(repl: "Repl") -> None:
    if not repl.conversation.exchanges:
        raise click.UsageError("there is no message yet")


# -- the conversation ----------------------------------------------------------------------------------------


@_command("help", "this list")
def _help(repl: "Repl", _: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values()) + 3
    _say("\n".join(f"/{command.usage:<{width}}{command.text}" for command in COMMANDS.values()))
    _say('""" begins and ends a message of several lines; a file dragged into the window is attached')
    _say("Ctrl-C stops an answer, Ctrl-G opens the editor, Ctrl-D leaves")


@_command("bye", "leave")
def _bye(repl: "Repl", _: str) -> None:
    from gemmule.cli._repl import Leave

    raise Leave


@_command("clear", "forget the conversation")
def _clear(repl: "Repl", _: str) -> None:
    repl.conversation.exchanges.clear()
    repl.pending.clear()
    repl.last = None
    note("the conversation is empty")


@_command("regen", "answer the last message again")
def _regen(repl: "Repl", _: str) -> None:
    _needs_exchange(repl)
    _ask_again(repl, repl.conversation.exchanges[-1].text)


@_command("undo", "forget the last message and its answer")
def _undo(repl: "Repl", _: str) -> None:
    _needs_exchange(repl)
    last = repl.conversation.exchanges.pop()
    note(f"forgotten: {' '.join(last.text.split())[:60]}")


@_command("edit", "change the last message in $EDITOR and send it again")
def _edit(repl: "Repl", _: str) -> None:
    _needs_exchange(repl)
    if not repl.lines.interactive:
        raise click.UsageError("/edit needs a terminal")
    text = click.edit(repl.conversation.exchanges[-1].text, extension=".md")
    if text is None or not text.strip():
        note("unchanged")
        return
    _ask_again(repl, text.strip())


def _ask_again(repl: "Repl", text: str) -> None:
    """The last message anew; if no answer comes, the old one stays."""
    last = repl.conversation.exchanges.pop()
    pending = list(repl.pending)
    answered = False
    try:
        answered = repl.ask(dataclasses.replace(last, text=text, replies=()))
    finally:
        if not answered:
            repl.conversation.exchanges.append(last)
            repl.draft = ""
        repl.pending[:] = pending


@_command("compact", "drop the oldest messages until half of the context is free")
def _compact(repl: "Repl", _: str) -> None:
    exchanges = repl.conversation.exchanges
    total, size = len(exchanges), repl.session.n_ctx
    used = _n_tokens(repl)
    while len(exchanges) > 1 and used > size // 2:
        del exchanges[0]
        used = _n_tokens(repl)
    dropped = total - len(exchanges)
    what = f"dropped the oldest {dropped} of {total} messages and their answers"
    note(f"{what if dropped else 'nothing dropped'}; {used} of {size} tokens in use")


def _n_tokens(repl: "Repl") -> int:
    messages = repl.conversation.messages()
    return int(repl.model.count_tokens(messages)) if messages else 0


# -- files ---------------------------------------------------------------------------------------------------


@_command("save FILE", "keep the conversation in a file (JSON)", None)
def _save(repl: "Repl", rest: str) -> None:
    path = _path(rest, "/save FILE")
    repl.conversation.system = repl.choices.system
    repl.conversation.save(path, repl.path.name)
    note(f"saved {len(repl.conversation.exchanges)} messages in {path}")


@_command("load FILE", "go on with a saved conversation", None)
def _load(repl: "Repl", rest: str) -> None:
    from gemmule.cli._conversation import Conversation

    path = _path(rest, "/load FILE")
    repl.conversation = Conversation.load(path, repl.choices.wishes)
    repl.choices.system = repl.conversation.system
    repl.pending.clear()
    note(f"loaded {len(repl.conversation.exchanges)} messages from {path}")


@_command("export FILE.md", "write the conversation as Markdown", None)
def _export(repl: "Repl", rest: str) -> None:
    from gemmule.cli._output import check_output, write_output

    path = _path(rest, "/export FILE.md")
    check_output(path)
    write_output(path, repl.conversation.markdown(repl.path.name))
    note(f"written to {path}")


@_command("image FILE", "put a picture on the next message", None)
def _image(repl: "Repl", rest: str) -> None:
    repl.attach(str(_path(rest, "/image FILE")), "image")


@_command("audio FILE", "the same for a sound", None)
def _audio(repl: "Repl", rest: str) -> None:
    repl.attach(str(_path(rest, "/audio FILE")), "audio")


@_command("video FILE", "the same for a video", None)
def _video(repl: "Repl", rest: str) -> None:
    repl.attach(str(_path(rest, "/video FILE")), "video")


@_command("file FILE", "the same for a text", None)
def _file(repl: "Repl", rest: str) -> None:
    repl.attach(str(_path(rest, "/file FILE")), "text")


@_command("paste", "the same for the picture or the files in the clipboard")
def _paste(repl: "Repl", _: str) -> None:
    import io

    from PIL import ImageGrab

    try:
        found = ImageGrab.grabclipboard()
    except (NotImplementedError, OSError) as error:
        raise click.UsageError(f"the clipboard cannot be read: {error}") from None
    if isinstance(found, list):
        for name in found:
            repl.attach(name)
    elif found is not None:
        data = io.BytesIO()
        found.save(data, "PNG")
        repl.attach_data(data.getvalue(), "clipboard")
    else:
        note("the clipboard holds no picture and no file")


@_command("attachments", "files on the next message")
def _attachments(repl: "Repl", _: str) -> None:
    rows = [f"{i}: {attachment}" for i, attachment in enumerate(repl.pending, 1)]
    _say("\n".join(rows) or "no files")


@_command("drop N", "take file N off the next message")
def _drop(repl: "Repl", rest: str) -> None:
    if not rest.isdecimal() or len(rest) > 6 or not 0 < int(rest) <= len(repl.pending):
        raise click.UsageError("/drop N: N is a number of /attachments")
    note(f"dropped {repl.pending.pop(int(rest) - 1)}")


# -- settings ------------------------------------------------------------------------------------------------


@_command("set NAME VALUE", "change a setting; /set alone shows them", tuple(SETTINGS))
def _set(repl: "Repl", rest: str) -> None:
    name, _, value = rest.partition(" ")
    if not value.strip():
        names = [name] if name in SETTINGS else list(SETTINGS)
        _say("\n".join(f"{each:<16}{repl.choices.shown(each)}" for each in names))
        return
    before = repl.choices.n_ctx
    said = repl.choices.change(name, value.strip())
    if repl.choices.n_ctx != before:
        try:
            repl.reopen()
        except BaseException:
            repl.choices.n_ctx = before
            raise
    note(said)


@_command("tools on|off|FILE.py", "offer the functions of a Python file", ("on", "off"))
def _tools(repl: "Repl", rest: str) -> None:
    from gemmule.cli._toolbox import load_tools

    if rest in ("on", "off"):
        if repl.toolbox is None and rest == "on":
            raise click.UsageError("name the file: /tools FILE.py")
        repl.tools_on = rest == "on"
    elif rest:
        repl.toolbox = load_tools(str(_path(rest, "/tools FILE.py")))
        repl.tools_on = True
    note(f"tools: {repl.toolbox}" if repl.toolbox and repl.tools_on else "tools are off")


@_command("json on|off|SCHEMA", "answer in JSON; SCHEMA is a file or the schema itself", ("on", "off"))
def _json(repl: "Repl", rest: str) -> None:
    from gemmule.cli._structure import schema_of

    if rest == "off":
        repl.choices.form = {}
    elif rest == "on":
        repl.choices.form = {"schema": {"type": "object"}}
    elif rest:
        repl.choices.form = {"schema": schema_of(rest)}
    note("answers are JSON" if repl.choices.form else "answers are text")


@_command("model NAME", "go on with another model", None)
def _model(repl: "Repl", rest: str) -> None:
    from gemmule.cli._common import find_model
    from gemmule.cli.chat import check_template

    if not rest:
        _say(f"{repl.model.info}")
        return
    path = find_model(str(_path(rest, "/model NAME")))
    check_template(path)
    repl.reopen(path)
    note(f"{path.name}, context of {repl.session.n_ctx} tokens")


@_command("status", "context, speed, memory")
def _status(repl: "Repl", _: str) -> None:
    used, size = repl.session.n_tokens, repl.session.n_ctx
    filled = min(_BAR, round(_BAR * used / size))
    rows: dict[str, Any] = {
        "model": repl.model.info,
        "context": f"[{'#' * filled}{'.' * (_BAR - filled)}] {used} of {size} tokens",
        "messages": f"{len(repl.conversation.exchanges)}, {len(repl.pending)} files waiting",
    }
    if repl.last is not None:
        rows["last answer"] = f"{repl.last.usage}; finish {repl.last.finish_reason}, seed {repl.last.seed}"
        rows["speed"] = repl.last.timings
    rows["tools"] = repl.toolbox if repl.toolbox is not None and repl.tools_on else "off"
    rows["thinking"] = repl.choices.shown("think")
    _say("\n".join(f"{name:<14}{value}" for name, value in rows.items()))
    plan = dataclasses.replace(repl.model.plan, reason="")  # it names arguments of the library
    _say(f"{plan}")
