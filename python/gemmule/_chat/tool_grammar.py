"""A tool's JSON schema as a Lark grammar over Gemma's own notation for calls: call:NAME{key:value,...}

Keys are bare and sorted as the chat template sorts them (ignoring case); strings stand between two quote
tokens and hold anything but the quote's spelling; no blank space between tokens. References become rules once
per level, so recursive schemas end after a fixed number of levels, where an alternative that would go on is
left out. Every sentence of the grammar reads back as arguments that fit the schema.
"""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemmule._chat.grammar import regex_literal, text_literal
from gemmule._chat.schema_normal import Schema, normalize
from gemmule._chat.syntax import QUOTE
from gemmule._errors import GrammarError

if TYPE_CHECKING:
    from gemmule._chat.tools import Tool

__all__ = ["lark_of_tool", "lark_of_tools"]

_LEVELS = 6  # of a recursive schema, and of values of any type
_BLOCK = 16  # optional keys written out per rule
_MAX_RULES = 20_000
# A key that every reader of the notation takes bare, and what a free key may look like.
_BARE_KEY = re.compile(r"[^\s:{}\[\],<>\"]+")
_FREE_KEY = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}"
# Bounded digits: a number fits a float and cannot be written for ever.
_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+\-]?[0-9]{1,2})?"
_INTEGER = r"-?(0|[1-9][0-9]{0,17})"


def lark_of_tool(tool: "Tool", *, quote: int | str = QUOTE) -> str:
    """The grammar of one call, from `call:` to the closing brace.

    `quote` is the id of the quote token, or text to stand for it where a vocabulary has no such token.
    """
    return lark_of_tools([tool], quote=quote)


def lark_of_tools(tools: Sequence["Tool"], *, quote: int | str, close: int | str | None = None) -> str:
    """The grammar of a call of any of the tools, ended by the token `close`."""
    writer = _Writer(quote)
    calls = []
    for tool in tools:
        where = f"tool {tool.name!r}"
        schema = normalize(tool.parameters, where=where) if tool.checked else {"type": "object"}
        writer.begin(where, schema)
        arguments = writer.value(_only_object(schema, where))
        if arguments is None:
            raise GrammarError(f"{where}: its parameters allow no arguments at all")
        calls.append(f"{text_literal(tool.name)} {arguments}")
    end = "" if close is None else " " + _token(close)
    return writer.text(f'start: "call:" ({" | ".join(calls)}){end}')


def _only_object(schema: Schema, where: str) -> Schema:
    if schema.get("type", "object") != "object" or "anyOf" in schema or "enum" in schema:
        raise GrammarError(f"{where}: parameters must be a schema of type object")
    if "$ref" not in schema and "type" not in schema:
        return {**schema, "type": "object"}
    return schema


def _token(token: int | str) -> str:
    return f"<[{token}]>" if isinstance(token, int) else text_literal(token)


class _Writer:
    """Collects rules; `value` gives the expression for a schema, or None where nothing can be written."""

    def __init__(self, quote: int | str) -> None:
        self._quote = _token(quote)
        self._rules: dict[str, str] = {}
        self._known: dict[str, str | None] = {}  # what a rule was made from -> its name
        self._where = ""
        self._defs: Schema = {}
        self._recursive: set[str] = set()

    def begin(self, where: str, schema: Schema) -> None:
        self._where = where
        self._defs = schema.get("$defs", {})
        self._recursive = {name for name in self._defs if name in self._reached(self._defs[name])}

    def _reached(self, schema: Schema) -> set[str]:
        """The names of all references in `schema` and in what they stand for."""
        found: set[str] = set()
        stack: list[Any] = [schema]
        while stack:
            node = stack.pop()
            if isinstance(node, dict):
                name = node["$ref"].rpartition("/")[2] if isinstance(node.get("$ref"), str) else None
                if name is not None and name in self._defs and name not in found:
                    found.add(name)
                    stack.append(self._defs[name])
                stack.extend(node.values())
            elif isinstance(node, list):
                stack.extend(node)
        return found

    def text(self, start: str) -> str:
        return "\n".join([start, *(f"{name}: {body}" for name, body in self._rules.items())]) + "\n"

    def _rule(self, body: str, *, token: bool = False) -> str:
        key = ("T" if token else "r") + body
        name = self._known.get(key)
        if name is None:
            name = f"{'T' if token else 'r'}{len(self._rules)}"
            self._known[key] = name
            self._rules[name] = body
            if len(self._rules) > _MAX_RULES:
                raise GrammarError(
                    f"{self._where}: the parameters need more than {_MAX_RULES} rules; simplify them"
                )
        return name

    # -- values --------------------------------------------------------------------------------------------

    def value(self, schema: Schema, level: int = 0, free: int = _LEVELS) -> str | None:
        """`level`: recursive references around this value; `free`: levels left for values of any type."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name in self._recursive:
                if level >= _LEVELS:
                    return None
                level += 1
            key = f"{self._where}/{name}/{level}/{free}"
            if key not in self._known:
                self._known[key] = self.value(self._defs[name], level, free)
            return self._known[key]
        if "anyOf" in schema:
            options = [self.value(option, level, free) for option in schema["anyOf"]]
            return self._one_of([option for option in options if option is not None])
        if "enum" in schema:
            return self._one_of(self._constants(schema["enum"]))
        kind = schema.get("type")
        if kind is None:
            return self._anything(free)
        if kind == "object":
            return self._object(schema, level, free)
        if kind == "array":
            return self._array(schema, level, free)
        if kind == "string":
            return self._string(schema)
        if kind == "boolean":
            return self._rule('"true" | "false"', token=True)
        if kind == "null":
            return '"null"'
        return self._number(schema)

    def _one_of(self, options: list[str]) -> str | None:
        if len(options) < 2:
            return options[0] if options else None
        return self._rule(" | ".join(dict.fromkeys(options)))

    def _anything(self, free: int) -> str | None:
        if free <= 0:
            return None
        scalars = [self._string({}), self._number({"type": "number"}), '"true"', '"false"', '"null"']
        deeper: Schema = {"additionalProperties": {}, "properties": {}, "required": []}
        options = [
            *scalars,
            self._object(deeper, 0, free - 1),
            self._array({"items": {}}, 0, free - 1),
        ]
        return self._one_of([option for option in options if option is not None])

    def _number(self, schema: Schema) -> str:
        limits = {key: value for key, value in schema.items() if key != "type"}
        if limits:
            return self._rule(f"%json {json.dumps({'type': schema['type'], **limits})}")
        plain = _INTEGER if schema["type"] == "integer" else _NUMBER
        return self._rule(regex_literal(plain), token=True)

    def _string(self, schema: Schema) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        content = f"/(?s:.*)/ & ~/(?s:.*){re.escape(QUOTE)}(?s:.*)/"
        if low or high is not None:
            content += f" & /(?s:.{{{low},{'' if high is None else high}}})/"
        if "pattern" in schema:
            content += f" & {_searched(schema['pattern'], self._where)}"
        return f"{self._quote} {self._rule(content, token=True)} {self._quote}"

    def _constants(self, values: Sequence[Any]) -> list[str]:
        """The alternatives for fixed values; all strings share one token rule."""
        texts = [text_literal(self._quotable(value)) for value in values if isinstance(value, str) and value]
        out = [self._literal(value) for value in values if not isinstance(value, str) or not value]
        if texts:
            out.append(f"{self._quote} {self._rule(' | '.join(texts), token=True)} {self._quote}")
        return out

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            words = [self._quote, text_literal(self._quotable(value)), self._quote]
            return " ".join(word for word in words if word != '""')
        if isinstance(value, list | tuple):
            return '"[" ' + ' "," '.join(map(self._literal, value)) + ' "]"'
        if isinstance(value, dict):
            pairs = [f"{self._key(key)} {self._literal(value[key])}" for key in _sorted(value)]
            return '"{" ' + ' "," '.join(pairs) + ' "}"'
        return text_literal(json.dumps(value))

    def _quotable(self, text: str) -> str:
        if QUOTE in text:
            raise GrammarError(
                f"{self._where}: a fixed string holds {QUOTE}, which ends a string in Gemma's calls"
            )
        return text

    # -- objects and arrays --------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        if not _BARE_KEY.fullmatch(name):
            raise GrammarError(
                f"{self._where}: the name {name[:60]!r} cannot be written in Gemma's calls; "
                "use letters, digits, _ . and -"
            )
        return text_literal(name + ":")

    def _object(self, schema: Schema, level: int, free: int) -> str | None:
        required = set(schema.get("required", ()))
        pairs: list[tuple[str, bool]] = []
        for name in _sorted(schema.get("properties", ())):
            value = self.value(schema["properties"][name], level, free)
            if value is not None:
                pairs.append((f"{self._key(name)} {value}", name in required))
            elif name in required:
                return None
        extra = self._extra_pair(schema, level, free)
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if low > 1 or high is not None or (low == 1 and pairs and not required):
            raise GrammarError(
                f"{self._where}: minProperties and maxProperties cannot be enforced; leave them out"
            )
        if not pairs:
            if extra is None:
                return None if low else '"{}"'
            return self._rule(f'"{{" {extra} ("," {extra})* "}}"' + ("" if low else ' | "{}"'))
        more = f' ("," {extra})*' if extra is not None else ""
        if required:
            inner = self._around_required(pairs) + more
        else:
            inner = self._all_optional(pairs, more)
            inner = f"({inner})?" if extra is None else f'({inner} | {extra} ("," {extra})*)?'
        return self._rule(f'"{{" {inner} "}}"')

    def _extra_pair(self, schema: Schema, level: int, free: int) -> str | None:
        """One key that is not declared, with its value."""
        rest = schema.get("additionalProperties", {})
        if rest is False:
            return None
        value = self.value(rest, level, free)
        if value is None:
            return None
        key = regex_literal(_FREE_KEY)
        known = [re.escape(name) for name in schema.get("properties", ()) if re.fullmatch(_FREE_KEY, name)]
        if known:
            key += f" & ~{regex_literal('|'.join(known))}"
        return self._rule(f'{self._rule(key, token=True)} ":" {value}')

    @staticmethod
    def _around_required(pairs: list[tuple[str, bool]]) -> str:
        """Optional pairs before the first required one carry their comma behind, all others in front."""
        first = next(i for i, (_, needed) in enumerate(pairs) if needed)
        out = [f'({pair} ",")?' for pair, _ in pairs[:first]]
        out.append(pairs[first][0])
        out += [f'"," {pair}' if needed else f'("," {pair})?' for pair, needed in pairs[first + 1 :]]
        return " ".join(out)

    def _all_optional(self, pairs: list[tuple[str, bool]], more: str) -> str:
        """At least one of the pairs, then `more`: one alternative for each pair that may come first."""
        named = [self._rule(pair) for pair, _ in pairs]
        tail = more
        options: list[str] = []
        for start in range(len(named) - 1, -1, -_BLOCK):
            block = named[max(0, start - _BLOCK + 1) : start + 1]
            for i, pair in enumerate(block):
                options.append(pair + "".join(f' ("," {other})?' for other in block[i + 1 :]) + tail)
            tail = " " + self._rule("".join(f'("," {other})? ' for other in block) + tail)
        return " | ".join(options)

    def _array(self, schema: Schema, level: int, free: int) -> str | None:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        first = [self.value(item, level, free) for item in schema.get("prefixItems", ())]
        if None in first:  # an item too deep cannot be written, nor can any after it
            high = min(first.index(None), len(first) if high is None else high)
            first = first[:high]
        if high is not None:
            first = first[:high]
        items = schema["items"]
        item = (
            None
            if items is False or (high is not None and high <= len(first))
            else self.value(items, level, free)
        )
        if item is None:
            high = len(first) if high is None else min(high, len(first))
        if high is not None and low > high:
            return None
        if high == 0:
            return '"[]"'
        return self._rule(self._items([one for one in first if one is not None], item, low, high))

    @staticmethod
    def _items(first: list[str], item: str | None, low: int, high: int | None) -> str:
        if not first and item is not None:
            times = f"{{{max(0, low - 1)},{'' if high is None else high - 1}}}"
            body = f'"[" {item} ("," {item}){times} "]"'
            return body if low else body + ' | "[]"'
        body = ""
        if item is not None:
            n = len(first)
            body = f'("," {item}){{{max(0, low - n)},{"" if high is None else high - n}}}'
        for i in range(len(first) - 1, -1, -1):  # from the last fixed item inwards
            comma = '"," ' if i else ""
            body = f"{comma}{first[i]} {body}"
            if i >= low:
                body = f"({body})?"
        return f'"[" {body} "]"'


def _sorted(names: Any) -> list[str]:
    """As Jinja's dictsort does."""
    return sorted(names, key=str.lower)


def _searched(pattern: str, where: str) -> str:
    """A JSON-schema pattern, which may match anywhere, as a regex of the whole text."""
    parts = []
    for option in _alternatives(pattern):
        begins, ends = option.startswith("^"), bool(re.search(r"(?<!\\)(\\\\)*\$$", option))
        middle = option[begins : len(option) - ends]
        parts.append(("" if begins else "(?s:.*)") + f"(?:{middle})" + ("" if ends else "(?s:.*)"))
    try:
        return regex_literal("|".join(parts))
    except ValueError as error:
        raise GrammarError(f"{where}: the pattern {pattern[:60]!r} cannot be used ({error})") from None


def _alternatives(pattern: str) -> list[str]:
    """Splits at the bars outside of all groups and classes; refuses anchors elsewhere than at the ends."""
    out, depth, at, start = [], 0, 0, 0
    in_class = False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
            at += pattern[at + 1 : at + 2] == "^"
            at += pattern[at + 1 : at + 2] == "]"
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "|" and depth == 0:
            out.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*out, pattern[start:]]
