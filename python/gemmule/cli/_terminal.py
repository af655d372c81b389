"""What a terminal may be sent: styles only where they are wanted, and never a control character out of a
model or a file.

Styles: not with NO_COLOR, always with FORCE_COLOR, else on a terminal that is not "dumb".
"""

import os
import re
import sys
from typing import IO

__all__ = ["dimmed", "note", "printable", "shows_styles", "warn"]

_DIM, _PLAIN = "\033[2m", "\033[0m"
# C0 without tab and line feed, DEL, C1: an escape sequence in an answer could rewrite the screen.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shows_styles(stream: IO[str]) -> bool:
    """Whether escape sequences for styles may go to `stream`."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def dimmed(stream: IO[str]) -> tuple[str, str]:
    """What switches dim text on and off again; two empty strings where styles are not wanted."""
    return (_DIM, _PLAIN) if shows_styles(stream) else ("", "")


def printable(text: str, stream: IO[str]) -> str:
    """The text as it may go to `stream`: as it is into a file, without control characters to a terminal."""
    return _CONTROLS.sub("", text) if stream.isatty() else text


def note(text: str) -> None:
    """One dim line on stderr, unless -q was given."""
    from gemmule.cli._common import settings

    if not settings.quiet:
        on, off = dimmed(sys.stderr)
        print(f"{on}{printable(text, sys.stderr)}{off}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line on stderr that -q does not silence."""
    print(f"gemmule: {printable(' '.join(text.split()), sys.stderr)}", file=sys.stderr, flush=True)
