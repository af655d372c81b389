"""Read the JSON files of a checkpoint folder strictly: size limit, UTF-8, no repeated keys, no NaN.

Every failure is a FormatError that names the file and what is wrong with it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemmule._errors import FormatError, ModelNotFoundError

__all__ = ["parse_object", "read_object"]

_MEGABYTE = 1 << 20


def read_object(path: Path, *, limit_mb: int = 64) -> dict[str, Any]:
    """The object a JSON file holds."""
    return parse_object(read_bytes(path, limit_mb=limit_mb), str(path))


def read_bytes(path: Path, *, limit_mb: int) -> bytes:
    """A whole file of at most `limit_mb` megabytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_mb * _MEGABYTE + 1)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: the file is missing; download the checkpoint completely."
        ) from None
    except IsADirectoryError:
        raise FormatError(f"{path}: this should be a file, it is a folder.") from None
    if len(data) > limit_mb * _MEGABYTE:
        raise FormatError(f"{path}: the file is larger than {limit_mb} MB, which no real checkpoint needs.")
    if data.startswith(b"version https://git-lfs"):
        raise FormatError(f"{path}: this is a Git LFS pointer, not the file itself; run `git lfs pull`.")
    return data


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The object in `data`; `where` names its source in messages."""

    def pairs(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in items:
            if key in out:
                raise FormatError(f"{where}: the key {key[:200]!r} appears twice.")
            out[key] = value
        return out

    def constant(name: str) -> Any:
        raise FormatError(f"{where}: {name} is not a JSON number.")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except FormatError:
        raise
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: byte {error.start} is not valid UTF-8.") from None
    except RecursionError:
        raise FormatError(f"{where}: the JSON is nested too deeply.") from None
    except ValueError as error:
        raise FormatError(f"{where}: not valid JSON ({str(error)[:200]}).") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: the JSON should be an object, it is a {type(value).__name__}.")
    return value
