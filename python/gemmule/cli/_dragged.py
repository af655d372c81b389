"""Paths in a line that was typed into the chat: what a terminal inserts when a file is dragged into it.

Terminals quote a dropped path in quotes ('/a b/c.png'), with backslashes (/a\\ b/c.png), or write a file://
address. Only absolute paths of files that exist count, so ordinary words never become attachments.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["dragged_files"]

_WORD = re.compile(
    r"""'(?P<single>(?:/|~/|file://|[A-Za-z]:[\\/])[^'\n]+)'
      | "(?P<double>(?:/|~/|file://|[A-Za-z]:[\\/])[^"\n]+)"
      | (?P<bare>(?:/|~/|file://)(?:\\.|[^\s\\'"])+|[A-Za-z]:[\\/][^\s'"]+)
    """,
    re.VERBOSE,
)


def dragged_files(line: str) -> tuple[str, list[Path]]:
    """The line without the files in it, and these files in their order."""
    found: list[Path] = []

    def take(match: re.Match[str]) -> str:
        before = line[match.start() - 1] if match.start() else " "
        path = _path(match) if before.isspace() else None
        if path is None:
            return match.group()
        found.append(path)
        return ""

    rest = _WORD.sub(take, line)
    return (" ".join(rest.split()) if found and "\n" not in rest else rest), found


def _path(match: re.Match[str]) -> Path | None:
    text = match["single"] or match["double"] or match["bare"]
    if match["bare"] and not re.match(r"[A-Za-z]:", text):
        text = re.sub(r"\\(.)", r"\1", text)
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            return None
        text = unquote(parts.path)
        if re.match(r"/[A-Za-z]:", text):
            text = text[1:]
    try:
        path = Path(text).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None
