"""A long English text that every CPython ships: the help topics of pydoc, in a fixed order.

Text quality comparisons need a few hundred kilobytes of prose; this avoids storing it in the repository.
The text depends on the Python version, so results record its SHA-256 next to that version.
"""

from __future__ import annotations

import hashlib
import importlib
import sys

__all__ = ["load_corpus"]

MIN_BYTES = 200_000


def load_corpus() -> tuple[str, dict[str, str]]:
    """Return (text, {"sha256", "python", "bytes"}) of at least 200 KB."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    raw = text.encode()
    if len(raw) < MIN_BYTES:
        raise RuntimeError(f"the pydoc topics of this Python hold only {len(raw)} bytes")
    info = {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "python": sys.version.split()[0],
        "bytes": str(len(raw)),
    }
    return text, info
