"""For tests of constrained answers: a small vocabulary with Gemma 4's markers, random walks under a mask,
random schemas, and a JSON-schema validator that shares nothing with the package.
"""

from __future__ import annotations

import math
import random
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmule import Tokenizer
from gemmule._chat.constraint import Constraint
from gemmule._chat.parser import Markers, ReplyParser

MARKERS = [
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "<|tool_response>",
    "<|turn>",
    "<turn|>",
]
WORDS = [
    *(
        "call",
        "call:",
        "true",
        "false",
        "null",
        '{"',
        '"}',
        '":',
        "ab",
        "the",
        " the",
        "\n\n",
        "\n  ",
        "12",
        "00",
    ),
    *("日本", "🙂", "<|", '"|>', "}}", "]]", "[[", ", ", "<tool_call|", "2024-", "-01", "é"),
]


class SmallFile:
    """The metadata of a file with a few hundred tokens: bytes, characters, some words, the markers."""

    path = "small.gguf"

    def __init__(self) -> None:
        characters = [chr(c) for c in range(32, 127)] + ["\n", "\t"]
        texts = ["<pad>", "<eos>", "<bos>", "<unk>", *MARKERS, *(f"<0x{b:02X}>" for b in range(256))]
        special = len(texts)
        words = dict.fromkeys([*characters, *WORDS])
        texts += [word.replace(" ", "\u2581") for word in words]
        types = [3, 3, 3, 2] + [4] * len(MARKERS) + [6] * 256 + [1] * (len(texts) - special)
        self.values: dict[str, Any] = {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": [text.encode() for text in texts],
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.merges": [],  # forced text is spelled by characters
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
        }

    def keys(self) -> list[str]:
        return list(self.values)

    def get(self, key: str) -> Any:
        return self.values[key]

    def get_token_bytes(self, key: str) -> list[bytes]:
        return self.values[key]


TOKENIZER = Tokenizer(SmallFile())
IDS = Markers.of(TOKENIZER.id_of)
_CLOSING = {TOKENIZER.id_of(text) for text in ('"', "}", "]", '"}')} | {IDS.quote, IDS.call_close}


def allowed(mask: NDArray[np.uint32]) -> list[int]:
    """The ids whose bit is set."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(
    constraint: Constraint, rng: random.Random, *, most: int = 600, first: int | None = None
) -> list[int]:
    """Random allowed tokens until the constraint is finished; more and more of those that close something.

    `first` is taken where everything is allowed.
    """
    out: list[int] = []
    while not constraint.finished and len(out) < most:
        mask = constraint.mask()
        if mask is None:
            assert first is not None
            token = first
        else:
            options = allowed(mask)
            assert options
            closing = [t for t in options if t in _CLOSING or t in TOKENIZER.eos_ids]
            hurry = 0.25 if len(out) < most / 3 else 0.95
            token = rng.choice(closing if closing and rng.random() < hurry else options)
        constraint.accept(token)
        out.append(token)
    return out


def spell(constraint: Constraint, text: str) -> bool:
    """Whether the text is an answer: each character a token, or its bytes, and then the end."""
    for token in spelled(text):
        mask = constraint.mask()
        if mask is not None and token not in allowed(mask):
            return False
        constraint.accept(token)
    if constraint.finished:
        return True
    mask = constraint.mask()
    return mask is not None and 1 in allowed(mask)


def spelled(text: str) -> list[int]:
    """Ids of the text, one for each marker, character or byte."""
    out: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, MARKERS)) + ")", text):
        if part in MARKERS:
            out.append(_id(part))
            continue
        for char in part:
            token = TOKENIZER.id_of("\u2581" if char == " " else char)
            out += [token] if token is not None else [_id(f"<0x{byte:02X}>") for byte in char.encode()]
    return out


def _id(text: str) -> int:
    token = TOKENIZER.id_of(text)
    assert token is not None
    return token


def read_calls(tokens: list[int], names: list[str]) -> list[Any]:
    """The calls that the reply parser finds; nothing else may be in the reply."""
    parser = ReplyParser(tool_names=names, markers=IDS)
    detokenizer = TOKENIZER.detokenizer(skip_special=True)
    events = []
    for token in tokens:
        if token not in TOKENIZER.eos_ids:
            events += parser.feed(token, detokenizer.feed(token))
    events += parser.finish()
    assert all(event.kind == "tool_call" for event in events), events
    return [event.call for event in events]


# -- an independent validator ------------------------------------------------------------------------------


def errors(value: Any, schema: Any, root: Any = None, place: str = "$") -> list[str]:
    """What is wrong with the value by the plain reading of JSON Schema (draft 2020-12, and `nullable`)."""
    root = schema if root is None else root
    if schema is True or schema == {}:
        return []
    if schema is False:
        return [f"{place}: nothing is allowed"]
    out: list[str] = []
    if schema.get("nullable") and value is None:
        return []
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        out += errors(value, target, root, place)
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_is(value, kind) for kind in kinds):
            return [*out, f"{place}: {value!r} is no {kinds}"]
    if "enum" in schema and not any(_equal(value, other) for other in schema["enum"]):
        out.append(f"{place}: {value!r} not in {schema['enum']}")
    if "const" in schema and not _equal(value, schema["const"]):
        out.append(f"{place}: {value!r} is not {schema['const']!r}")
    for part in schema.get("allOf", []):
        out += errors(value, part, root, place)
    if "anyOf" in schema and all(errors(value, part, root, place) for part in schema["anyOf"]):
        out.append(f"{place}: fits no alternative")
    if "oneOf" in schema and sum(not errors(value, part, root, place) for part in schema["oneOf"]) != 1:
        out.append(f"{place}: fits not exactly one alternative")
    if isinstance(value, str):
        out += _string_errors(value, schema, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        out += _number_errors(value, schema, place)
    elif isinstance(value, list):
        out += _array_errors(value, schema, root, place)
    elif isinstance(value, dict):
        out += _object_errors(value, schema, root, place)
    return out


def _string_errors(value: str, schema: Any, place: str) -> list[str]:
    out = []
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        out.append(f"{place}: length {len(value)}")
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        out.append(f"{place}: {value!r} does not match {schema['pattern']}")
    return out


def _number_errors(value: float, schema: Any, place: str) -> list[str]:
    wrong = (
        value < schema.get("minimum", -math.inf)
        or value > schema.get("maximum", math.inf)
        or value <= schema.get("exclusiveMinimum", -math.inf)
        or value >= schema.get("exclusiveMaximum", math.inf)
        or ("multipleOf" in schema and value % schema["multipleOf"] != 0)
    )
    return [f"{place}: {value} out of bounds"] if wrong else []


def _array_errors(value: list[Any], schema: Any, root: Any, place: str) -> list[str]:
    out = []
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        out.append(f"{place}: {len(value)} items")
    first = schema.get("prefixItems", [])
    for i, item in enumerate(value):
        out += errors(item, first[i] if i < len(first) else schema.get("items", True), root, f"{place}[{i}]")
    return out


def _object_errors(value: dict[str, Any], schema: Any, root: Any, place: str) -> list[str]:
    out = [f"{place}: {name!r} is missing" for name in schema.get("required", []) if name not in value]
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", math.inf):
        out.append(f"{place}: {len(value)} keys")
    known = schema.get("properties", {})
    for key, item in value.items():
        sub = known[key] if key in known else schema.get("additionalProperties", True)
        out += errors(item, sub, root, f"{place}.{key}")
    return out


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds = {"string": str, "number": (int, float), "null": type(None), "array": list, "object": dict}
    return isinstance(value, kinds[kind])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


# -- random schemas ----------------------------------------------------------------------------------------

_NAMES = [
    "a",
    "B",
    "city",
    "days",
    "n-1",
    "x.y",
    "_z",
    "Zed",
    "aa",
    "unit",
    "long_name_of_a_key",
    "k0",
    "k1",
    "k2",
]
_PATTERNS = ["^a+b?$", "x", "^[A-Z]{2}", "[0-9]+$", "^a|b$", r"^\d{1,3}(,\d{3})*$", "^[^<]*$", r"\/|\\"]
_TEXTS = ["a", "B", "two words", "é🙂", "", 'say "x"', "{a:1}", "a,b", "null", "1", "<|", "line\nbreak"]


def random_schema(rng: random.Random, depth: int = 3, defs: list[str] | None = None) -> Any:
    """A schema with a bit of everything that is supported."""
    kinds = ["string", "string", "integer", "number", "boolean", "null", "enum", "const"]
    if depth > 0:
        kinds += ["object", "object", "array", "array", "anyOf", "oneOf", "types", "nullable", "tuple", "map"]
        kinds += ["allOf"]
    if defs:
        kinds += ["ref", "ref"]
    kind = rng.choice(kinds)
    if kind == "ref":
        return {"$ref": f"#/$defs/{rng.choice(defs or [])}"}
    if kind in ("string", "integer", "number"):
        return _random_scalar(rng, kind)
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "enum":
        return {"enum": rng.sample([*_TEXTS, 1, 2.5, True, None, [1, "a"], {"k": "v"}], rng.randint(1, 5))}
    if kind == "const":
        return {"const": rng.choice([*_TEXTS, 7, False, None, [], {}])}
    if kind == "object":
        return random_object(rng, depth - 1, defs)
    if kind == "array":
        low = rng.choice([0, 0, 1, 2])
        out = {"type": "array", "items": random_schema(rng, depth - 1, defs)}
        return (
            out
            | ({"minItems": low} if low else {})
            | ({"maxItems": low + rng.randint(0, 2)} if rng.random() < 0.5 else {})
        )
    if kind == "tuple":
        first = [random_schema(rng, depth - 1, defs) for _ in range(rng.randint(1, 3))]
        out = {"type": "array", "prefixItems": first, "items": rng.choice([False, {"type": "integer"}])}
        return out | ({"minItems": rng.randint(0, len(first))} if rng.random() < 0.6 else {})
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1, defs) for _ in range(rng.randint(1, 3))]}
    if kind == "oneOf":
        return {
            "oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}, random_object(rng, 0, None)]
        }
    if kind == "types":
        return {"type": rng.sample(["string", "integer", "boolean", "null"], 2)}
    if kind == "nullable":
        return {**_random_scalar(rng, "string"), "nullable": True}
    if kind == "allOf":
        return {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 50}], "description": "both"}
    return {"type": "object", "additionalProperties": random_schema(rng, depth - 1, defs)}


def _random_scalar(rng: random.Random, kind: str) -> dict[str, Any]:
    out: dict[str, Any] = {"type": kind}
    if kind == "string":
        if rng.random() < 0.3:
            out["pattern"] = rng.choice(_PATTERNS)
        elif rng.random() < 0.5:
            out["minLength"] = rng.randint(0, 3)
            out["maxLength"] = out["minLength"] + rng.randint(0, 4)
    elif rng.random() < 0.5:
        low = rng.randint(-30, 30)
        out[rng.choice(["minimum", "exclusiveMinimum"])] = low
        out[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.randint(2, 200)
    return out


def random_object(rng: random.Random, depth: int = 2, defs: list[str] | None = None) -> dict[str, Any]:
    """An object schema; now and then with other keys allowed."""
    names = rng.sample(_NAMES, rng.randint(0, 5))
    out: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth, defs) for name in names},
        "required": [name for name in names if rng.random() < 0.5],
    }
    if rng.random() < 0.2:
        out["additionalProperties"] = rng.choice([True, False, {"type": "integer"}])
    return out


def random_root(rng: random.Random) -> dict[str, Any]:
    """An object schema with definitions that may refer to each other and to themselves."""
    names = ["A", "B"] if rng.random() < 0.5 else []
    out = random_object(rng, 2, names)
    if names:
        out["$defs"] = {name: random_schema(rng, 2, names) for name in names}
    return out
