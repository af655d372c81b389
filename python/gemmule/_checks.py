"""Arguments from callers: numpy's numbers are as good as Python's, and a wrong one is refused in one
sentence that names the argument.
"""

import operator
import os
import re
from numbers import Real
from typing import Any

__all__ = ["MAX_CONTEXT", "MAX_THREADS", "byte_size", "is_whole", "kv_format", "path_text", "real", "whole"]

MAX_CONTEXT = 1 << 24
MAX_THREADS = 1024
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{ending}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for ending, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


def is_whole(value: object) -> bool:
    """Whether the value counts as an integer: int and numpy's integers, but no bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and not hasattr(value, "__len__")


def whole(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int within low .. high."""
    if is_whole(value):
        try:
            number = operator.index(value)
        except TypeError:  # a numpy array has the method but need not have one value
            number = low - 1
        if low <= number <= high:
            return number
    raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def real(name: str, value: Any) -> float:
    """`value` as a float (an int stays one); nan and infinity pass."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if isinstance(value, int | float):
        return value
    return float(value)


def byte_size(name: str, value: Any) -> int:
    """A number of bytes, or text such as 7.5GB (decimal), 900M or 6GiB (binary)."""
    if is_whole(value) and value > 0:
        return operator.index(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    found = re.fullmatch(r"(\d{1,15}\.?\d{0,15}|\.\d{1,15})\s*([a-z]*)", text)
    unit = _UNITS.get(found[2], 0) if found else 0
    size = int(float(found[1]) * unit) if found else 0
    if size == 0:
        raise ValueError(f"{name} must be a number of bytes or such as 7.5GB or 6GiB, not {value!r}")
    return size


def path_text(path: "str | os.PathLike[str]") -> str:
    """A path as the core takes it: in UTF-8."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the path {text!r} is not UTF-8 text; rename the file or its folder") from None
    return text


def kv_format(value: Any) -> str:
    """The number format of a KV cache; the engine knows which names exist."""
    if not isinstance(value, str):
        raise TypeError(f"kv_type must be a text such as 'f16' or 'q8_0', not {value!r}")
    return value
