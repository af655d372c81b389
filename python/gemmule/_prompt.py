"""What a prompt may be, and how it becomes token ids.

str: encoded, with BOS in front of a new text; list of ids: taken as they are; list of parts (str or list of
ids): joined.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmule._checks import is_whole
from gemmule._errors import UnsupportedError
from gemmule._tokenizer import Tokenizer

__all__ = ["Prompt", "prompt_ids"]

Ids = NDArray[np.integer[Any]]
# One Sequence, not a union of two: a type checker can then read a mixed list such as ["a", [1, 2]].
Prompt = str | Sequence[int | str | Sequence[int] | Ids] | Ids

_BYTES = bytes | bytearray | memoryview


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, *, add_bos: bool = True) -> list[int]:
    """The ids of a prompt, checked against the vocabulary."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_bos=add_bos)
    elif _is_ids(prompt):
        ids = tokenizer.check_ids(prompt)  # type: ignore[arg-type]
    elif isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, _BYTES):
        ids = []
        for i, part in enumerate(prompt):
            if isinstance(part, str):
                ids += tokenizer.encode(part, add_bos=add_bos and i == 0)
            elif _is_ids(part):
                ids += tokenizer.check_ids(part)
            else:
                raise UnsupportedError(
                    "a prompt part must be text or a list of token ids; "
                    f"{type(part).__name__} parts are not supported"
                )
    else:
        raise UnsupportedError(
            "a prompt must be text, token ids or a list of these; "
            f"{type(prompt).__name__} is not supported, give a list of ids"
        )
    if not ids:
        raise ValueError("the prompt holds no token")
    return ids


def _is_ids(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | _BYTES)
        and all(is_whole(item) for item in value)
    )
