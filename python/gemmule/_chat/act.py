"""Letting the model use functions: call, run, answer with the result, until it needs no more."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gemmule._chat.messages import Message
from gemmule._chat.tools import tools_of
from gemmule._checks import whole
from gemmule._errors import Cancelled
from gemmule._request import ChatOptions
from gemmule._types import Reply

if TYPE_CHECKING:
    from gemmule._chat.messages import ToolCall
    from gemmule._chat.tools import Tool
    from gemmule._model import Model

__all__ = ["act", "answer_calls"]


def act(
    model: "Model",
    messages: Any,
    *,
    tools: Sequence[Any],
    max_rounds: int,
    on_call: "Callable[[ToolCall], bool | None] | None",
    options: ChatOptions,
) -> Reply:
    """See Model.act."""
    max_rounds = whole("max_rounds", max_rounds, 1, 1000)
    if on_call is not None and not callable(on_call):
        raise TypeError(f"on_call must be a function of the call, not {type(on_call).__name__}")
    functions = tools_of(tools)
    missing = [tool.name for tool in functions if tool.function is None]
    if missing:
        raise ValueError(f"act() runs its tools, and {missing[0]!r} is only a declaration; give the function")
    if options.get("stream"):
        raise TypeError("act() does not stream; use chat(stream=True) and answer the calls")
    with model.session() as session:
        first: ChatOptions = {**options, "tools": functions}
        later: ChatOptions = {name: v for name, v in first.items() if name not in _FIRST_TURN}  # type: ignore[assignment]
        reply: Reply = session.chat(messages, stream=False, **first)
        for _ in range(max_rounds - 1):
            if not reply.tool_calls or reply.finish_reason == "cancelled":
                return reply
            results = answer_calls(reply.tool_calls, functions, on_call)
            reply = session.chat(results, stream=False, **later)
    if reply.tool_calls:
        note = f"the model still wants to call {reply.tool_calls[0].name} after {max_rounds} rounds"
        reply = dataclasses.replace(reply, warnings=(*reply.warnings, note))
    return reply


_FIRST_TURN = ("system", "images", "audio", "videos", "tool_choice")


def answer_calls(
    calls: "Sequence[ToolCall]",
    tools: "Sequence[Tool]",
    on_call: "Callable[[ToolCall], bool | None] | None" = None,
) -> list[Message]:
    """Runs each call; one tool message for each, in order. What goes wrong is told to the model."""
    by_name = {tool.name: tool for tool in tools}
    return [_message(call, _result(call, by_name.get(call.name), on_call)) for call in calls]


def _result(
    call: "ToolCall", tool: "Tool | None", on_call: "Callable[[ToolCall], bool | None] | None"
) -> Any:
    if tool is None:
        return f"error: there is no tool named {call.name}"
    if on_call is not None and on_call(call) is False:
        return "error: the user refused this call"
    try:
        value = tool.call(call.arguments)
        if inspect.iscoroutine(value):
            import asyncio

            value = asyncio.run(value)
        return value
    except (Cancelled, MemoryError):
        raise
    except Exception as error:  # the model can often do better with the message
        return f"error: {type(error).__name__}: {error}"


def _message(call: "ToolCall", value: Any) -> Message:
    """A result as the conversation holds it: text, and named values where the function returned such."""
    import msgspec

    try:
        plain = msgspec.to_builtins(value)
        text = plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()
    except (TypeError, ValueError, RecursionError):
        plain = text = str(value)
    named = isinstance(plain, dict) and all(isinstance(key, str) for key in plain)
    return Message("tool", (text,), tool_call_id=call.id, name=call.name, response=plain if named else None)
