"""The built-in texts that quality is measured on, one for each category that quantizations hurt differently.

They were written for this purpose and are short, so that a comparison of small models takes minutes; --text
takes longer ones. Rows carry the SHA-256 of what was read, and rows of different texts never share a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmule._errors import FormatError

__all__ = ["Text", "load_texts", "texts_digest"]


@dataclass(frozen=True, slots=True)
class Text:
    """One category."""

    name: str
    content: str


def load_texts(paths: Sequence[Path] = ()) -> tuple[Text, ...]:
    """The given files, or the built-in texts by name."""
    files = list(paths) or sorted(Path(__file__).with_name("texts").glob("*.txt"))
    names = [path.stem for path in files]
    if len(set(names)) < len(names):
        raise ValueError("two texts have one name, which is what rows go by; rename one")
    return tuple(Text(path.stem, _read(path)) for path in files)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not in UTF-8; convert it") from None


def texts_digest(texts: Sequence[Text]) -> str:
    """SHA-256 of all of them, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.name.encode() + b"\0" + text.content.encode() + b"\0")
    return digest.hexdigest()
