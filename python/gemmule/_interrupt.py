"""Ctrl-C before and while the program is being imported: it ends the process, silently.

A KeyboardInterrupt inside an import can come out as another exception (an extension module turns it into
ImportError or SystemError) or be printed and lost (a weakref callback of the import lock). So the signal
handler remembers that the signal came.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

__all__ = ["INTERRUPTED", "interrupted", "watch"]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_seen: list[int] = []


def interrupted() -> bool:
    """Whether Ctrl-C came since `watch`."""
    return bool(_seen)


def watch() -> None:
    """Remembers Ctrl-C from now on. A caller's own handler, or ignoring the signal, stays as it is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember)
        sys.unraisablehook = _unraisable


def _remember(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    raise KeyboardInterrupt


def _unraisable(lost: Any) -> None:
    if lost.exc_type is not None and issubclass(lost.exc_type, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(lost)
