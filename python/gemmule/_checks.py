"""Arguments from callers: numpy's numbers are as good as Python's, and a wrong one is refused in one
sentence that names the argument.
"""

import operator
from numbers import Real
from typing import Any

__all__ = ["MAX_CONTEXT", "MAX_THREADS", "is_whole", "kv_format", "real", "whole"]

MAX_CONTEXT = 1 << 24
MAX_THREADS = 1024


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


def kv_format(value: Any) -> str:
    """The number format of a KV cache; the engine knows which names exist."""
    if not isinstance(value, str):
        raise TypeError(f"kv_type must be 'f16' or 'f32', not {value!r}")
    return value
