"""JSON schemas: every kind of type a caller may give, the normal form, refusals by place, limits."""

from __future__ import annotations

import dataclasses
import enum
import json
import random
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest

from constraint_helpers import random_root
from gemmule import GrammarError
from gemmule._chat.schema import SchemaSpec
from gemmule._chat.schema_limits import check_regex
from gemmule._chat.schema_normal import normalize

BIG = 10_001


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Movie(TypedDict, total=False):
    title: str
    year: int


class Pair(NamedTuple):
    left: int
    right: str


class Person(msgspec.Struct):
    name: str
    friends: list[Person] = []
    color: Color | None = None


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, float], '{"a": 1.5}', {"a": 1.5}),
        (tuple[int, str], '[1, "x"]', (1, "x")),
        (set[int], "[2, 2, 3]", {2, 3}),
        (Color, '"blue"', Color.BLUE),
        (Literal["a", 3], "3", 3),
        (int | None, "null", None),
        (Point, '{"x": 1}', Point(1)),
        (Movie, '{"year": 1999}', {"year": 1999}),
        (Pair, '[1, "b"]', Pair(1, "b")),
        (bool, "true", True),
        (Person, '{"name": "A", "friends": [{"name": "B"}]}', Person("A", [Person("B")])),
        ({"type": "integer"}, "3", 3),
        ('{"type": "integer"}', "3", 3),
        ({}, '{"any": [1]}', {"any": [1]}),
    ],
)
def test_answers_become_the_type_asked_for(kind: Any, text: str, value: Any) -> None:
    assert SchemaSpec.of(kind).parse(text) == value


def test_pydantic_models() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Pet(pydantic.BaseModel):
        name: str = pydantic.Field(description="What it is called", max_length=5)
        legs: int = pydantic.Field(4, ge=0, le=8)

    spec = SchemaSpec.of(Pet)
    assert spec.json_schema["properties"]["legs"] == {"type": "integer", "minimum": 0, "maximum": 8}
    assert spec.json_schema["additionalProperties"] is False
    assert spec.parse('{"name": "Rex"}') == Pet(name="Rex", legs=4)
    with pytest.raises(ValueError, match="name"):
        spec.parse('{"name": "Rex the dog"}')
    pets = SchemaSpec.of(list[Pet])
    assert pets.json_schema["type"] == "array"
    assert pets.parse('[{"name": "Rex"}]') == [Pet(name="Rex", legs=4)]
    with pytest.raises(GrammarError, match="schema 5 cannot be written"):
        SchemaSpec.of(5)


def test_an_answer_that_was_cut_says_where() -> None:
    for kind in ({"type": "array"}, list[int]):
        with pytest.raises(ValueError, match=r"not complete JSON.*line 1, column"):
            SchemaSpec.of(kind).parse("[1, 2")


@pytest.mark.parametrize("text", ["1e999", "[NaN]", "-Infinity", "[" * 100_000])
def test_answers_that_no_value_can_hold(text: str) -> None:
    with pytest.raises(ValueError, match="answer"):
        SchemaSpec.of({}).parse(text)


def test_a_value_that_does_not_fit_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"Point.*\$\.x"):
        SchemaSpec.of(Point).parse('{"x": "one"}')


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ({"type": "STRING", "title": "T", "default": "x"}, {"type": "string"}),
        ({"const": 1}, {"enum": [1]}),
        ({"enum": [1, "a", 1, True], "type": "integer"}, {"enum": [1]}),
        (
            {"type": ["string", "null"], "maxLength": 3},
            {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        ),
        ({"type": "integer", "nullable": True}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ({"minimum": 2}, {"type": "number", "minimum": 2}),
        (
            {"allOf": [{"type": "integer"}, {"minimum": 2.0}, {"minimum": 1}]},
            {"type": "integer", "minimum": 2},
        ),
        ({"type": "string", "format": "int-or-so"}, {"type": "string"}),
        (
            {"properties": {"a": {}, "b": False}, "required": ["a", "c"]},
            {
                "type": "object",
                "properties": {"a": {}, "c": {}},
                "required": ["a", "c"],
                "additionalProperties": False,
            },
        ),
        (
            {"type": "array", "items": [{"type": "null"}]},
            {"type": "array", "prefixItems": [{"type": "null"}], "items": {}},
        ),
        ({"anyOf": [{"type": "null"}, False, {"type": "null"}]}, {"type": "null"}),
        (
            {"oneOf": [{"type": "integer"}, {"type": "string"}]},
            {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        ),
        (
            {"type": "object", "properties": {"k": {"type": "null"}}, "anyOf": [{"required": ["k"]}, {}]},
            {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"k": {"type": "null"}},
                        "required": r,
                        "additionalProperties": False,
                    }
                    for r in (["k"], [])
                ]
            },
        ),
        (
            {"$ref": "#/definitions/n", "definitions": {"n": {"items": {"$ref": "#/definitions/n"}}}},
            {"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "array", "items": {"$ref": "#/$defs/d0"}}}},
        ),
    ],
)
def test_normal_form(given: Any, normal: Any) -> None:
    assert normalize(given) == normal
    assert normalize(normal) == normal


def test_the_normal_form_is_its_own_normal_form() -> None:
    seen = 0
    for seed in range(150):
        try:
            normal = normalize(random_root(random.Random(seed)))
        except GrammarError:
            continue
        seen += 1
        assert normalize(normal) == normal
    assert seen > 100


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"not": {}}}}, r"schema\.properties\.a\.not cannot be enforced"),
        ({"items": {"type": "array", "uniqueItems": True}}, r"schema\.items\.uniqueItems cannot be enforced"),
        ({"patternProperties": {}}, "patternProperties"),
        ({"if": {}}, "if"),
        ({"type": "integr"}, "integr"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 is above maxLength 2"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "integer", "minimum": "3"}, "minimum must be a number"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "allows no number"),
        ({"type": "array", "minItems": 2, "prefixItems": [{}], "items": False}, "allows no array"),
        ({"properties": {}, "required": ["a"], "additionalProperties": False}, "required names 'a'"),
        ({"properties": {"a": False}, "required": ["a"]}, "allows no value"),
        ({"enum": []}, "allows no value"),
        ({"$ref": "other.json#/a"}, "only #/"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"$ref": "#"}, "back to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "itself"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, r"oneOf\[0\] and \[1\] may both fit"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "pattern is given twice"),
        ({"anyOf": {}}, "anyOf must be a list"),
        ({"properties": []}, "properties must be an object"),
        ({"properties": {"a": 3}}, "must be a schema"),
        ({"maxItems": BIG}, "10000 is the most"),
        ({"enum": list(range(4097))}, "4096 are allowed"),
        ({"properties": {f"k{i}": {} for i in range(600)}}, "512 are allowed"),
        ({"description": "x" * (1 << 21)}, "larger than"),
        ({"enum": [float("nan")]}, "not JSON"),
        ({"enum": [{1: 2}]}, "keys must be strings"),
        ({"enum": [object()]}, "object, which is not JSON"),
        ({"pattern": "(a{1000}){1000}"}, "repeats within repeats"),
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "too deeply"),
        (complex, "complex"),
    ],
)
def test_refusals_name_the_place(schema: Any, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        SchemaSpec.of(schema)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def test_depth_is_limited() -> None:
    normalize(nested(31))
    for levels in (33, 90, 100_000):
        with pytest.raises(GrammarError, match=r"deeper than|nested deeper"):
            normalize(nested(levels))
    loop: dict[str, Any] = {"type": "array"}
    loop["items"] = loop
    with pytest.raises(GrammarError, match="nested deeper"):
        normalize(loop)


def test_references_that_multiply_are_refused() -> None:
    both = {name: {"$ref": "#", "minProperties": 1} for name in "xy"}
    with pytest.raises(GrammarError):
        normalize({"type": "object", "properties": both})
    chain = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(20)} | {"d20": {}}
    assert normalize({"$ref": "#/$defs/d0", "$defs": chain})


def test_tagged_unions_are_apart() -> None:
    class Cat(msgspec.Struct, tag="cat"):
        lives: int

    class Dog(msgspec.Struct, tag="dog"):
        good: bool

    spec = SchemaSpec.of(Cat | Dog)
    assert spec.parse('{"type": "dog", "good": true}') == Dog(True)
    schema = json.loads(json.dumps(spec.json_schema).replace("anyOf", "oneOf"))
    assert "anyOf" in normalize(schema)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*{1000}{1000}",
        "((a{1000}){1000}){1000}",
        "(" * 100_000,
        "a{10001}",
        "x" * 20_000,
        "(((a{99}){99}){99})",
    ],
)
def test_patterns_that_explode_are_refused(pattern: str) -> None:
    with pytest.raises(GrammarError):
        check_regex(pattern)


@pytest.mark.parametrize(
    "pattern", ["[{(]{3}", r"\{\}", "[]()]+", "a{2", "([a-z]{1,20}-){1,50}", "(?s:.{9999,10000})"]
)
def test_ordinary_patterns_pass(pattern: str) -> None:
    check_regex(pattern)
