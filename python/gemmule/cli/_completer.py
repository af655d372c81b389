"""Completion in the chat: slash commands, their values, and paths.

The only module that imports prompt_toolkit at its top; loaded only on a terminal.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

__all__ = ["ChatCompleter"]


class ChatCompleter(Completer):
    """`values` has for each command what may follow it: a list of words, or None for a path."""

    def __init__(self, values: Mapping[str, Sequence[str] | None]) -> None:
        self._values = values
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        command, space, rest = text[1:].partition(" ")
        if not space:
            yield from _words(command, list(self._values))
            return
        values = self._values.get(command, ())
        if values is None:
            yield from self._paths.get_completions(Document(rest), complete_event)
        else:
            yield from _words(rest, values)

    def __repr__(self) -> str:
        return f"ChatCompleter({sorted(self._values)})"


def _words(begun: str, words: Sequence[Any]) -> Iterable[Completion]:
    for word in words:
        if word.startswith(begun):
            yield Completion(word, start_position=-len(begun))
