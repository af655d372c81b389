"""How big a schema or pattern may be: checked before anything else looks at it, in one pass."""

import math
import re
from collections.abc import Mapping
from typing import Any

from gemmule._errors import GrammarError

__all__ = [
    "COUNTS",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_ENUM",
    "MAX_PROPERTIES",
    "MAX_REPEAT",
    "check_regex",
    "check_tree",
]

MAX_DEPTH = 32  # schemas within schemas
MAX_ENUM = 4096
MAX_REPEAT = 10_000  # minLength, maxItems, {m,n} of a pattern
MAX_PROPERTIES = 512  # of one object
MAX_BYTES = 1 << 20
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_MAX_NODES = 200_000
_MAX_NESTING = 100  # of the JSON text; the native parser takes 128
_MAX_PATTERN = 1 << 14
_MAX_GROUPS = 48
_MAX_EXPANDED = 100_000  # characters of a pattern with its repeats written out


def check_tree(value: Any, where: str = "schema") -> None:
    """Refuses what is not JSON, and what is too deep, too big or repeats too often. Never recursive."""
    stack: list[tuple[Any, int]] = [(value, 0)]
    nodes = size = 0
    while stack:
        item, depth = stack.pop()
        nodes += 1
        if depth > _MAX_NESTING:
            raise GrammarError(f"{where} is nested deeper than {_MAX_NESTING} levels; make it flatter")
        if isinstance(item, Mapping):
            for key, child in item.items():
                if not isinstance(key, str):
                    raise GrammarError(f"{where} holds the key {key!r}; keys must be strings")
                size += len(key)
                stack.append((child, depth + 1))
            _check_keywords(item, where)
        elif isinstance(item, str):
            size += len(item)
        elif isinstance(item, list | tuple):
            stack.extend((child, depth + 1) for child in item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise GrammarError(f"{where} holds the number {item}, which is not JSON")
        elif item is not None and not isinstance(item, bool | int | float):
            raise GrammarError(f"{where} holds a {type(item).__name__}, which is not JSON")
        if nodes > _MAX_NODES or size > MAX_BYTES:
            raise GrammarError(f"{where} is larger than {MAX_BYTES} bytes; make it smaller")


def _check_keywords(item: Mapping[str, Any], where: str) -> None:
    values = item.get("enum")
    if isinstance(values, list) and len(values) > MAX_ENUM:
        raise GrammarError(f"{where} holds an enum of {len(values)} values; {MAX_ENUM} are allowed")
    names = item.get("properties")
    if isinstance(names, Mapping) and len(names) > MAX_PROPERTIES:
        raise GrammarError(f"{where} holds an object of {len(names)} keys; {MAX_PROPERTIES} are allowed")
    for key in COUNTS:
        count = item.get(key)
        if isinstance(count, int | float) and count > MAX_REPEAT:
            raise GrammarError(f"{where} asks for {key} {count}; {MAX_REPEAT} is the most")
    pattern = item.get("pattern")
    if isinstance(pattern, str):
        check_regex(pattern, f"{where}: the pattern")


_COUNTED = re.compile(r"\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{0,9})\s*)?\}")


def check_regex(pattern: str, where: str = "the regex") -> None:
    """Refuses patterns whose repeats multiply to something huge or whose groups nest too deeply.

    Counts the characters of the pattern with all counted repeats written out, in one pass.
    """
    if len(pattern) > _MAX_PATTERN:
        raise GrammarError(f"{where} is longer than {_MAX_PATTERN} characters")
    totals = [0]  # written-out length of each open group
    last = 0  # of the element a repeat would apply to
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "\\":
            at += 1
            last = 1
        elif char == "[":
            at = _class_end(pattern, at)
            last = 1
        elif char == "(":
            totals.append(0)
            last = 0
            if len(totals) > _MAX_GROUPS:
                raise GrammarError(f"{where} has groups nested deeper than {_MAX_GROUPS}")
            continue
        elif char == ")":
            last = totals.pop() if len(totals) > 1 else 0
        elif char == "{" and (found := _COUNTED.match(pattern, at - 1)):
            at = found.end()
            low, high = int(found[1]), int(found[3] or 0)
            most = max(low, high, 1)
            if most > MAX_REPEAT:
                raise GrammarError(f"{where} repeats {most} times; {MAX_REPEAT} is the most")
            totals[-1] -= last
            last *= most
        elif char in "*+?|":
            continue
        else:
            last = 1
        totals[-1] += last
        if totals[-1] > _MAX_EXPANDED:
            raise GrammarError(
                f"{where} has repeats within repeats of more than {_MAX_EXPANDED} characters; use * or +"
            )


def _class_end(pattern: str, at: int) -> int:
    """The place after a bracket class that began just before `at`."""
    depth = 1
    if pattern[at : at + 1] == "^":
        at += 1
    if pattern[at : at + 1] == "]":  # a bracket that comes first is an ordinary character
        at += 1
    while at < len(pattern) and depth:
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
        at += 1
    return at
