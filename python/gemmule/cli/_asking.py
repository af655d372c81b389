"""One question and everything that follows from it: the answer, tool calls, their results, the answer to
those.

The library's `act` does the same without a terminal; here every round is streamed and every call asked about.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gemmule.cli._show import Printer
from gemmule.cli._terminal import warn
from gemmule.cli._toolbox import Toolbox, failed

if TYPE_CHECKING:
    from gemmule import Message, Reply, Stream

__all__ = ["MAX_ROUNDS", "Outcome", "ask"]

MAX_ROUNDS = 8
Chat = Callable[[list[Any]], "Stream"]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a question: the last reply, and the messages to put after the question."""

    reply: "Reply"
    messages: "tuple[Message, ...]"
    interrupted: bool


def ask(chat: Chat, messages: "Sequence[Message]", printer: Printer, toolbox: Toolbox | None) -> Outcome:
    """Asks, and goes on as long as the model calls tools. `chat` starts the answer to a list of messages."""
    from gemmule import Message

    added: list[Message] = []
    for left in range(MAX_ROUNDS, -1, -1):
        with chat([*messages, *added]) as stream:
            reply, interrupted = printer.follow(stream)
        if interrupted:  # what was said stays, a call that was not made does not
            if reply.text:
                added.append(dataclasses.replace(reply.message, tool_calls=()))
            break
        added.append(reply.message)
        if not reply.tool_calls or toolbox is None:
            break
        for call in reply.tool_calls:
            why = "" if left else "no more calls in this answer"
            why = "the user stopped the tools" if interrupted else why
            try:
                result = failed(call, why) if why else toolbox.run(call)
            except KeyboardInterrupt:
                interrupted, result = True, failed(call, "the user stopped this call")
            printer.tool_result(call, result.text)
            added.append(result)
        if not left:
            warn(f"stopped after {MAX_ROUNDS} rounds of tool calls")
        if interrupted:
            break
    return Outcome(reply, tuple(added), interrupted)
