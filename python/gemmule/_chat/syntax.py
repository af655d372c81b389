"""Gemma 4's own notation for values, tool declarations and tool calls: writing it, and reading it tolerantly.

A string is <|"|>text<|"|> without escapes, a mapping {key:value,...} with bare sorted keys, a list [a,b];
a call is call:NAME{key:value,...}. Models, small ones above all, also write JSON, Python and fenced code;
`parse_call` takes these. Source: the chat template published with Gemma 4.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "QUOTE",
    "ParsedCall",
    "declared",
    "emit_declaration",
    "emit_value",
    "parse_call",
    "write_call",
    "write_declaration",
    "write_value",
]

QUOTE = '<|"|>'
Emit = Callable[[str, bool], None]  # (text, foreign): foreign text came from people or models
_MAX_DEPTH = 100


class ParsedCall(NamedTuple):
    """A call as read from text."""

    name: str
    arguments: dict[str, Any]


# -- writing values ----------------------------------------------------------------------------------------


def emit_value(value: Any, emit: Emit, *, quote_keys: bool = False, depth: int = 0) -> None:
    """Writes one value. `quote_keys`: as in declarations, where keys of nested values are quoted."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"a tool's value is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str):
        _emit_string(value, emit)
    elif value is None or (isinstance(value, float) and not math.isfinite(value)):
        emit("null", False)
    elif isinstance(value, bool):
        emit("true" if value else "false", False)
    elif isinstance(value, int | float):
        emit(repr(value), False)
    elif isinstance(value, Mapping):
        emit("{", False)
        for i, (key, item) in enumerate(by_key(value)):
            if i:
                emit(",", False)
            if quote_keys:
                _emit_string(str(key), emit)
            else:
                emit(str(key), True)
            emit(":", False)
            emit_value(item, emit, quote_keys=quote_keys, depth=depth + 1)
        emit("}", False)
    elif isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        emit("[", False)
        for i, item in enumerate(value):
            if i:
                emit(",", False)
            emit_value(item, emit, quote_keys=quote_keys, depth=depth + 1)
        emit("]", False)
    elif hasattr(value, "item"):  # numpy's scalars
        emit_value(value.item(), emit, quote_keys=quote_keys, depth=depth + 1)
    else:
        _emit_string(str(value), emit)


def by_key(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """The entries in the order of Jinja's dictsort: by key, upper and lower case alike."""
    return sorted(mapping.items(), key=lambda entry: str(entry[0]).lower())


def _emit_string(text: str, emit: Emit) -> None:
    emit(QUOTE, False)
    emit(text, True)
    emit(QUOTE, False)


def write_value(value: Any, *, quote_keys: bool = False) -> str:
    """One value as text."""
    return _written(lambda emit: emit_value(value, emit, quote_keys=quote_keys))


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """call:NAME{...}, without the marker tokens around it."""
    return f"call:{name}{write_value(arguments)}"


def write_declaration(tool: Mapping[str, Any]) -> str:
    """declaration:NAME{...} of a tool in OpenAI's form, without the marker tokens around it."""
    return _written(lambda emit: emit_declaration(declared(tool), emit))


def _written(write: Callable[[Emit], None]) -> str:
    out: list[str] = []
    write(lambda text, _: out.append(text))
    return "".join(out)


# -- writing declarations ----------------------------------------------------------------------------------


def declared(tool: Mapping[str, Any], *, type_lists: bool = True) -> dict[str, Any]:
    """The tool with what the notation needs and cannot do without: every schema has a type, references to
    $defs are resolved, "X or null" is a nullable X. Without `type_lists` a type is always one word, for older
    templates, which print a list as Python would.
    """
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("a tool declaration needs function.name")
    out: dict[str, Any] = {"name": function["name"], "description": function.get("description") or ""}
    for key in ("parameters", "response"):
        schema = function.get(key)
        if schema and isinstance(schema, Mapping):
            out[key] = _Normal(schema, type_lists).schema(schema, fallback="object")
    return {"type": "function", "function": out}


class _Normal:
    """Rewrites one tool's schemas."""

    _PRINTED = ("description", "type", "enum", "items", "nullable", "properties", "required")

    def __init__(self, root: Mapping[str, Any], type_lists: bool) -> None:
        self._root = root
        self._type_lists = type_lists

    def schema(
        self, schema: Any, *, fallback: str = "string", seen: tuple[str, ...] = (), depth: int = 0
    ) -> dict[str, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"a tool's schema is nested deeper than {_MAX_DEPTH} levels")
        out = dict(schema) if isinstance(schema, Mapping) else {}
        while isinstance(ref := out.pop("$ref", None), str) and ref not in seen:
            seen = (*seen, ref)
            out = {**self._resolve(ref), **out}
        for key in ("allOf", "anyOf", "oneOf"):
            if isinstance(branches := out.get(key), Sequence) and not isinstance(branches, str):
                self._join(out, key, [self.schema(b, seen=seen, depth=depth + 1) for b in branches])
        kind = self._type(out, fallback)
        out["type"] = kind
        if isinstance(out.get("properties"), Mapping):
            out["properties"] = {
                str(name): self.schema(item, seen=seen, depth=depth + 1)
                for name, item in out["properties"].items()
            }
        if isinstance(out.get("items"), Mapping) and out["items"]:
            items = out["items"]
            inner = self.schema(items, seen=seen, depth=depth + 1)
            # The notation prints every keyword of `items`, so nothing is added there but the type.
            out["items"] = {key: inner[key] for key in inner if key in items or key in self._PRINTED}
            for key in ("anyOf", "oneOf", "allOf", "$ref", "$defs", "title"):
                out["items"].pop(key, None)
        if _is(kind, "object") and "properties" not in out:
            # Templates take an object's other keywords for properties where it has none.
            out = {key: out[key] for key in self._PRINTED if key in out} | {"properties": {}}
        return out

    def _join(self, out: dict[str, Any], key: str, branches: list[dict[str, Any]]) -> None:
        """What the branches of anyOf and its kin say together, as far as the notation can tell it."""
        del out[key]
        some = [branch for branch in branches if branch["type"] != "null"]
        if len(some) < len(branches):
            out.setdefault("nullable", True)
        types = list(dict.fromkeys(t for branch in some for t in _as_list(branch["type"])))
        for branch in some:
            for name in self._PRINTED:
                if name in branch and name != "type":
                    if key == "allOf" and name == "properties":
                        out[name] = {**branch[name], **out.get(name, {})}
                    elif key == "allOf" and name == "required":
                        out[name] = [*out.get(name, []), *branch[name]]
                    else:
                        out.setdefault(name, branch[name])
        if types:
            out.setdefault("type", types[0] if len(types) == 1 or key == "allOf" else types)

    def _resolve(self, ref: str) -> Mapping[str, Any]:
        here: Any = self._root
        for step in ref.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            here = here.get(step) if isinstance(here, Mapping) else None
        return here if ref.startswith("#") and isinstance(here, Mapping) else {}

    def _type(self, schema: dict[str, Any], fallback: str) -> Any:
        kind = schema.get("type")
        if isinstance(kind, str) and kind:
            return kind
        if isinstance(kind, Sequence) and not isinstance(kind, str):
            kinds = [str(item) for item in kind]
            if self._type_lists and len(kinds) > 1:
                return kinds
            some = [item for item in kinds if item.lower() != "null"]
            if len(some) < len(kinds):
                schema.setdefault("nullable", True)
            return some[0] if some else fallback
        if "const" in schema and "enum" not in schema:
            schema["enum"] = [schema["const"]]
        values = schema.get("enum")
        if isinstance(values, Sequence) and not isinstance(values, str) and values:
            for value in values:
                if value is not None:
                    return _type_name(value)
        if "properties" in schema or "additionalProperties" in schema:
            return "object"
        if "items" in schema or "prefixItems" in schema:
            return "array"
        if any(key in schema for key in ("minimum", "maximum", "multipleOf", "exclusiveMinimum")):
            return "number"
        return fallback


def _type_name(value: Any) -> str:
    names = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (Mapping, "object"))
    return next((name for kind, name in names if isinstance(value, kind)), "array")


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)


def _is(kind: Any, name: str) -> bool:
    """Whether a type, or one of several, is `name`."""
    return any(isinstance(item, str) and item.lower() == name for item in _as_list(kind))


def emit_declaration(tool: Mapping[str, Any], emit: Emit) -> None:
    """Writes a tool that `declared` returned."""
    function = tool["function"]
    emit("declaration:", False)
    emit(function["name"], True)
    emit("{description:", False)
    _emit_string(function["description"], emit)
    if "parameters" in function:
        emit(",parameters:{", False)
        _emit_parameters(function["parameters"], emit)
        emit("}", False)
    if "response" in function:
        schema = function["response"]
        emit(",response:{", False)
        if schema.get("description"):
            emit("description:", False)
            _emit_string(str(schema["description"]), emit)
            emit(",", False)
        _emit_type(schema["type"], emit)
        emit("}", False)
    emit("}", False)


def _emit_parameters(schema: Mapping[str, Any], emit: Emit) -> None:
    if schema.get("properties"):
        emit("properties:{", False)
        _emit_properties(schema["properties"], emit)
        emit("},", False)
    if schema.get("required"):
        _emit_required(schema["required"], emit)
        emit(",", False)
    _emit_type(schema["type"], emit)


def _emit_type(kind: Any, emit: Emit) -> None:
    emit("type:", False)
    emit_value([str(item).upper() for item in kind] if isinstance(kind, list) else str(kind).upper(), emit)


def _emit_required(names: Any, emit: Emit) -> None:
    emit("required:", False)
    emit_value([str(name) for name in names], emit)


def _emit_properties(properties: Mapping[str, Any], emit: Emit) -> None:
    for i, (name, schema) in enumerate(by_key(properties)):
        if i:
            emit(",", False)
        emit(str(name), True)
        emit(":{", False)
        _emit_property(schema, emit)
        emit("}", False)


def _emit_property(schema: Mapping[str, Any], emit: Emit) -> None:
    kind = schema["type"]
    if schema.get("description"):
        emit("description:", False)
        _emit_string(str(schema["description"]), emit)
        emit(",", False)
    if _is(kind, "string"):
        if schema.get("enum"):
            emit("enum:", False)
            emit_value(schema["enum"], emit, quote_keys=True)
            emit(",", False)
    elif _is(kind, "array") and schema.get("items"):
        emit("items:{", False)
        _emit_items(schema["items"], emit)
        emit("},", False)
    if schema.get("nullable"):
        emit("nullable:true,", False)
    if _is(kind, "object"):
        emit("properties:{", False)
        _emit_properties(schema["properties"], emit)
        emit("},", False)
        if schema.get("required"):
            _emit_required(schema["required"], emit)
            emit(",", False)
    _emit_type(kind, emit)


def _emit_items(items: Mapping[str, Any], emit: Emit) -> None:
    entries = [(key, value) for key, value in by_key(items) if value is not None]
    for i, (key, value) in enumerate(entries):
        if i:
            emit(",", False)
        if key == "properties" and isinstance(value, Mapping):
            emit("properties:{", False)
            _emit_properties(value, emit)
            emit("}", False)
        elif key == "required" and not isinstance(value, str):
            _emit_required(value, emit)
        elif key == "type":
            _emit_type(value, emit)
        else:
            emit(str(key), True)
            emit(":", False)
            emit_value(value, emit, quote_keys=True)


# -- reading calls -----------------------------------------------------------------------------------------

_FENCE = re.compile(r"\A```[\w+-]*[ \t]*\r?\n?|\A`+")
_CALL = re.compile(r"\A(?:tool_code\b|tool_call\b)?\s*(?:call\s*:)?\s*", re.IGNORECASE)
_PRINT = re.compile(r"\Aprint\s*\(\s*(?=[\w.]+\s*\()")
_NAME = re.compile(r"[\w.\-/:]+")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][\d_]*)?(?:\.\d*)?(?:[eE][+-]?\d+)?\Z")
_SPACE = re.compile(r"\s*")
_ASSIGNED = re.compile(r"\s*[\w.\-]+\s*\Z")
_WORDS = {
    "true": True,
    "false": False,
    "null": None,
    "none": None,
    "undefined": None,
}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_STRAY = set("`;,)}]")
_MAX_READ_DEPTH = 64
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}


def parse_call(
    text: str, *, names: Sequence[str] = (), closed: bool = True, quotes: Sequence[str] = (QUOTE,)
) -> ParsedCall:
    """The call in `text`, which stands between the tool-call markers.

    Takes Gemma's notation and what models write instead: JSON, Python's call syntax, code fences, backticks,
    other quotes, namespaced names, trailing commas, missing closing braces (only if the text is `closed`,
    not cut off). `names`: the declared tools, which win over guesses. Time is linear in the text.

    Throws ValueError when no call can be made out.
    """
    text = _unfenced(text.strip())
    text = text[_CALL.match(text).end() :]  # type: ignore[union-attr]
    if "print" not in names:
        text = _PRINT.sub("", text)
    reader = _Reader(text, tuple(quotes), closed)
    if text.startswith(("{", "[")):
        return _from_json(reader, names)
    name, at = _name(text, names, reader)
    reader.at = at
    reader.skip_space()
    arguments: dict[str, Any] = {}
    first = reader.peek()
    if first in ("{", "("):
        arguments = reader.arguments(first)
    elif first and first not in _STRAY:
        arguments = reader.pairs("")  # the opening brace was forgotten
    elif not first and not closed:
        raise ValueError("the call is cut off")
    reader.finish()
    return ParsedCall(name, arguments)


def _unfenced(text: str) -> str:
    if text.startswith("`"):
        text = text[_FENCE.match(text).end() :]  # type: ignore[union-attr]
        text = text.rstrip().rstrip("`")
        text = text.strip()
    return text


def _name(text: str, names: Sequence[str], reader: "_Reader") -> tuple[str, int]:
    """The function's name and where it ends."""
    for name in sorted(names, key=len, reverse=True):
        if name and text.startswith(name):
            rest = text[len(name) : len(name) + 1]
            if not rest or not (rest.isalnum() or rest in "_.-/:"):
                return name, len(name)
    quote = reader.quote_here()
    if quote:
        name = reader.string(quote)
        if not name.strip():
            raise ValueError("the call has no name")
        return _declared_name(name, names), reader.at
    match = _NAME.match(text)
    if match is None:
        raise ValueError("the call has no name")
    found = match[0]
    end = match.end()
    while found and found[-1] in ":.":
        found, end = found[:-1], end
    if not found:
        raise ValueError("the call has no name")
    if ":" in found and not _declared(found, names):  # name:key:value, the brace was forgotten
        head = found.split(":", 1)[0]
        if _declared(head, names):
            return _declared_name(head, names), len(head) + 1
    return _declared_name(found, names), end


def _declared(name: str, names: Sequence[str]) -> bool:
    return _declared_name(name, names) in names


def _declared_name(name: str, names: Sequence[str]) -> str:
    """A declared name that `name` means, else the name without its namespace only if nothing was declared."""
    name = name.strip()
    if name in names or not name:
        return name
    last = re.split(r"[.:/]", name)[-1]
    for guess in (last, name.replace("-", "_"), last.replace("-", "_")):
        if guess in names:
            return guess
    folded = [known for known in names if known.lower() in (name.lower(), last.lower())]
    return folded[0] if len(folded) == 1 else name


def _from_json(reader: "_Reader", names: Sequence[str]) -> ParsedCall:
    """{"name": ..., "arguments": {...}} and its variants."""
    value = reader.value(0)
    reader.finish()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if isinstance(value, dict):
        name = next((value[key] for key in ("name", "function", "tool", "tool_name") if key in value), None)
        arguments: Any = next(
            (value[key] for key in ("arguments", "parameters", "args", "input") if key in value), {}
        )
        if isinstance(arguments, str):
            inner = _Reader(arguments.strip(), reader.quotes, True)
            arguments = inner.value(0) if arguments.strip() else {}
        if isinstance(name, str) and name.strip() and isinstance(arguments, dict | None):
            return ParsedCall(_declared_name(name, names), arguments or {})
    raise ValueError("the object does not name a function")


class _Reader:
    """A tolerant reader of values, from left to right without going back."""

    def __init__(self, text: str, quotes: tuple[str, ...], closed: bool) -> None:
        self.text = text
        self.quotes = quotes
        self.closed = closed
        self.at = 0
        self._endless: set[str] = set()  # quotes that close nothing from here on

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def finish(self) -> None:
        """Nothing but stray closers may follow."""
        rest = self.text[self.at :]
        if not all(c in _STRAY or c.isspace() for c in rest):
            raise ValueError("something follows the call")

    def arguments(self, opener: str) -> dict[str, Any]:
        """The arguments within { } or ( )."""
        self.at += 1
        self.skip_space()
        if self.peek() == "{":  # {{...}} or name({...})
            start = self.at
            inner = self.value(1)
            self.skip_space()
            if isinstance(inner, dict) and (self.peek() in (_CLOSERS[opener], ",") or self._may_end()):
                if self.peek():
                    self.at += 1
                return inner
            self.at = start
            raise ValueError("an argument has no name")
        return self.pairs(_CLOSERS[opener])

    def pairs(self, closer: str, depth: int = 1) -> dict[str, Any]:
        """key:value pairs up to the closer; an empty closer means the end of the text."""
        out: dict[str, Any] = {}
        bare = ""  # the key of the last value, if that was a bare string
        while True:
            self._skip_commas()
            if not self.peek():
                if closer and not self.closed:
                    raise ValueError("the call is cut off")
                return out
            if self.peek() == closer:
                self.at += 1
                return out
            if not closer and self.peek() in _STRAY:
                return out
            key = self._key(closer, bool(bare))
            if key is None:  # a comma inside a bare string: the rest of it
                more = self._bare(closer).strip()
                if not more:
                    raise ValueError("a stray bracket stands in the call")
                out[bare] += ", " + more
                continue
            self.skip_space()
            start = self.at
            out[key] = self.value(depth, closer)
            is_bare = isinstance(out[key], str) and not self._quoted(start)
            bare = key if is_bare else ""

    def _skip_commas(self) -> None:
        self.skip_space()
        while self.peek() == ",":
            self.at += 1
            self.skip_space()

    def _quoted(self, at: int) -> bool:
        return self.text.startswith((*self.quotes, '"', "'", "`"), at)

    def _key(self, closer: str, may_continue: bool) -> str | None:
        """A key and its colon. None: this is no key but more of the bare string before."""
        quote = self.quote_here()
        if quote:
            key = self.string(quote, key=True)
            self.skip_space()
            if self.peek() not in (":", "="):
                raise ValueError("a key has no value")
            self.at += 1
            return key
        at, text = self.at, self.text
        colon = _first(text, at, ":}\n," if may_continue else ":}\n")
        equals = _first(text, at, "=:,}\n")
        if equals < len(text) and text[equals] == "=" and _ASSIGNED.match(text, at, equals):
            follows = text[equals + 1 : equals + 2]
            canonical = closer == "}" and text[colon : colon + 1] == ":" and "," not in text[at:colon]
            inside = text[equals + 1 : equals + 40].lstrip().startswith((*self.quotes, '"', "'", "[", "{"))
            if follows != "=" and (inside or not canonical):
                self.at = equals + 1
                return text[at:equals].strip()
        if colon >= len(text) or text[colon] != ":":
            if may_continue:
                return None
            raise ValueError("an argument has no name")
        self.at = colon + 1
        return text[at:colon].strip()

    def value(self, depth: int, closer: str = "") -> Any:
        """Any value. `closer` ends a bare string, as do a comma and the closing brackets."""
        if depth > _MAX_READ_DEPTH:
            raise ValueError("the call is nested too deeply")
        self.skip_space()
        quote = self.quote_here()
        if quote:
            return self.string(quote)
        opener = self.peek()
        if opener == "{":
            self.at += 1
            return self.pairs("}", depth + 1)
        if opener in ("[", "("):
            return self._list(_CLOSERS[opener], depth)
        return _plain(self._bare(closer).strip())

    def _list(self, closer: str, depth: int) -> list[Any]:
        self.at += 1
        out: list[Any] = []
        while True:
            self._skip_commas()
            if not self.peek():
                if not self.closed:
                    raise ValueError("the call is cut off")
                return out
            if self.peek() == closer:
                self.at += 1
                return out
            start = self.at
            out.append(self.value(depth + 1, closer))
            if self.at == start:
                raise ValueError("a list holds a stray bracket")

    def _bare(self, closer: str) -> str:
        """Text without quotes: up to a comma or closing bracket outside of any opened in it."""
        text, start = self.text, self.at
        match = _BARE[")" if closer == ")" else ""].match(text, start)
        self.at = match.end()  # type: ignore[union-attr]
        if self.at >= len(text) and not self.closed:
            raise ValueError("the call is cut off")
        return text[start : self.at]

    def quote_here(self) -> str:
        """The quote that opens a string here, or ''."""
        for quote in self.quotes:
            if self.text.startswith(quote, self.at):
                return quote
        return self.peek() if self.peek() in ('"', "'", "`") else ""

    def string(self, quote: str, *, key: bool = False) -> str:
        """A quoted string. Gemma's quotes know no escapes; others do, and end where a value can end."""
        start = self.at + len(quote)
        if len(quote) > 1 or quote in self.quotes:
            end = self.text.find(quote, start)
            if end < 0:
                raise ValueError("a string is not closed")
            self.at = end + len(quote)
            return self.text[start:end]
        if self.text.startswith(quote * 2, start) and not key:  # Python's triple quotes
            end = self.text.find(quote * 3, start + 2)
            if end >= 0:
                self.at = end + 3
                return self.text[start + 2 : end]
        return self._escaped(quote, start)

    def _escaped(self, quote: str, start: int) -> str:
        text, at, fallback = self.text, start, -1
        while True:
            at = _first(text, at, quote + "\\")
            if at >= len(text):
                break
            if text[at] == "\\":
                at += 2
                continue
            after = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
            if after >= len(text) or text[after] in ",:=}])`;" or quote in self._endless:
                self.at = at + 1
                return _unescaped(text[start:at])
            if fallback < 0:
                fallback = at
            at = max(after, at + 1)
        if fallback < 0:
            raise ValueError("a string is not closed")
        self._endless.add(quote)
        self.at = fallback + 1
        return _unescaped(text[start:fallback])

    def _may_end(self) -> bool:
        return self.closed and not self.peek()


_BARE = {"": re.compile(r"[^,\]}\n]*"), ")": re.compile(r"[^,\])}\n]*")}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def one(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code in "\"'\\/`":
            return code
        return _ESCAPES.get(code, match[0])

    def pair(match: re.Match[str]) -> str:
        return match[0].encode("utf-16", "surrogatepass").decode("utf-16")

    text = _SURROGATES.sub(pair, _ESCAPE.sub(one, text))
    return text.encode("utf-8", "replace").decode() if re.search("[\ud800-\udfff]", text) else text


def _first(text: str, at: int, chars: str) -> int:
    """The first place from `at` on that holds one of the characters, else the end."""
    match = re.compile(f"[{re.escape(chars)}]").search(text, at)
    return match.start() if match else len(text)


def _plain(word: str) -> Any:
    """A word without quotes: a literal, a number, else the word itself."""
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if word and any(c.isdigit() for c in word) and _NUMBER.match(word):
        try:
            digits = word.replace("_", "")
            return float(digits) if any(c in digits for c in ".eE") else int(digits)
        except ValueError:
            return word
    return word
