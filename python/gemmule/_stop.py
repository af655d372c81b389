"""Stop strings across token borders.

Text arrives in pieces. A piece may end in the middle of a stop string, so the longest suffix that could
still grow into one is held back until the next piece decides. Earliest match wins; of matches that begin at
the same place, the longest one.
"""

from collections.abc import Iterable

__all__ = ["StopMatcher"]


class StopMatcher:
    """Feed text pieces, get the text that is safe to show; `stopped` once a stop string was complete."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        if any(not s for s in self._stops):
            raise ValueError("a stop string must not be empty")
        self._held = ""
        self.stopped: str | None = None

    def feed(self, piece: str) -> str:
        """Adds a piece and returns what can be shown now. Once stopped, everything later is dropped."""
        if self.stopped is not None:
            return ""
        text = self._held + piece
        self._held = ""
        if not self._stops:
            return text
        hits = [(at, -len(s), s) for s in self._stops if (at := text.find(s)) >= 0]
        if hits:
            at, _, self.stopped = min(hits)
            return text[:at]
        keep = self._longest_partial(text)
        if keep:
            self._held = text[-keep:]
            text = text[:-keep]
        return text

    def flush(self) -> str:
        """Returns what was held back; call once when no more text will come."""
        rest, self._held = self._held, ""
        return rest if self.stopped is None else ""

    def _longest_partial(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
        longest = max(len(s) for s in self._stops) - 1
        for n in range(min(longest, len(text)), 0, -1):
            suffix = text[-n:]
            if any(len(s) > n and s.startswith(suffix) for s in self._stops):
                return n
        return 0
