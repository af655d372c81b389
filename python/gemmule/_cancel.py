"""Cancelling outside the engine: while media are decoded, and while a request waits for its turn.

What is decoded deep inside asks `check_cancelled()`; the request around it says by which token it can be
cancelled, for its own thread or task.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from gemmule._errors import Cancelled

if TYPE_CHECKING:
    from gemmule import _core

__all__ = ["cancelled_by", "check_cancelled", "turn"]

_WAIT = 0.02  # seconds between two looks at the token of a request that waits

_token: "ContextVar[_core.StopToken | None]" = ContextVar("gemmule_stop", default=None)


@contextmanager
def cancelled_by(stop: "_core.StopToken | None") -> Iterator[None]:
    """Makes `check_cancelled()` follow a token within the block."""
    before = _token.set(stop)
    try:
        yield
    finally:
        _token.reset(before)


def check_cancelled() -> None:
    """Throws Cancelled once the request at hand is no longer wanted."""
    stop = _token.get()
    if stop is not None and stop.cancelled:
        raise Cancelled("the request was cancelled before the model read it")


@contextmanager
def turn(lock: Any, stop: "_core.StopToken | None") -> Iterator[None]:
    """Holds the lock. A request that is cancelled while it waits for it gets Cancelled."""
    while not lock.acquire(timeout=-1 if stop is None else _WAIT):
        if stop is not None and stop.cancelled:
            raise Cancelled("the request was cancelled while it waited for its turn")
    try:
        yield
    finally:
        lock.release()
