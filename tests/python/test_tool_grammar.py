"""Calls under the grammar of a tool: every random sentence parses and fits the tool's schema."""

from __future__ import annotations

import random
from typing import Any

import pytest

from constraint_helpers import (
    IDS,
    TOKENIZER,
    allowed,
    errors,
    random_root,
    random_schema,
    read_calls,
    spell,
    spelled,
    walk,
)
from gemmule import GrammarError
from gemmule._chat.constraint import answer_constraint, tool_constraint
from gemmule._chat.grammar import grammar_of
from gemmule._chat.syntax import write_call
from gemmule._chat.tool_grammar import lark_of_tool
from gemmule._chat.tools import Tool


def tool(parameters: Any, name: str = "do_it") -> Tool:
    return Tool(name, "", parameters)


def accepts(parameters: Any, arguments: Any) -> bool:
    """Whether a call with these arguments may be written (as text, or as the value to write)."""
    constraint = tool_constraint([tool(parameters)], TOKENIZER, IDS, choice="required", parallel=False)
    call = f"call:do_it{arguments}" if isinstance(arguments, str) else write_call("do_it", arguments)
    try:
        return spell(constraint, f"<|tool_call>{call}<tool_call|>")
    finally:
        constraint.close()


def random_calls(seeds: range) -> tuple[int, int]:
    """One random tool and one random call for each seed: how many compiled, and how many calls ended."""
    compiled = ended = 0
    for seed in seeds:
        rng = random.Random(seed)
        parameters = random_root(rng)
        try:
            constraint = tool_constraint(
                [tool(parameters)], TOKENIZER, IDS, choice="required", parallel=False
            )
        except GrammarError:
            continue
        compiled += 1
        tokens = walk(constraint, rng, most=300)
        if constraint.finished:
            ended += 1
            (call,) = read_calls(tokens, ["do_it"])
            assert call.name == "do_it"
            assert errors(call.arguments, parameters) == [], (seed, parameters, TOKENIZER.decode(tokens))
        constraint.close()
    return compiled, ended


def random_answers(seeds: range) -> tuple[int, int]:
    """The same for JSON answers."""
    compiled = ended = 0
    for seed in seeds:
        rng = random.Random(seed)
        schema = random_schema(rng, 3)
        try:
            grammar = grammar_of(schema=schema)
        except GrammarError:
            continue
        assert grammar is not None
        constraint = answer_constraint(grammar, TOKENIZER, eos_ids=TOKENIZER.eos_ids)
        compiled += 1
        tokens = walk(constraint, rng, most=300)
        if constraint.finished:
            ended += 1
            text = TOKENIZER.decode([token for token in tokens if token not in TOKENIZER.eos_ids])
            try:
                value = grammar.parse(text)
            except ValueError as error:
                assert "no float can hold" in str(error), (seed, text)  # noqa: PT017
            else:
                assert errors(value, schema) == [], (seed, schema, text)
        constraint.close()
    return compiled, ended


def test_random_calls_fit_their_schemas() -> None:
    compiled, ended = random_calls(range(60))
    assert compiled >= 50
    assert ended >= 0.9 * compiled


def test_random_answers_fit_their_schemas() -> None:
    compiled, ended = random_answers(range(60))
    assert compiled >= 55
    assert ended >= 0.9 * compiled


@pytest.mark.slow
def test_many_random_calls_and_answers() -> None:
    compiled, ended = random_calls(range(1000, 3000))
    assert ended >= 0.9 * compiled >= 1600
    compiled, ended = random_answers(range(1000, 3000))
    assert ended >= 0.9 * compiled >= 1700


PLAIN = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "Days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
    },
    "required": ["city"],
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "Paris"},
        {"city": ""},
        {"city": 'a {b:c} [d], "e"\n<|tool_call|', "Days": 14},
        {"city": "日本 🙂", "Days": 1, "unit": "F", "tags": ["a", "b"], "at": {"x": -1.5e-3}},
        {"at": {"x": 0}, "city": "x"},
        {"city": "x", "tags": []},
    ],
)
def test_calls_as_the_template_writes_them(arguments: Any) -> None:
    assert accepts(PLAIN, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        "{city:Paris}",
        '{city:"Paris"}',
        '{city:<|"|>a<|"|>,}',
        '{city:<|"|>a<|"|>,Days:0}',
        '{city:<|"|>a<|"|>,Days:15}',
        '{Days:1,city:<|"|>a<|"|>}',
        '{city:<|"|>a<|"|>,Days:1,unit:<|"|>K<|"|>}',
        '{city:<|"|>a<|"|>,unit:C}',
        '{city:<|"|>a<|"|>,tags:[<|"|>a<|"|>,<|"|>b<|"|>,<|"|>c<|"|>]}',
        '{city:<|"|>a<|"|>,more:1}',
        '{at:{},city:<|"|>a<|"|>}',
        '{city:<|"|>a<|"|>,city:<|"|>b<|"|>}',
        '{ city:<|"|>a<|"|>}',
        '{city:<|"|>a<|tool_call><|"|>}',
    ],
)
def test_calls_that_must_not_be_written(arguments: str) -> None:
    assert not accepts(PLAIN, arguments)


def test_the_order_is_the_one_of_the_template() -> None:
    arguments = {"at": {"x": 1}, "city": "a", "Days": 2, "unit": "C"}
    assert write_call("do_it", arguments).startswith("call:do_it{at:{x:1},city:")
    assert accepts(PLAIN, arguments)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "pattern": "^[a-z]+$"}, ["abc"], ["", "A", "ab1"]),
        ({"type": "string", "pattern": "b"}, ["abc", "b"], ["ac"]),
        ({"type": "string", "pattern": "^a|b$"}, ["ax", "xb"], ["xa"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["日本", "abc"], ["a", "abcd"]),
        ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "0000-01-01", "today"]),
        (
            {"type": "string", "format": "date-time"},
            ["2024-01-01T23:59:59Z"],
            ["2024-01-01", "2024-01-01T24:00:00Z"],
        ),
        ({"type": "string", "format": "email"}, ["a.b@example.org"], ["a@b", "a b@c.de"]),
        ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ({"type": "string", "contentEncoding": "base64"}, ["aGk=", ""], ["aGk", "!"]),
        (
            {"enum": ["", "a", 1, 2.5, None, True, [1, "b"], {"k": "v", "A": 0}]},
            ["", "a", 1, 2.5, None, True, [1, "b"], {"k": "v", "A": 0}],
            ["b", 2, False, []],
        ),
        ({"type": "number", "exclusiveMinimum": 0}, [0.5, 3], [0, -1]),
        ({"type": "integer", "multipleOf": 5}, [10, -5], [3]),
        (
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "items": False,
                "minItems": 1,
            },
            [[1], [1, "a"]],
            [[], ["a"], [1, "a", 2]],
        ),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [[True, False]], [[], [True]]),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            [{}, {"a": 1, "b-c": 2}],
            [{"a": "x"}],
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
            [{"a": 1}],
            [{}],
        ),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"type": "string", "nullable": True}, ["a", None], [1]),
        ({}, ["a", 1, None, [1, {"a": []}], {"x": True}], []),
        ({"type": "object"}, [{}, {"a": {"b": [1]}}], [1, []]),
    ],
)
def test_values(schema: Any, good: list[Any], bad: list[Any]) -> None:
    parameters = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    for value in good:
        assert accepts(parameters, {"v": value}), value
    for value in bad:
        assert not accepts(parameters, {"v": value}), value


TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
        }
    },
}


def tree(levels: int) -> dict[str, Any]:
    return {"name": "n"} if levels == 1 else {"name": "n", "kids": [tree(levels - 1)] * 2}


def test_recursive_schemas_end_at_a_depth() -> None:
    for levels in (1, 2, 5):
        assert accepts(TREE, {"root": tree(levels)})
    assert not accepts(TREE, {"root": tree(8)})
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(GrammarError, match="no arguments at all"):
        tool_constraint([tool(endless)], TOKENIZER, IDS)


def test_many_recursive_definitions_stay_small() -> None:
    names = [f"n{i}" for i in range(12)]
    defs = {name: {"properties": {other: {"$ref": f"#/$defs/{other}"} for other in names}} for name in names}
    lark = lark_of_tool(tool({"type": "object", "properties": {"a": {"$ref": "#/$defs/n0"}}, "$defs": defs}))
    assert len(lark.splitlines()) < 3000


def test_many_optional_keys() -> None:
    parameters = {"type": "object", "properties": {f"k{i:03}": {"type": "integer"} for i in range(120)}}
    assert accepts(parameters, {})
    assert accepts(parameters, {f"k{i:03}": i for i in range(120)})
    assert accepts(parameters, {"k003": 1, "k017": 2, "k119": 3})
    assert not accepts(parameters, "{k017:2,k003:1}")


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"a": {"type": "array", "uniqueItems": True}}, r"tool 'do_it'\.properties\.a\.uniqueItems"),
        ({"a:b": {}}, "the name 'a:b' cannot be written"),
        ({"a": {"const": 'x<|"|>'}}, "ends a string"),
        ({"a": {"type": "object", "properties": {"b": {}}, "maxProperties": 0}}, "maxProperties"),
        ({"a": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
        ({"a": {"type": "string", "pattern": "(a"}}, "regex"),
    ],
)
def test_what_cannot_be_promised_is_refused(properties: Any, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        tool_constraint([tool({"type": "object", "properties": properties})], TOKENIZER, IDS)


def test_a_declaration_that_is_not_strict_takes_any_arguments() -> None:
    loose = Tool.of(
        {"name": "loose", "strict": False, "parameters": {"properties": {"a": {"not": {"type": "null"}}}}}
    )
    constraint = tool_constraint([loose], TOKENIZER, IDS, choice="loose", parallel=False)
    assert spell(constraint, '<|tool_call>call:loose{a:1,b:[<|"|>x<|"|>]}<tool_call|>')


def test_names_that_begin_alike() -> None:
    tools = [
        tool({"type": "object", "properties": {}}, name) for name in ("get", "get_more", "get.most-of_all")
    ]
    for one in tools:
        constraint = tool_constraint(tools, TOKENIZER, IDS, choice="required", parallel=False)
        assert spell(constraint, f"<|tool_call>call:{one.name}{{}}<tool_call|>")
    constraint = tool_constraint(tools, TOKENIZER, IDS, choice="get_more", parallel=False)
    assert not spell(constraint, "<|tool_call>call:get{}<tool_call|>")


def test_a_string_never_spells_its_own_end() -> None:
    constraint = tool_constraint([tool(PLAIN)], TOKENIZER, IDS, choice="required", parallel=False)
    begun = spelled('<|tool_call>call:do_it{city:<|"|>')
    for token in (*begun, TOKENIZER.id_of("<|"), TOKENIZER.id_of('"')):
        assert token is not None
        assert token in allowed(constraint.mask())  # type: ignore[arg-type]
        constraint.accept(token)
    options = allowed(constraint.mask())  # type: ignore[arg-type]
    assert TOKENIZER.id_of("|") in options
    constraint.accept(spelled("|")[0])
    assert TOKENIZER.id_of(">") not in allowed(constraint.mask())  # type: ignore[arg-type]
