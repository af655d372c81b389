"""Functions that a model may call: from a Python function, or from a declaration in the OpenAI or MCP shape.

A function's signature and docstring (Google, NumPy or Sphinx style) become the JSON schema: the type hints
through msgspec, the first paragraph as description, the entry of each parameter as its description.
A parameter without hint and default is a string; one with a plain default has the default's type. A parameter
with a default is not required. Optional[X] is X with `nullable`. References are written out, because the
model only ever sees the declaration.
"""

import enum
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmule._chat.schema import type_schema
from gemmule._chat.schema_limits import check_tree
from gemmule._chat.schema_normal import normalize
from gemmule._errors import GrammarError

__all__ = ["Tool", "tools_of"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
_MAX_TOOLS = 512
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Tool:
    """One function the model may call.

    name, description, parameters: what the model is told; `parameters` is a JSON schema of type object.
    function: what `call` runs; None for a declaration. checked: whether calls are held to the schema while
    they are written ("strict": false in a declaration turns that off).
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    function: Callable[..., Any] | None = field(default=None, compare=False)
    checked: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise GrammarError(
                f"the tool name {str(self.name)[:60]!r} is not usable; use letters, digits, _ . and -"
            )
        if not isinstance(self.description, str):
            raise GrammarError(f"tool {self.name!r}: the description must be a string")
        where = f"tool {self.name!r}"
        check_tree(self.parameters, where)
        if not isinstance(self.parameters, dict) or self.parameters.get("type", "object") != "object":
            raise GrammarError(f"{where}: parameters must be a JSON schema of type object")
        if self.checked:
            normalize(self.parameters, where=where)

    @classmethod
    def of(cls, source: "Callable[..., Any] | Mapping[str, Any] | Tool") -> "Tool":
        """From a function, or a dict in the shape of OpenAI (with or without its wrapper) or MCP."""
        if isinstance(source, Tool):
            return source
        if isinstance(source, Mapping):
            return _declared(source)
        if callable(source):
            return _of_function(source)
        raise TypeError(f"a tool is a function or a declaration (dict), not {type(source).__name__}")

    def declaration(self) -> dict[str, Any]:
        """The OpenAI shape."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """Runs the function with the arguments turned into the types it asks for. An async function gives its
        coroutine.
        """
        if self.function is None:
            raise ValueError(f"the tool {self.name!r} is only a declaration and has no function to call")
        return _called(self.function, arguments, self.name)


def tools_of(tools: "Sequence[Callable[..., Any] | Mapping[str, Any] | Tool]") -> tuple[Tool, ...]:
    """All tools of a request; a name may occur once."""
    if not isinstance(tools, Iterable) or isinstance(tools, str | bytes | Mapping) or callable(tools):
        raise TypeError("tools must be a list of functions or declarations")
    out = tuple(Tool.of(tool) for tool in tools)
    if len(out) > _MAX_TOOLS:
        raise GrammarError(f"there are {len(out)} tools; {_MAX_TOOLS} are allowed")
    names = [tool.name for tool in out]
    for name in names:
        if names.count(name) > 1:
            raise GrammarError(f"two tools are named {name!r}; give one of them another name")
    return out


# -- declarations ------------------------------------------------------------------------------------------


def _declared(source: Mapping[str, Any]) -> Tool:
    inner: Any = source
    if "function" in source:
        if source.get("type", "function") != "function":
            raise GrammarError(f"a tool of type {source['type']!r} is not known; 'function' is")
        inner = source["function"]
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise GrammarError("a tool declaration needs a 'name' (OpenAI's, bare, or MCP's shape)")
    name = inner["name"]
    given = [key for key in ("parameters", "inputSchema", "input_schema") if inner.get(key) is not None]
    if len(given) > 1:
        raise GrammarError(f"tool {name!r} has both {given[0]} and {given[1]}; give one")
    parameters = inner[given[0]] if given else {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise GrammarError(f"tool {name!r}: {given[0]} must be a JSON schema (an object)")
    parameters = {"type": "object", "properties": {}, **parameters}
    strict = inner.get("strict", source.get("strict"))
    return Tool(name, inner.get("description") or "", parameters, checked=strict is not False)


# -- functions ---------------------------------------------------------------------------------------------


def _of_function(function: Callable[..., Any]) -> Tool:
    name = _function_name(function)
    if isinstance(function, type):
        raise TypeError(f"the class {name} is not a tool; give a function or an instance that can be called")
    document = _Docstring(inspect.getdoc(_underlying(function)) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter, hint in _parameters(function, name):
        schema = _parameter_schema(hint, name, parameter.name)
        description = schema.get("description") or document.parameters.get(parameter.name)
        if description:
            schema = {**schema, "description": description}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(name, document.summary, parameters, function)


def _function_name(function: Any) -> str:
    inner = _underlying(function)
    name = getattr(inner, "__name__", None) or type(inner).__name__
    if name == "<lambda>":
        raise GrammarError("a lambda has no name that the model could call; define a function")
    return str(name)


def _underlying(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _parameters(function: Callable[..., Any], name: str) -> list[tuple[inspect.Parameter, Any]]:
    """Each parameter with its type hint; refuses what has no fixed names."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise GrammarError(f"tool {name!r} has no signature to read; wrap it in a function") from None
    inner = _underlying(function)
    hinted = inner if inspect.isroutine(inner) else type(inner).__call__
    try:
        hints = typing.get_type_hints(hinted, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise GrammarError(f"tool {name!r}: its type hints cannot be read ({error})") from None
    out = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise GrammarError(
                f"tool {name!r} takes *{parameter.name}; name each parameter, so that the model can"
            )
        out.append((parameter, _hint(parameter, hints)))
    return out


def _hint(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    if parameter.name in hints:
        return hints[parameter.name]
    return type(parameter.default) if type(parameter.default) in _PLAIN else str


def _parameter_schema(hint: Any, tool: str, name: str) -> dict[str, Any]:
    try:
        schema = _written_out(*_hint_schema(hint))
    except GrammarError as error:
        raise GrammarError(f"tool {tool!r}, parameter {name!r}: {error}") from None
    assert isinstance(schema, dict)
    return schema


def _hint_schema(hint: Any) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The schema of a hint and its $defs. Annotated[X, "text"] carries a description."""
    description = ""
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        texts = [extra for extra in extras if isinstance(extra, str)]
        texts += [text for extra in extras if isinstance(text := getattr(extra, "description", None), str)]
        description = texts[0] if texts else ""
        kept = [extra for extra in extras if type(extra).__module__.startswith("msgspec")]
        hint = functools.reduce(lambda kind, extra: typing.Annotated[kind, extra], kept, base)
    if hasattr(hint, "model_json_schema") and hasattr(hint, "model_validate"):
        schema = dict(hint.model_json_schema())
    else:
        schema = dict(type_schema(hint))
    defs = schema.pop("$defs", {})
    if description:
        schema["description"] = description
    return schema, defs


def _written_out(schema: Any, defs: Mapping[str, Any], inside: tuple[str, ...] = ()) -> Any:
    """The schema without references, with a type wherever there is one, and X-or-null as nullable X."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in inside or len(inside) > _MAX_DEPTH:
            raise GrammarError(f"{name} holds itself, which a declaration cannot show; use a flat type")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_written_out(defs[name], defs, (*inside, name)), **rest}
    out = {key: value for key, value in schema.items() if key not in ("title", "default", "discriminator")}
    out.pop("uniqueItems", None)  # from a set, which forgets repeats by itself
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _written_out(out[key], defs, inside)
    if "properties" in out:
        out["properties"] = {
            key: _written_out(value, defs, inside) for key, value in out["properties"].items()
        }
    if "prefixItems" in out:
        out["prefixItems"] = [_written_out(value, defs, inside) for value in out["prefixItems"]]
    for key in ("anyOf", "oneOf"):
        if key in out:
            return _union(out, key, defs, inside)
    if "const" in out:
        out["enum"] = [out.pop("const")]
    if "enum" in out and "type" not in out:
        kinds = {_PLAIN[type(value)] for value in out["enum"] if type(value) in _PLAIN}
        if len(kinds) == 1 and None not in out["enum"]:
            out["type"] = kinds.pop()
    return out


def _union(out: dict[str, Any], key: str, defs: Mapping[str, Any], inside: tuple[str, ...]) -> dict[str, Any]:
    options = [_written_out(option, defs, inside) for option in out.pop(key)]
    others = [option for option in options if option != {"type": "null"}]
    nullable = len(others) < len(options)
    if len(others) == 1:
        merged = {**others[0], **out}
    elif all(set(option) == {"type"} and isinstance(option["type"], str) for option in others):
        merged = {**out, "type": [option["type"] for option in others]}
    else:
        merged = {**out, "anyOf": others}
    return {**merged, "nullable": True} if nullable else merged


# -- calling -----------------------------------------------------------------------------------------------


def _called(function: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Any:
    parameters = _parameters(function, name)
    known = {parameter.name for parameter, _ in parameters}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(
            f"{name}() has no argument {unknown[0]!r}; it takes {', '.join(sorted(known)) or 'none'}"
        )
    positional, keywords = [], {}
    for parameter, hint in parameters:
        if parameter.name in arguments:
            value = _converted(arguments[parameter.name], hint, f"{name}(): argument {parameter.name!r}")
        elif parameter.default is not parameter.empty:
            value = parameter.default
        else:
            raise ValueError(f"{name}() needs the argument {parameter.name!r}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(value)
        elif parameter.name in arguments:
            keywords[parameter.name] = value
    return function(*positional, **keywords)


def _converted(value: Any, hint: Any, where: str) -> Any:
    import msgspec

    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        kept = [extra for extra in extras if type(extra).__module__.startswith("msgspec")]
        hint = functools.reduce(lambda kind, extra: typing.Annotated[kind, extra], kept, base)
    try:
        if hasattr(hint, "model_validate"):
            return hint.model_validate(value)
        return msgspec.convert(value, hint, strict=False, dec_hook=_pydantic_hook)
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _pydantic_hook(kind: Any, value: Any) -> Any:
    """Models within lists and unions, which msgspec does not know."""
    if hasattr(kind, "model_validate"):
        return kind.model_validate(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    raise TypeError(f"a value of type {getattr(kind, '__name__', kind)} cannot be made from JSON")


# -- docstrings --------------------------------------------------------------------------------------------

_SECTION = re.compile(
    r"(args|arguments|parameters|params|keyword args|keyword arguments|other parameters)\s*:?\s*$", re.I
)
_OTHER = re.compile(
    r"(returns?|raises|yields?|examples?|notes?|see also|attributes|warnings?|warns|references)\s*:?\s*$",
    re.I,
)
_SPHINX = re.compile(
    r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:\n]*?\s)?\*{0,2}(\w+)\s*:\s*(.*)"
)
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")


class _Docstring:
    """`summary`: the text before the first section. `parameters`: name -> description."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        self.parameters: dict[str, str] = {}
        summary: list[str] = []
        at = 0
        while at < len(lines):
            line = lines[at]
            underlined = at + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[at + 1]) is not None
            if _SECTION.fullmatch(line.strip()) and (underlined or line.rstrip().endswith(":")):
                at = self._numpy(lines, at + 2) if underlined else self._google(lines, at + 1)
            elif line.lstrip().startswith(":") and re.match(r"\s*:\w+", line):
                at = self._sphinx(lines, at)
            elif _OTHER.fullmatch(line.strip()) and (underlined or line.rstrip().endswith(":")):
                at = self._skipped(lines, at + 1)
            else:
                summary.append(line)
                at += 1
        self.summary = _joined(summary)

    def _google(self, lines: list[str], at: int) -> int:
        """Entries `name (type): text`, one step in; text that goes on is further in."""
        indent: int | None = None
        name = ""
        while at < len(lines):
            line = lines[at]
            depth = len(line) - len(line.lstrip())
            if line.strip() and depth == 0:
                break
            if line.strip():
                indent = depth if indent is None else indent
                found = _GOOGLE.match(line.strip()) if depth <= indent else None
                if found is not None:
                    name = found[1]
                    self.parameters[name] = found[2].strip()
                elif name:
                    self.parameters[name] = f"{self.parameters[name]} {line.strip()}".strip()
            at += 1
        return at

    def _numpy(self, lines: list[str], at: int) -> int:
        """Entries `name : type` at the margin, their text further in."""
        names: list[str] = []
        while at < len(lines):
            line = lines[at]
            if line.strip() and not line[0].isspace():
                if at + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[at + 1]):
                    break
                found = _NUMPY.match(line.strip())
                if found is None:
                    break
                names = [name.strip().lstrip("*") for name in found[1].split(",")]
            elif line.strip():
                for name in names:
                    self.parameters[name] = f"{self.parameters.get(name, '')} {line.strip()}".strip()
            at += 1
        return at

    def _sphinx(self, lines: list[str], at: int) -> int:
        found = _SPHINX.match(lines[at].strip())
        text = [found[2]] if found else []
        depth = len(lines[at]) - len(lines[at].lstrip())
        at += 1
        while at < len(lines) and lines[at].strip() and len(lines[at]) - len(lines[at].lstrip()) > depth:
            text.append(lines[at].strip())
            at += 1
        if found:
            self.parameters[found[1]] = " ".join(text).strip()
        return at

    @staticmethod
    def _skipped(lines: list[str], at: int) -> int:
        """Past a section that is no concern of the model."""
        if at < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[at]):
            at += 1
            while at < len(lines) and not (
                at + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[at + 1]) and lines[at].strip()
            ):
                at += 1
            return at
        while at < len(lines) and (not lines[at].strip() or lines[at][0].isspace()):
            at += 1
        return at


def _joined(lines: list[str]) -> str:
    """Paragraphs with their lines joined."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return "\n\n".join(" ".join(part.split()) for part in paragraphs if part.strip())
