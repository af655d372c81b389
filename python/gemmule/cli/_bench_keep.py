"""Rows go to disk while they are measured, so that Ctrl-C or a crash after hours loses nothing."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gemmule.cli._output import write_output
from gemmule.cli._terminal import note

if TYPE_CHECKING:
    from gemmule._bench.record import Row

__all__ = ["KeptRows"]


class KeptRows:
    """A file of rows, or a folder with one for each kind; None keeps nothing. Left by an error, it says where
    the rows are.
    """

    def __init__(self, place: Path | None, *, folder: bool = False) -> None:
        self._place, self._folder, self._written = place, folder, False

    def __call__(self, rows: "Sequence[Row]") -> None:
        """Replaces the file of these rows, which are all of one kind so far."""
        from gemmule._bench.formats import jsonl_text
        from gemmule._bench.record import KIND

        if self._place is None or not rows:
            return
        path = self._place / f"{rows[0][KIND]}.jsonl" if self._folder else self._place
        if path.exists() and not path.is_file():  # a pipe or a device takes them once, at the end
            return
        write_output(path, jsonl_text(rows))
        self._written = True

    def __enter__(self) -> "KeptRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._written:
            how = "; gemmule bench report makes a report of them" if self._folder else ""
            note(f"what was measured until now is in {self._place}{how}")
