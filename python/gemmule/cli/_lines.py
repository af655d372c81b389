"""Where a chat's messages come from: a terminal with editing, history and completion, or plain lines.

Three double quotes begin a message of several lines, and three more end it.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

__all__ = ["Lines", "PlainLines", "TerminalLines", "open_lines", "read_message", "state_dir"]

_QUOTES = '"""'


class Lines(Protocol):
    """A source of lines. EOFError ends it; KeyboardInterrupt is Ctrl-C."""

    interactive: bool

    def line(self, prompt: str, text: str = "") -> str:
        """The next line; `text` is there to be edited first."""
        ...


class PlainLines:
    """Lines of standard input, as they come through a pipe or from a terminal without abilities."""

    def __init__(self) -> None:
        self.interactive = sys.stdin is not None and sys.stdin.isatty()

    def line(self, prompt: str, text: str = "") -> str:
        if self.interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        data = b"" if sys.stdin is None or sys.stdin.closed else sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        return data.decode("utf-8-sig", "replace").rstrip("\r\n")


class TerminalLines:
    """Lines from prompt_toolkit: history, completion, Ctrl-G for the editor; pasted lines stay together."""

    interactive = True

    def __init__(self, history: Path | None, completer: "Completer") -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("c-g")
        def _(event: Any) -> None:
            event.current_buffer.open_in_editor()

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history is not None else InMemoryHistory(),
            completer=completer,
            complete_while_typing=False,
            key_bindings=keys,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
        )

    def line(self, prompt: str, text: str = "") -> str:
        return self._session.prompt(prompt, default=text)


def open_lines(keep_history: bool, completer: "Callable[[], Completer]") -> Lines:
    """The source that fits: prompt_toolkit only where both ends are a capable terminal."""
    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if not terminal or os.environ.get("TERM", "dumb") == "dumb":
        return PlainLines()
    return TerminalLines(_history_file() if keep_history else None, completer())


def read_message(lines: Lines, text: str = "") -> tuple[str, bool]:
    """The next message, and whether it was quoted: a line, or all between two marks of three quotes."""
    line = lines.line(">>> ", text)
    if not line.lstrip().startswith(_QUOTES):
        return line, False
    parts = [line.lstrip().removeprefix(_QUOTES)]
    while not parts[-1].rstrip().endswith(_QUOTES):
        try:
            parts.append(lines.line("... "))
        except EOFError:
            break
    else:
        parts[-1] = parts[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(parts).strip("\n"), True


def state_dir() -> Path:
    """Where the history of the chat is kept: $GEMMULE_STATE_DIR, else the platform's folder for such."""
    if own := os.environ.get("GEMMULE_STATE_DIR"):
        return Path(own)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gemmule" / "state"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gemmule"
    xdg = os.environ.get("XDG_STATE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".local" / "state") / "gemmule"


def _history_file() -> Path | None:
    """The history file, readable by its owner only; None where it cannot be written."""
    try:
        folder = state_dir()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / "chat_history"
        path.touch(mode=0o600)
        path.open("ab").close()
    except (OSError, RuntimeError):
        return None
    return path
