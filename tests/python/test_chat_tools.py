"""Tools: functions and declarations become schemas, arguments become the annotated types."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import inspect
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest

from gemmule import GrammarError
from gemmule._chat.tools import Tool, tools_of


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclasses.dataclass
class Place:
    lat: float
    lon: float = 0.0


class Options(TypedDict, total=False):
    deep: bool


def properties(function: Any) -> dict[str, Any]:
    schema: dict[str, Any] = Tool.of(function).parameters
    assert schema["type"] == "object"
    properties: dict[str, Any] = schema["properties"]
    return properties


def test_types_become_schemas() -> None:
    def f(
        a: int,
        b: str | None,
        c: list[float],
        d: Literal["x", "y"],
        e: Unit,
        g: Place,
        h: dict[str, int],
        i: tuple[int, str],
        j: set[int],
        k: Any,
        m: Options,
        n: int | str,
        o: datetime.date,
        p: Annotated[int, msgspec.Meta(ge=1, le=9)],
        q: Annotated[str, "what to look for"],
        r: bool = False,
        s: int | None = None,
    ) -> None:
        """Does f."""

    tool = Tool.of(f)
    got = properties(f)
    assert tool.parameters["required"] == list("abcdeghijkmnopq")
    assert got["a"] == {"type": "integer"}
    assert got["b"] == {"type": "string", "nullable": True}
    assert got["c"] == {"type": "array", "items": {"type": "number"}}
    assert got["d"] == {"enum": ["x", "y"], "type": "string"}
    assert got["e"] == {"enum": ["celsius", "fahrenheit"], "type": "string"}
    assert got["g"]["properties"] == {"lat": {"type": "number"}, "lon": {"type": "number"}}
    assert got["g"]["required"] == ["lat"]
    assert got["h"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert got["i"]["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert got["j"] == {"type": "array", "items": {"type": "integer"}}
    assert got["k"] == {}
    assert got["m"]["properties"] == {"deep": {"type": "boolean"}}
    assert got["n"] == {"type": ["integer", "string"]}
    assert got["o"] == {"type": "string", "format": "date"}
    assert got["p"] == {"type": "integer", "minimum": 1, "maximum": 9}
    assert got["q"] == {"type": "string", "description": "what to look for"}
    assert got["r"] == {"type": "boolean"}
    assert got["s"] == {"type": "integer", "nullable": True}
    assert tool.declaration() == {
        "type": "function",
        "function": {"name": "f", "description": "Does f.", "parameters": tool.parameters},
    }


def test_without_annotations() -> None:
    def f(a, b=3, c="x", d=None, e=0.5, g=True):  # type: ignore[no-untyped-def]
        pass

    got = {name: schema["type"] for name, schema in properties(f).items()}
    assert got == {"a": "string", "b": "integer", "c": "string", "d": "string", "e": "number", "g": "boolean"}
    assert Tool.of(f).parameters["required"] == ["a"]


def google(city: str, days: int = 1) -> str:
    """Looks up the weather
    of a city.

    It is rather slow.

    Args:
        city: The city's name,
            as people write it.
        days (int): How many: one or more.

    Returns:
        str: The text.
    """
    return f"{city} {days}"


def numpy_style(city: str, days: int = 1) -> str:
    """Looks up the weather of a city.

    It is rather slow.

    Parameters
    ----------
    city : str
        The city's name, as people write it.
    days : int, optional
        How many: one or more.

    Returns
    -------
    str
        The text.
    """
    return f"{city} {days}"


def sphinx(city: str, days: int = 1) -> str:
    """Looks up the weather of a city.

    It is rather slow.

    :param city: The city's name,
        as people write it.
    :param int days: How many: one or more.
    :returns: The text.
    """
    return f"{city} {days}"


@pytest.mark.parametrize("function", [google, numpy_style, sphinx])
def test_docstrings(function: Any) -> None:
    tool = Tool.of(function)
    assert tool.description == "Looks up the weather of a city.\n\nIt is rather slow."
    got = properties(function)
    assert got["city"]["description"] == "The city's name, as people write it."
    assert got["days"]["description"] == "How many: one or more."


def test_a_docstring_of_ordinary_text() -> None:
    def f(a: int) -> None:
        """Note: this one has colons.

        a: is not described here, as no section says so.
        """

    assert (
        Tool.of(f).description
        == "Note: this one has colons.\n\na: is not described here, as no section says so."
    )
    assert "description" not in properties(f)["a"]


def test_methods_partials_and_callables() -> None:
    class Shop:
        def buy(self, what: str, count: int = 1) -> str:
            return f"{count} {what}"

        def __call__(self, what: str) -> str:
            return what

    shop = Shop()
    assert list(properties(shop.buy)) == ["what", "count"]
    assert Tool.of(shop.buy).call({"what": "tea", "count": 2}) == "2 tea"
    assert Tool.of(shop).name == "Shop"
    assert Tool.of(shop).call({"what": "x"}) == "x"
    three = functools.partial(shop.buy, count=3)
    assert Tool.of(three).name == "buy"
    assert Tool.of(three).call({"what": "tea"}) == "3 tea"


def test_async_functions_give_their_coroutine() -> None:
    async def f(a: int) -> int:
        return a + 1

    call = Tool.of(f).call({"a": 1})
    assert inspect.iscoroutine(call)
    with pytest.raises(StopIteration) as done:
        call.send(None)
    assert done.value.value == 2


def test_positional_only_and_keyword_only() -> None:
    def f(a: int, b: int = 2, /, c: int = 3, *, d: int) -> tuple[int, ...]:
        return a, b, c, d

    assert Tool.of(f).call({"a": 1, "d": 4}) == (1, 2, 3, 4)
    assert Tool.of(f).call({"a": 1, "b": 5, "c": 6, "d": 4}) == (1, 5, 6, 4)


def test_arguments_become_the_annotated_types() -> None:
    def f(when: datetime.date, unit: Unit, at: Place, tags: set[str], some: Sequence[int] = ()) -> Any:
        return when, unit, at, tags, some

    given = {"when": "2024-02-29", "unit": "celsius", "at": {"lat": 1}, "tags": ["a", "a"]}
    assert Tool.of(f).call(given) == (datetime.date(2024, 2, 29), Unit.C, Place(1.0), {"a"}, ())


def test_pydantic_arguments() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        item: str = pydantic.Field(description="What")
        count: int = 1

    def buy(order) -> Any:  # type: ignore[no-untyped-def]
        return order

    buy.__annotations__ = {"order": Order}
    assert properties(buy)["order"]["properties"]["item"] == {"type": "string", "description": "What"}
    assert Tool.of(buy).call({"order": {"item": "tea"}}) == Order(item="tea")
    with pytest.raises(ValueError, match=r"buy\(\): argument 'order'"):
        Tool.of(buy).call({"order": {}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"city": 3.5}, r"google\(\): argument 'city'"),
        ({}, r"google\(\) needs the argument 'city'"),
        ({"city": "a", "hours": 1}, r"google\(\) has no argument 'hours'; it takes city, days"),
        ({"city": "a", "days": "many"}, "'days'"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tool.of(google).call(arguments)


BARE = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}


@pytest.mark.parametrize(
    "declaration",
    [
        BARE,
        {"type": "function", "function": BARE},
        {"name": "f", "description": "d", "inputSchema": BARE["parameters"]},
        {"name": "f", "description": "d", "input_schema": {"properties": {"a": {"type": "string"}}}},
    ],
)
def test_declarations(declaration: Any) -> None:
    tool = Tool.of(declaration)
    assert tool.declaration() == {"type": "function", "function": BARE}
    with pytest.raises(ValueError, match="only a declaration"):
        tool.call({})


def stars(*names: str) -> None: ...
def options(**names: str) -> None: ...
def impossible(a: complex) -> None: ...
def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class Node:
    next: Node | None = None


def recursive(node: Node) -> None: ...


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (stars, GrammarError, r"'stars' takes \*names"),
        (options, GrammarError, r"'options' takes \*names"),
        (impossible, GrammarError, "'impossible', parameter 'a'"),
        (unknown, GrammarError, "'unknown': its type hints cannot be read"),
        (recursive, GrammarError, "Node holds itself"),
        (lambda a: a, GrammarError, "lambda"),
        (Place, TypeError, "class Place is not a tool"),
        (3, TypeError, "not int"),
        ({"description": "no name"}, GrammarError, "needs a 'name'"),
        ({"type": "web_search", "function": {}}, GrammarError, "web_search"),
        ({"name": "two words"}, GrammarError, "not usable"),
        ({"name": "f", "parameters": []}, GrammarError, "parameters must be"),
        ({"name": "f", "parameters": {}, "inputSchema": {}}, GrammarError, "has both"),
        ({"name": "f", "parameters": {"type": "string"}}, GrammarError, "type object"),
        ({"name": "f", "description": 3}, GrammarError, "description must be a string"),
        (
            {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}},
            GrammarError,
            r"'f'\.properties\.a\.not",
        ),
    ],
)
def test_refusals(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tool.of(source)


def test_a_list_of_tools() -> None:
    tools = tools_of([google, BARE, Tool("h")])
    assert [tool.name for tool in tools] == ["google", "f", "h"]
    assert tools_of(tools) == tools
    with pytest.raises(GrammarError, match="two tools are named 'google'"):
        tools_of([google, google])
    for wrong in (google, BARE, "google"):
        with pytest.raises(TypeError, match="must be a list"):
            tools_of(wrong)  # type: ignore[arg-type]


class Opaque:
    """Nothing that JSON could hold."""


def test_an_argument_that_json_cannot_hold_names_its_tool_and_place() -> None:
    def f(x: Any) -> str:
        return "never"

    tool = dataclasses.replace(Tool.of(f), function=_takes_opaque)
    with pytest.raises(
        ValueError, match=r"f\(\): argument 'x': a value of type Opaque cannot be made from JSON"
    ):
        tool.call({"x": {"a": 1}})


def _takes_opaque(x: Opaque) -> str:
    return "never"
