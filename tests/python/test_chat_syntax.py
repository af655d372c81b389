"""Gemma's notation: what is written can be read, and so can what models write instead."""
# ruff: noqa: E501  (tables of cases, one a line)

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_cases import keys, names, unique_keys, values
from gemmule._chat.syntax import parse_call, write_call, write_declaration, write_value

TOOLS = ("get_weather", "add", "search-web", "ns.find")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", '<|"|>a<|"|>'),
        (True, "true"),
        (None, "null"),
        (3, "3"),
        (2.50, "2.5"),
        (1e300, "1e+300"),
        (float("nan"), "null"),
        ([1, ["x"]], '[1,[<|"|>x<|"|>]]'),
        ((1, 2), "[1,2]"),
        ({"b": 1, "A": {"c": []}, "a2": 0}, "{A:{c:[]},a2:0,b:1}"),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert write_value(value) == text


def test_keys_of_nested_values_in_declarations_are_quoted() -> None:
    assert write_value({"a": {"b": 1}}, quote_keys=True) == '{<|"|>a<|"|>:{<|"|>b<|"|>:1}}'


def test_a_value_nested_too_deeply_is_refused() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(ValueError, match="nested deeper than 100"):
        write_value(value)


def test_a_declaration_needs_a_name() -> None:
    assert write_declaration({"name": "f"}) == 'declaration:f{description:<|"|><|"|>}'
    with pytest.raises(ValueError, match=r"function\.name"):
        write_declaration({"type": "function"})


@settings(max_examples=300, deadline=None)
@given(names, unique_keys(values()))
def test_calls_read_back(name: str, arguments: dict[str, Any]) -> None:
    assert parse_call(write_call(name, arguments)) == (name, arguments)
    assert parse_call(write_call(name, arguments), names=[name], closed=False) == (name, arguments)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('call:get_weather{city:<|"|>Paris<|"|>,days:3}', {"city": "Paris", "days": 3}),
        ("call:get_weather{}", {}),
        ("call:get_weather", {}),
        ("call:get_weather()", {}),
        (' call: get_weather { city : <|"|>Paris<|"|> , days : 3 , } ', {"city": "Paris", "days": 3}),
        ('get_weather{city:<|"|>Paris<|"|>}', {"city": "Paris"}),
        ('call:get_weather{"city": "Paris", "days": 3}', {"city": "Paris", "days": 3}),
        ("call:get_weather{'city': 'Paris'}", {"city": "Paris"}),
        ("call:get_weather{city: 'it''s'}", {"city": "it''s"}),
        ('call:get_weather{"city":"say \\"hi\\" \\u00e9\\n"}', {"city": 'say "hi" é\n'}),
        ('call:get_weather{"city":"\\ud83d\\ude42"}', {"city": "🙂"}),
        ('call:get_weather{<|"|>city<|"|>:<|"|>Paris<|"|>}', {"city": "Paris"}),
        ("call:get_weather{city:Paris}", {"city": "Paris"}),
        ("call:get_weather{city:New York, NY, days:3}", {"city": "New York, NY", "days": 3}),
        ("call:get_weather{city=Paris,days=3}", {"city": "Paris", "days": 3}),
        ('call:get_weather(city="Paris", days=3)', {"city": "Paris", "days": 3}),
        ('call:get_weather({"city": "Paris"})', {"city": "Paris"}),
        ('call:get_weather{{"city": "Paris"}}', {"city": "Paris"}),
        ('call:get_weather{"city":"Paris"}}', {"city": "Paris"}),
        ("call:get_weather{city:<|\"|>Paris<|\"|>", {"city": "Paris"}),
        ("call:get_weather{x:[1,{a:2}", {"x": [1, {"a": 2}]}),
        ("call:get_weather city:Paris", {"city": "Paris"}),
        ("call:get_weather:{city:Paris}", {"city": "Paris"}),
        ("call:functions.get_weather{city:Paris}", {"city": "Paris"}),
        ("call:default_api:get_weather{city:Paris}", {"city": "Paris"}),
        ("call:tools/get_weather{city:Paris}", {"city": "Paris"}),
        ("call:Get_Weather{city:Paris}", {"city": "Paris"}),
        ("call:get-weather{city:Paris}", {"city": "Paris"}),
        ("`call:get_weather{city:Paris}`", {"city": "Paris"}),
        ("```tool_code\nget_weather(city='Paris')\n```", {"city": "Paris"}),
        ("```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n```", {"city": "Paris"}),
        ("tool_code\nprint(get_weather(city='Paris'))", {"city": "Paris"}),
        ('{"name":"get_weather","parameters":{"city":"Paris"}}', {"city": "Paris"}),
        ('[{"type":"function","function":{"name":"get_weather","arguments":"{\\"city\\":\\"Paris\\"}"}}]', {"city": "Paris"}),
        ('call:get_weather{a:True,b:False,c:None,d:null,e:true}', {"a": True, "b": False, "c": None, "d": None, "e": True}),
        ("call:get_weather{a:1.,b:.5,c:+3,d:-2e3,e:1_000,f:007,g:1.2.3,h:-}", {"a": 1.0, "b": 0.5, "c": 3, "d": -2000.0, "e": 1000, "f": "007", "g": "1.2.3", "h": "-"}),
        ("call:get_weather{a:[1,2,],b:(3,4),c:[],d:{},}", {"a": [1, 2], "b": [3, 4], "c": [], "d": {}}),
        ("call:get_weather{\n  city: Paris\n  days: 3\n}", {"city": "Paris", "days": 3}),
        ('call:get_weather{code:<|"|>a{b}:"c",\n<d>\'<|"|>}', {"code": 'a{b}:"c",\n<d>\''}),
        ('call:get_weather{city:"""two\nlines"""}', {"city": "two\nlines"}),
        ("call:get_weather{city:}", {"city": ""}),
        ("call:get_weather{url:https://a.b/c?d=e}", {"url": "https://a.b/c?d=e"}),
    ],
)  # fmt: skip
def test_what_models_write(text: str, arguments: dict[str, Any]) -> None:
    assert parse_call(text, names=TOOLS) == ("get_weather", arguments)


@pytest.mark.parametrize(
    ("text", "name"),
    [("call:ns.find{a:1}", "ns.find"), ("call:search-web{a:1}", "search-web"), ("call:other.tool{a:1}", "other.tool"), ("call:search_web{a:1}", "search_web")],
)  # fmt: skip
def test_declared_names_win(text: str, name: str) -> None:
    assert parse_call(text, names=TOOLS).name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "call:",
        "{}",
        "[]",
        "I will call get_weather now.",
        'call:get_weather{city:<|"|>Paris}',
        'call:get_weather{city:"Paris}',
        "call:get_weather{a:]}",
        "call:get_weather{[1]}",
        "call:get_weather(1, 2)",
        "call:get_weather{a:1} and {b:2}",
        '{"arguments": {}}',
        "call:get_weather{" + "a:{" * 500 + "}" * 500 + "}",
        "call:get_weather{a:" + "[" * 500 + "]" * 500 + "}",
    ],
)
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(ValueError, match=r"call|object|string|argument|list|key"):
        parse_call(text, names=TOOLS)


@pytest.mark.parametrize(
    "text", ["call:f", "call:f{", "call:f{a:1", "call:f{a:[1,", 'call:f{a:<|"|>x<|"|>', "call:f(a=1"]
)
def test_what_is_cut_off_is_no_call(text: str) -> None:
    with pytest.raises(ValueError, match=r"call|object|string|argument|list|key"):
        parse_call(text, closed=False)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="call:f{}[]()\"'`,=<|> \\\n\t1.-_aé", max_size=60), st.booleans())
def test_nothing_but_value_error(text: str, closed: bool) -> None:
    for candidate in (text, "call:f{" + text, "call:f(" + text, "{" + text, 'call:f{a:<|"|>' + text):
        try:
            name, arguments = parse_call(candidate, names=["f"], closed=closed)
        except ValueError:
            continue
        assert name
        assert isinstance(arguments, dict)


@given(st.dictionaries(keys, st.integers(), max_size=4))
def test_json_is_read_too(arguments: dict[str, int]) -> None:
    import json

    assert parse_call("call:f" + json.dumps(arguments)) == ("f", arguments)


@pytest.mark.parametrize(
    "unit",
    ["a,", "a:1,", "'a'b,", '"a"b,', '"""', "`a`b ", "a=", "{", "[", "a:[", "'", "\\'", "x y ", '<|"|>a<|"|>,', ",", "\n", "a:'b'c,"],
)  # fmt: skip
@pytest.mark.parametrize("head", ["call:f{", "call:f{a:[", "call:f{a:x,", "call:f(", "call:f "])
def test_reading_takes_linear_time(head: str, unit: str) -> None:
    def seconds(n: int) -> float:
        start = time.process_time()
        with contextlib.suppress(ValueError):
            parse_call(head + unit * n, names=["f"])
        return time.process_time() - start

    seconds(100)
    assert seconds(40_000) < 1.5
