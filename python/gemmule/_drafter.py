"""Where the drafter of a model comes from: the model file's own section, a file beside it, or one that is
named.
"""

import os
from pathlib import Path
from typing import Literal, TypeAlias

from gemmule import _core
from gemmule._checks import path_text
from gemmule._errors import FormatError, UnsupportedError
from gemmule._inspect import section_file

__all__ = ["DrafterChoice", "drafter_of", "load_drafter"]

DrafterChoice: TypeAlias = str | os.PathLike[str] | Literal["auto", False] | None

_PATTERNS = (
    "mtp-*.gguf",
    "*assistant*.gguf",
)  # as published drafters and those that `split` writes are called


def drafter_of(file: _core.GgufFile, drafter: DrafterChoice) -> _core.GgufFile | None:
    """The drafter's file; None where there is none. "auto" looks inside the model file, then beside it."""
    if drafter is None or drafter is False:
        return None
    if drafter != "auto":
        return _core.GgufFile(path_text(drafter))
    return section_file(file, "drafter") or _beside(file)


def load_drafter(model: _core.Model, file: _core.GgufFile | None, *, was_found: bool) -> _core.Drafter | None:
    """The drafter, ready to run; None where nobody asked for the file that was found beside the model and it
    turns out to be damaged.
    """
    if file is None:
        return None
    try:
        return _core.Drafter(model, file)
    except (FormatError, UnsupportedError):
        if was_found and file.path != model.file.path:
            return None
        raise


def _beside(file: _core.GgufFile) -> _core.GgufFile | None:
    """The one drafter in the model's folder that fits it; of several, the one that carries its name."""
    path = Path(file.path)
    fitting: dict[Path, _core.GgufFile] = {}
    for candidate in sorted({found for pattern in _PATTERNS for found in path.parent.glob(pattern)} - {path}):
        try:
            header = _core.GgufFile(str(candidate))
            _core.check_drafter(header, file)
        except (OSError, ValueError):
            continue
        fitting[candidate] = header
    named = [candidate for candidate in fitting if path.stem in candidate.stem]
    chosen = named or [*fitting]
    return fitting[chosen[0]] if len(chosen) == 1 else None
