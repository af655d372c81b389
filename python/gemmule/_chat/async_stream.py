"""A stream read from an event loop: the engine works in a thread, the loop stays free."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemmule import _core
from gemmule._types import Delta, Reply

if TYPE_CHECKING:
    from gemmule._stream import Stream

__all__ = ["AsyncStream", "run"]

_END = object()


class AsyncStream:
    """Asynchronous iterator over the pieces of an answer. `reply` is complete once the loop ended; cancelling
    the task, leaving `async with`, or `cancel()` stops the engine.
    """

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            piece = await asyncio.to_thread(next, self._stream, _END)
        except asyncio.CancelledError:
            self._stream.cancel()
            raise
        if not isinstance(piece, Delta):
            raise StopAsyncIteration
        return piece

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stream.cancel()
        await asyncio.to_thread(self._stream.close)

    def cancel(self) -> None:
        """Stops the engine within milliseconds."""
        self._stream.cancel()

    async def reply(self) -> Reply:
        """The result; runs what is left."""
        async for _ in self:
            pass
        return self._stream.reply


async def run(
    call: "Callable[..., Stream]", asked: Any, options: Mapping[str, Any], stream: bool
) -> "Reply | AsyncStream":
    """Starts `call` (generate or chat) in a thread, where it reads the prompt with its media too; without
    `stream` waits for its reply. Cancelling the task stops the engine.
    """
    stop = _core.StopToken(options.get("cancel"))
    try:
        started = await asyncio.to_thread(call, asked, stream=True, **{**options, "cancel": stop})
    except asyncio.CancelledError:
        stop.cancel()
        raise
    running = AsyncStream(started)
    return running if stream else await running.reply()
