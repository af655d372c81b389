"""Brings any JSON schema to one small normal form, from which both grammars (JSON answers and Gemma's tool
calls) are written.

    {} | {"$ref": "#/$defs/NAME"} | {"anyOf": [...]} | {"enum": [...]} | {"type": ONE TYPE, its own keywords}
Every value that fits the normal form fits the given schema; where JSON Schema leaves something open the
narrower reading is taken: an object with `properties` and no `additionalProperties` takes no other keys, and
a schema without `type` gets the one its keywords speak of. What cannot be promised is refused by name.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule._chat.schema_limits import MAX_DEPTH, check_tree
from gemmule._errors import GrammarError

__all__ = ["Schema", "normalize"]

Schema = dict[str, Any]

_MAX_VARIANTS = 1024
_MAX_STEPS = 50_000

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_OWN = {
    "string": ("minLength", "maxLength", "pattern", "format", "contentEncoding"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "boolean": (),
    "null": (),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
}
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf", "enum", "const", "type", "nullable")
# Keywords that constrain and that no grammar here can keep. Everything else unknown is an annotation.
_REFUSED = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "patternProperties",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "additionalItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
)
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_ZONE = r"(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
# Formats that are enforced, as patterns. JSON Schema calls a format a comment, so an unknown one is one.
_FORMATS = {
    "date": _DAY,
    "time": _CLOCK + _ZONE,
    "date-time": f"{_DAY}T{_CLOCK}{_ZONE}",
    "duration": "P(?:[0-9]{1,5}D(?:T[0-9]{1,4}H)?|T[0-9]{1,4}(?:H[0-9]{1,2}M|H|M|S))",
    "decimal": r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?",
    "email": rf"[A-Za-z0-9_+\-]+(?:\.[A-Za-z0-9_+\-]+){{0,8}}@{_LABEL}(?:\.{_LABEL}){{1,4}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,4}}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": "[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){7}",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": r"[A-Za-z][A-Za-z0-9+.\-]{0,20}:(?:[A-Za-z0-9._~:/?#@!$&'()*+,;=\-]|%[0-9A-Fa-f]{2})+",
}
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


def normalize(schema: Mapping[str, Any], *, where: str = "schema", sets: bool = False) -> Schema:
    """The schema in normal form; GrammarError names the place and keyword that cannot be kept.

    `sets=True` drops uniqueItems: the schema came from a Python set, which forgets repeats by itself.
    """
    check_tree(schema, where)
    return _Normalizer(schema, where, sets).run()


class _Normalizer:
    """Walks one schema. References become entries of $defs, each visited once, so recursion ends."""

    def __init__(self, root: Mapping[str, Any], where: str, sets: bool) -> None:
        self._root = root
        self._where = where
        self._sets = sets
        self._names: dict[str, str] = {}  # pointer -> name in $defs
        self._waiting: list[str] = []
        self._defs: Schema = {}
        self._apart_checks: list[tuple[list[Schema], str]] = []  # wait until all references are known
        self._variants = 0
        self._steps = 0

    def run(self) -> Schema:
        out = self._schema(self._root, self._where, 0)
        defs = self._defs
        while self._waiting:
            pointer = self._waiting.pop()
            defs[self._names[pointer]] = self._schema(self._target(pointer), self._where + pointer[1:], 0)
        self._check_loops(defs)
        for options, where in self._apart_checks:
            self._check_apart(options, where)
        if defs:
            out = {**out, "$defs": defs}
        if _impossible(out):
            raise GrammarError(f"{self._where} allows no value at all")
        return out

    def _schema(self, schema: Any, where: str, depth: int) -> Schema:
        if isinstance(schema, bool):
            return {} if schema else {"enum": []}
        if not isinstance(schema, Mapping):
            raise GrammarError(f"{where} must be a schema (an object), not {str(schema)[:40]!r}")
        self._step(where, depth)
        for key in _REFUSED:
            if key in schema:
                raise GrammarError(
                    f"{where}.{key} cannot be enforced while generating; leave {key!r} out of the schema"
                )
        schema = {
            k: v for k, v in schema.items() if k in _COMBINING or any(k in own for own in _OWN.values())
        }
        if schema.pop("nullable", None) is True:
            inner = self._schema(schema, where, depth + 1)
            return _any_of([inner, {"type": "null"}])
        if "allOf" in schema:
            return self._all_of(schema, where, depth)
        if "$ref" in schema:
            return self._reference(schema, where, depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._variants_of(key, schema, where, depth)
        if "const" in schema or "enum" in schema:
            return self._enum(schema, where)
        return self._typed(schema, where, depth)

    def _step(self, where: str, depth: int) -> None:
        self._steps += 1
        if depth > MAX_DEPTH:
            raise GrammarError(
                f"{where[:200]} is deeper than {MAX_DEPTH} schemas within schemas; make it flatter"
            )
        if self._steps > _MAX_STEPS:  # references merged into each other multiply
            raise GrammarError(
                f"{self._where} grows beyond {_MAX_STEPS} parts when written out; make it smaller"
            )

    # -- references ----------------------------------------------------------------------------------------

    def _target(self, pointer: str) -> Any:
        node: Any = self._root
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            else:
                raise GrammarError(f"{self._where}: the reference {pointer[:80]!r} leads nowhere")
        return node

    def _reference(self, schema: Schema, where: str, depth: int) -> Schema:
        pointer = schema.pop("$ref")
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise GrammarError(
                f"{where}.$ref is {str(pointer)[:80]!r}; only #/... within the schema is followed"
            )
        if schema:
            return self._schema(self._merged({"$ref": pointer}, schema, where, 0), where, depth + 1)
        if pointer not in self._names:
            self._names[pointer] = f"d{len(self._names)}"
            self._target(pointer)
            self._waiting.append(pointer)
        return {"$ref": f"#/$defs/{self._names[pointer]}"}

    @staticmethod
    def _check_loops(defs: Schema) -> None:
        """A reference that leads to itself without anything in between describes nothing."""
        for name in defs:
            seen = {name}
            stack = [defs[name]]
            while stack:
                node = stack.pop()
                stack.extend(node.get("anyOf", ()))
                target = node.get("$ref", "").rpartition("/")[2]
                if target in seen:
                    if target == name:
                        raise GrammarError("schema: a reference leads back to itself")
                elif target:
                    seen.add(target)
                    stack.append(defs[target])

    # -- combinations --------------------------------------------------------------------------------------

    def _all_of(self, schema: Schema, where: str, depth: int) -> Schema:
        parts = schema.pop("allOf")
        if not isinstance(parts, list) or not parts:
            raise GrammarError(f"{where}.allOf must be a list of schemas")
        merged: Any = schema
        for i, part in enumerate(parts):
            merged = self._merged(merged, part, f"{where}.allOf[{i}]", 0)
        return self._schema(merged, where, depth + 1)

    def _variants_of(self, key: str, schema: Schema, where: str, depth: int) -> Schema:
        options = schema.pop(key)
        if not isinstance(options, list) or not options:
            raise GrammarError(f"{where}.{key} must be a list of schemas")
        self._variants += len(options)
        if self._variants > _MAX_VARIANTS:
            raise GrammarError(f"{where} holds more than {_MAX_VARIANTS} alternatives")
        out = []
        for i, option in enumerate(options):
            place = f"{where}.{key}[{i}]"
            whole = self._merged(schema, option, place, 0) if schema else option
            out.append(self._schema(whole, place, depth + 1))
        if key == "oneOf":
            self._apart_checks.append((out, where))
        return _any_of(out)

    def _check_apart(self, options: list[Schema], where: str) -> None:
        """oneOf says exactly one; a grammar can only say at least one, so no two may overlap."""
        for i, one in enumerate(options):
            for k in range(i):
                if not self._apart(options[k], one, 0):
                    raise GrammarError(
                        f"{where}.oneOf[{k}] and [{i}] may both fit one value; write anyOf, or give them "
                        "different types or a required key with different constants"
                    )

    def _apart(self, a: Schema, b: Schema, depth: int) -> bool:
        if depth > MAX_DEPTH:
            return False
        a, b = self._seen_through(a), self._seen_through(b)
        for one, other in ((a, b), (b, a)):
            if "anyOf" in one:
                return all(self._apart(option, other, depth + 1) for option in one["anyOf"])
            if "enum" in one:
                return not any(_fits(value, other) for value in one["enum"])
        kinds = {a.get("type"), b.get("type")}
        if None in kinds:
            return False
        if len(kinds) == 2:
            return kinds != {"integer", "number"}
        if kinds == {"object"}:
            shared = set(a.get("required", ())) & set(b.get("required", ()))
            both = [(a["properties"][key], b["properties"][key]) for key in shared]
            return any(self._apart(x, y, depth + 1) for x, y in both)
        return False

    def _seen_through(self, schema: Schema) -> Schema:
        """What a reference stands for."""
        for _ in range(MAX_DEPTH):
            if "$ref" not in schema:
                return schema
            schema = self._defs[schema["$ref"].rpartition("/")[2]]
        return {}

    def _merged(self, a: Any, b: Any, where: str, depth: int) -> Any:
        """One schema that says what both say."""
        self._step(where, depth)
        a, b = self._inlined(a, where), self._inlined(b, where)
        if a is False or b is False:
            return False
        out: Schema = {} if a is True else dict(a)
        for key, value in ({} if b is True else b).items():
            out[key] = self._both(key, out[key], value, where, depth) if key in out else value
        own = [set(s.get("properties") or ()) for s in (a, b) if isinstance(s, Mapping)]
        closed = [isinstance(s, Mapping) and "additionalProperties" in s for s in (a, b)]
        if any(closed) and len(own) == 2 and own[0] != own[1]:
            for i, s in enumerate((a, b)):
                if closed[i] and s["additionalProperties"] is not True and own[1 - i] - own[i]:
                    raise GrammarError(
                        f"{where}: additionalProperties in one part of a combination forbids the keys of "
                        "another; write one object"
                    )
            if False not in (a.get("additionalProperties"), b.get("additionalProperties")):
                out.pop("additionalProperties", None)
        return out

    def _inlined(self, schema: Any, where: str) -> Any:
        seen = 0
        while isinstance(schema, Mapping) and "$ref" in schema:
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            pointer = schema["$ref"]
            seen += 1
            if seen > MAX_DEPTH or not isinstance(pointer, str) or not pointer.startswith("#"):
                raise GrammarError(f"{where}: the reference {str(pointer)[:80]!r} cannot be merged")
            target = self._target(pointer)
            if not any(k in _COMBINING or any(k in own for own in _OWN.values()) for k in rest):
                schema = target
            elif isinstance(target, Mapping) and "$ref" not in target:
                schema = self._merged(target, rest, where, MAX_DEPTH - 4)
            else:
                raise GrammarError(f"{where}: the reference {pointer[:80]!r} cannot be merged")
        if not isinstance(schema, Mapping | bool):
            raise GrammarError(f"{where} must be a schema (an object), not {str(schema)[:40]!r}")
        return schema

    def _both(self, key: str, one: Any, other: Any, where: str, depth: int) -> Any:
        if one == other:
            return one
        if key == "properties" and isinstance(one, Mapping) and isinstance(other, Mapping):
            out = dict(one)
            for name, sub in other.items():
                place = f"{where}.properties.{name}"
                out[name] = self._merged(out[name], sub, place, depth + 1) if name in out else sub
            return out
        if key == "required" and isinstance(one, list) and isinstance(other, list):
            return [*one, *(name for name in other if name not in one)]
        if key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
            return max(_number(one, key, where), _number(other, key, where))
        if key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
            return min(_number(one, key, where), _number(other, key, where))
        if key == "enum" and isinstance(one, list) and isinstance(other, list):
            return [value for value in one if any(_same(value, x) for x in other)]
        if key == "type":
            return _common_types(one, other, where)
        if key in ("items", "additionalProperties"):
            return self._merged(one, other, f"{where}.{key}", depth + 1)
        if key in _COMBINING or any(key in own for own in _OWN.values()) or key in _REFUSED:
            raise GrammarError(f"{where}.{key} is given twice with different values; write one schema")
        return one

    # -- values --------------------------------------------------------------------------------------------

    def _enum(self, schema: Schema, where: str) -> Schema:
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list):
            raise GrammarError(f"{where}.enum must be a list of values")
        if "const" in schema:
            values = [value for value in values if _same(value, schema["const"])]
        rest = {k: v for k, v in schema.items() if k not in ("enum", "const")}
        limit = self._typed(rest, where, 1) if rest else {}
        kept = {json.dumps(value, sort_keys=True): value for value in values if _fits(value, limit)}
        return {"enum": list(kept.values())}

    def _typed(self, schema: Schema, where: str, depth: int) -> Schema:
        kinds = schema.get("type")
        if kinds is None:
            kinds = [
                kind for kind in _TYPES if any(key in schema for key in _OWN[kind]) and kind != "integer"
            ]
            if not kinds:
                return {}
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not kinds:
            raise GrammarError(f"{where}.type must be a name of a type or a list of them")
        out = []
        for kind in dict.fromkeys(str(kind).lower() for kind in kinds):  # Gemma's own spelling is uppercase
            if kind not in _TYPES:
                raise GrammarError(f"{where}.type is {kind[:40]!r}; JSON has {', '.join(_TYPES)}")
            own = {key: schema[key] for key in _OWN[kind] if key in schema}
            out.append(getattr(self, f"_{_KIND_METHOD[kind]}")(kind, own, where, depth))
        return _any_of(out)

    def _plain(self, kind: str, own: Schema, where: str, depth: int) -> Schema:
        return {"type": kind}

    def _string(self, kind: str, own: Schema, where: str, depth: int) -> Schema:
        _counts(own, ("minLength", "maxLength"), where)
        if own.pop("contentEncoding", None) == "base64" and "pattern" not in own:
            own["pattern"] = _BASE64
        pattern = own.get("pattern", "")
        if not isinstance(pattern, str):
            raise GrammarError(f"{where}.pattern must be a string")
        name = own.pop("format", None)
        if isinstance(name, str) and name in _FORMATS:
            if own.keys() & {"pattern", "minLength", "maxLength"}:
                raise GrammarError(
                    f"{where}: format {name!r} and a pattern or length together cannot be enforced; keep one"
                )
            own["pattern"] = f"^(?:{_FORMATS[name]})$"
        return {"type": kind, **own}

    def _numeric(self, kind: str, own: Schema, where: str, depth: int) -> Schema:
        for key in list(own):
            if own[key] is None or isinstance(own[key], bool):  # draft 4 wrote exclusiveMinimum: true
                raise GrammarError(f"{where}.{key} must be a number")
            value = _number(own[key], key, where)
            if abs(value) > 1e15 and key != "multipleOf":
                raise GrammarError(f"{where}.{key} is {value}; bounds up to 1e15 can be enforced")
            own[key] = int(value) if float(value).is_integer() else value
        low = max([own.get("minimum", -math.inf), own.get("exclusiveMinimum", -math.inf)])
        high = min([own.get("maximum", math.inf), own.get("exclusiveMaximum", math.inf)])
        if low > high or (
            low == high and (low == own.get("exclusiveMinimum") or high == own.get("exclusiveMaximum"))
        ):
            raise GrammarError(f"{where} allows no number: {low} to {high}")
        return {"type": kind, **own}

    def _array(self, kind: str, own: Schema, where: str, depth: int) -> Schema:
        _counts(own, ("minItems", "maxItems"), where)
        if own.pop("uniqueItems", False) and not self._sets:
            raise GrammarError(
                f"{where}.uniqueItems cannot be enforced while generating; leave it out of the schema"
            )
        first = own.get("prefixItems", [])
        items = own.get("items", True)
        if isinstance(items, list):  # drafts before 2020
            first, items = items, True
        if not isinstance(first, list):
            raise GrammarError(f"{where}.prefixItems must be a list of schemas")
        out: Schema = {"type": kind}
        if first:
            out["prefixItems"] = [
                self._schema(item, f"{where}.prefixItems[{i}]", depth + 1) for i, item in enumerate(first)
            ]
        low, high = own.get("minItems", 0), own.get("maxItems", math.inf)
        if low > high:
            raise GrammarError(f"{where} allows no array: minItems {low} is above maxItems {high}")
        rest = self._schema(items, f"{where}.items", depth + 1)
        if _impossible(rest):
            high = min(high, len(first))
        for i, item in enumerate(out.get("prefixItems", ())):
            if _impossible(item):
                high = min(high, i)
        if low > high:
            raise GrammarError(f"{where} allows no array: {low} items are asked for, {high} are possible")
        if low:
            out["minItems"] = low
        if high < math.inf:
            out["maxItems"] = int(high)
        out["items"] = False if _impossible(rest) else rest
        return out

    def _object(self, kind: str, own: Schema, where: str, depth: int) -> Schema:
        _counts(own, ("minProperties", "maxProperties"), where)
        given = own.get("properties", {})
        required = own.get("required", [])
        if not isinstance(given, Mapping):
            raise GrammarError(f"{where}.properties must be an object of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise GrammarError(f"{where}.required must be a list of names")
        extra: Any = own.get("additionalProperties", not given)
        rest = self._schema(extra, f"{where}.additionalProperties", depth + 1)
        closed = _impossible(rest)
        names = dict(given)
        for name in dict.fromkeys(required):
            if name not in names:
                if closed and "additionalProperties" in own:
                    raise GrammarError(
                        f"{where}.required names {name[:60]!r}, which is not among its properties"
                    )
                names[name] = extra if "additionalProperties" in own else True
        properties: Schema = {}
        for name, sub in names.items():
            value = self._schema(sub, f"{where}.properties.{name}", depth + 1)
            if not _impossible(value):
                properties[name] = value
            elif name in required:
                raise GrammarError(f"{where}.properties.{name} is required but allows no value")
        low, high = own.get("minProperties", 0), own.get("maxProperties", math.inf)
        most = len(properties) if closed else math.inf
        if low > min(high, most) or len(set(required)) > high:
            raise GrammarError(
                f"{where} allows no object: minProperties, maxProperties and required disagree"
            )
        out: Schema = {"type": kind, "properties": properties}
        out["required"] = [name for name in properties if name in set(required)]
        out["additionalProperties"] = False if closed else rest
        if low > len(out["required"]):
            out["minProperties"] = low
        if high < most:
            out["maxProperties"] = int(high)
        return out


_KIND_METHOD = {
    "string": "string",
    "integer": "numeric",
    "number": "numeric",
    "boolean": "plain",
    "null": "plain",
    "array": "array",
    "object": "object",
}


def _impossible(schema: Schema) -> bool:
    return schema.get("enum") == []


def _any_of(options: list[Schema]) -> Schema:
    """The alternatives flattened, without the impossible and the repeated ones."""
    flat: list[Schema] = []
    for option in options:
        for one in option.get("anyOf", [option]):
            if not _impossible(one) and one not in flat:
                flat.append(one)
    if not flat:
        return {"enum": []}
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def _counts(own: Schema, keys: Sequence[str], where: str) -> None:
    for key in keys:
        if key in own:
            value = own[key]
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or value < 0
                or value != int(value)
            ):
                raise GrammarError(
                    f"{where}.{key} must be a whole number of 0 or more, not {str(value)[:40]!r}"
                )
            own[key] = int(value)
    low, high = (own.get(key) for key in keys)
    if low is not None and high is not None and low > high:
        raise GrammarError(f"{where}: {keys[0]} {low} is above {keys[1]} {high}")


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GrammarError(f"{where}.{key} must be a number, not {str(value)[:40]!r}")
    return value


def _common_types(one: Any, other: Any, where: str) -> list[str]:
    first, second = ([t] if isinstance(t, str) else list(t) for t in (one, other))
    out = [t for t in first if t in second or (t == "integer" and "number" in second)]
    out += [t for t in second if t == "integer" and "number" in first and t not in out]
    if not out:
        raise GrammarError(f"{where}.type: no type is allowed by all parts of the combination")
    return out


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 and true differ, 1 and 1.0 do not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _fits(value: Any, schema: Schema) -> bool:
    """Whether an enum's value also meets the rest of its schema. Normal form in, no references."""
    if not schema:
        return True
    if "anyOf" in schema:
        return any(_fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(_same(value, other) for other in schema["enum"])
    kind = schema.get("type")
    if kind is None:
        return True
    if not _is_kind(value, kind):
        return False
    if kind == "string":
        pattern = schema.get("pattern")
        if pattern is not None:
            raise GrammarError("schema: enum together with pattern cannot be enforced; keep the enum")
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf))
    if kind in ("integer", "number"):
        step = schema.get("multipleOf")
        inside = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        inside &= schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
        return bool(
            inside and (step is None or math.isclose(value / step, round(value / step), rel_tol=1e-12))
        )
    return True


def _is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds: dict[str, Any] = {
        "string": str,
        "number": int | float,
        "null": type(None),
        "array": list | tuple,
        "object": Mapping,
    }
    return kind in kinds and isinstance(value, kinds[kind])
