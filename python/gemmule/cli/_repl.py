"""The chat in the terminal: reads a message, shows the answer, keeps both; slash commands are in _slash.py.

After every step the conversation ends with an answer: a message that got none is taken back, with its files.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule._errors import ContextLengthError, MediaError
from gemmule.cli._asking import Outcome, ask
from gemmule.cli._attach import Attachment, attach, attach_bytes
from gemmule.cli._chat_settings import ChatSettings
from gemmule.cli._common import exit_code_of, message_of, settings
from gemmule.cli._conversation import Conversation, Exchange
from gemmule.cli._dragged import dragged_files
from gemmule.cli._lines import Lines, read_message
from gemmule.cli._show import Printer
from gemmule.cli._slash import is_command, run_command_line
from gemmule.cli._terminal import note, warn

if TYPE_CHECKING:
    from gemmule import Message, Model, Reply, Session, Stream
    from gemmule.cli._toolbox import Toolbox

__all__ = ["Leave", "Repl"]

_TWICE = 1.0  # seconds within which a second Ctrl-C leaves


class Leave(Exception):
    """The user wants to leave."""


class Repl:
    """One chat. `open_model` opens a model file; it is used again by /model."""

    def __init__(
        self,
        open_model: "Callable[[Path], Model]",
        path: Path,
        lines: Lines,
        choices: ChatSettings,
        *,
        toolbox: "Toolbox | None" = None,
        pending: "list[Attachment] | None" = None,
        progress: Callable[[int, int], None] | None = None,
        stats: bool = False,
    ) -> None:
        self.open_model = open_model
        self.path = path
        self.model = open_model(path)
        self.session: Session = self.model.session(n_ctx=choices.n_ctx)
        self.lines = lines
        self.choices = choices
        self.toolbox = toolbox
        self.tools_on = toolbox is not None
        self.pending = list(pending or ())
        self.conversation = Conversation()
        self.last: Reply | None = None
        self.draft = ""  # what the next line begins with
        self._progress = progress
        self._stats = stats
        self._code = 0  # of the first error, for a chat that is not watched
        self._ctrl_c = 0.0
        self._warned: set[str] = set()  # what was said once need not be said every turn

    def run(self) -> int:
        """Talks until the user leaves; the exit code."""
        if self.lines.interactive:
            note(f"{self.path.name}, context of {self.session.n_ctx} tokens; /help lists the commands")
        while True:
            try:
                draft, self.draft = self.draft, ""
                text, quoted = read_message(self.lines, draft)
            except EOFError:
                break
            except KeyboardInterrupt:
                if self._leaves_now():
                    return 130
                note("Ctrl-D or /bye leaves")
                continue
            try:
                self.handle(text, quoted=quoted)
            except Leave:
                break
            except KeyboardInterrupt:
                if not self.lines.interactive or self._leaves_now():
                    return 130
            except Exception as error:
                self.complain(error)
        self.session.close()
        return 0 if self.lines.interactive else self._code

    def complain(self, error: Exception) -> None:
        """One line about an error; the chat goes on."""
        if settings.verbose:
            import traceback

            traceback.print_exception(error)
        self._code = self._code or exit_code_of(error)
        warn(message_of(error))

    def handle(self, text: str, *, quoted: bool = False) -> None:
        """One line of the user: a slash command, files, or a message. A quoted text is a message as it is."""
        rest, paths = (text, []) if quoted else dragged_files(text)
        if not quoted and text.startswith("/") and (is_command(text) or not paths):
            run_command_line(self, text)
            return
        for path in paths:
            self.attach(str(path))
        if rest.strip():
            self.ask(Exchange(rest.strip(), tuple(self.pending)))

    def attach(self, source: str, kind: str | None = None) -> None:
        """Puts a file on the next message."""
        self._wait(attach(source, kind, self.choices.wishes))

    def attach_data(self, data: bytes, name: str) -> None:
        """The same for what is in no file."""
        self._wait(attach_bytes(data, name, None, self.choices.wishes))

    def _wait(self, attachment: Attachment) -> None:
        self.pending.append(attachment)
        note(f"{len(self.pending)}: {attachment}")

    def ask(self, exchange: Exchange) -> bool:
        """Gets the answer to a message and keeps both; without an answer the message is taken back."""
        self.conversation.system = self.choices.system
        printer = Printer(thinking=not self.choices.hide_thinking)
        try:
            outcome = ask(
                self._chat, self.conversation.messages(exchange), printer,
                self.toolbox if self.tools_on else None,
            )  # fmt: skip
        except ContextLengthError as error:
            self._take_back(exchange)
            self._code = self._code or exit_code_of(error)
            warn(
                f"the context is full: this would be {error.n_prompt} of {error.n_ctx} tokens; "
                "/compact drops the oldest messages, /clear begins anew; then send it again "
                "(/set truncation oldest does so by itself)"
            )
            return False
        except MediaError:
            self._take_back(exchange)
            self.pending.clear()
            note("the message is taken back, without its files")
            raise
        except KeyboardInterrupt:  # before the first step of the answer
            self._take_back(exchange)
            if not self.lines.interactive:
                raise
            self._ctrl_c = time.monotonic()
            note("stopped before the answer began; the message is taken back")
            return False
        except BaseException:
            self._take_back(exchange)
            raise
        self.last = outcome.reply
        if self._stats:
            note(f"{outcome.reply.usage}; {outcome.reply.timings}")
        self._keep(exchange, outcome)
        return bool(outcome.messages)

    def reopen(self, path: Path | None = None) -> None:
        """A new session with the settings of now, and with `path` on another model."""
        if path is not None:
            self.session.close()
            self.model.close()
            try:
                self.model = self.open_model(path)
            except Exception:
                self.model = self.open_model(self.path)
                self.session = self.model.session(n_ctx=self.choices.n_ctx)
                raise
            self.path = path
        session = self.model.session(n_ctx=self.choices.n_ctx)
        self.session.close()
        self.session = session

    def _chat(self, messages: "list[Message]") -> "Stream":
        self.session.messages = tuple(messages)
        options: dict[str, Any] = self.choices.arguments()
        if self.toolbox is not None and self.tools_on:
            options["tools"] = self.toolbox.functions
        stream: Stream = self.session.chat(stream=True, progress=self._progress, **options)
        return stream

    def _keep(self, exchange: Exchange, outcome: Outcome) -> None:
        reply = outcome.reply
        if outcome.messages:
            self.conversation.exchanges.append(dataclasses.replace(exchange, replies=outcome.messages))
            self.pending.clear()
            if outcome.interrupted:
                note("stopped; the answer so far is kept")
        else:
            self._take_back(exchange)
            note("stopped before the answer began; the message is taken back")
        if outcome.interrupted:
            self._ctrl_c = time.monotonic()
        elif reply.finish_reason == "length" and self.session.n_tokens >= self.session.n_ctx - 1:
            note("the context is full: /compact drops the oldest messages, /clear begins anew")
        if not settings.quiet:
            for warning in reply.warnings:
                if warning not in self._warned:
                    self._warned.add(warning)
                    warn(f"warning: {warning}")

    def _take_back(self, exchange: Exchange) -> None:
        self.pending[:] = exchange.attachments
        if self.lines.interactive and "\n" not in exchange.text:
            self.draft = exchange.text

    def _leaves_now(self) -> bool:
        before, self._ctrl_c = self._ctrl_c, time.monotonic()
        return before > 0 and self._ctrl_c - before < _TWICE
