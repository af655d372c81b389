"""Random conversations, tools and values for the chat tests."""

from typing import Any

from hypothesis import strategies as st

from gemmule._chat.messages import Message, ToolCall
from gemmule._media.parts import Audio, Image, MediaPart, Video

# Text that is hard for a template: braces, quotes, newlines, half markers, other scripts.
HARD = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "'",
    "\\",
    "`",
    "\n",
    " ",
    "a",
    "Z",
    "é",
    "日本",
    "🙂",
    "%",
    "|",
    "<",
    ">",
]
plain_text = st.lists(st.sampled_from(HARD), max_size=12).map("".join)
words = st.sampled_from(
    ["hi", "What is it?", "  padded \n", "line\nline", "naïve 日本語 🙂", "{{ x }} {% y %}", ""]
)
texts = st.one_of(words, plain_text)
names = st.sampled_from(["get_weather", "add", "Search-Web", "f", "x1", "find.all"])
keys = st.sampled_from(["city", "days", "Unit", "unit2", "a", "B", "c_d", "Ünï"])
numbers = st.one_of(
    st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)


def values(*, with_none: bool = True) -> st.SearchStrategy[Any]:
    """Anything a tool may be given."""
    leaves = st.one_of(texts, numbers, st.none()) if with_none else st.one_of(texts, numbers)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), unique_keys(inner)),
        max_leaves=6,
    )


def unique_keys(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys, inner, max_size=3)


def schemas(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    """JSON schemas that every published template prints alike."""
    described = st.one_of(
        st.just({}), st.builds(lambda d: {"description": d}, st.sampled_from(["A thing", "é"]))
    )
    nullable = st.one_of(st.just({}), st.just({"nullable": True}))
    simple = st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "enum": ["C", "F"]},
            {"type": "integer", "minimum": 0},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "array"},
        ]
    )
    kinds = [simple]
    if depth:
        inner = schemas(depth - 1)
        members = st.dictionaries(keys, inner, min_size=1, max_size=3)
        objects = st.builds(
            lambda p, required: {
                "type": "object",
                "properties": p,
                **({"required": sorted(p)[:1]} if required else {}),
            },
            members,
            st.booleans(),
        )
        kinds += [objects, st.builds(lambda items: {"type": "array", "items": items}, inner)]
    return st.builds(lambda a, b, c: {**a, **b, **c}, st.one_of(kinds), described, nullable)


def tools() -> st.SearchStrategy[list[dict[str, Any]]]:
    """Tool declarations in OpenAI's form."""
    parameters = st.builds(
        lambda p, required: {
            "type": "object",
            "properties": p,
            **({"required": sorted(p)[:2]} if required and p else {}),
        },
        st.dictionaries(keys, schemas(), max_size=3),
        st.booleans(),
    )
    tool = st.builds(
        lambda name, text, p: {
            "type": "function",
            "function": {"name": name, "description": text, **({"parameters": p} if p else {})},
        },
        names,
        st.sampled_from(["", "Looks it up", "日本 {x}"]),
        st.one_of(st.none(), parameters),
    )
    return st.lists(tool, max_size=3)


media: st.SearchStrategy[MediaPart] = st.sampled_from([0, 1, 2]).map(
    lambda k: (Image("a.png"), Audio("a.wav"), Video("a.mp4"))[k]
)


@st.composite
def assistants(draw: Any, *, published: bool) -> list[Message]:
    """An assistant message, with its tool results if it calls. `published`: only shapes in which the
    published templates have no fault.
    """
    calls = [
        ToolCall(name, arguments, f"id{k}")
        for k, (name, arguments) in enumerate(
            draw(st.lists(st.tuples(names, unique_keys(values(with_none=not published))), max_size=2))
        )
    ]
    text = draw(texts)
    thinking = draw(st.sampled_from(["", "hm", "two\nlines"]))
    if calls and published:
        text = ""
    out = [Message("assistant", (text,), thinking, tuple(calls))]
    if calls and (published or draw(st.booleans())):
        for call in calls:
            response = (
                draw(st.one_of(st.none(), unique_keys(values(with_none=False)))) if not published else None
            )
            extra = (draw(media),) if not published and response is None and draw(st.booleans()) else ()
            out.append(Message("tool", (draw(texts), *extra), tool_call_id=call.id, response=response))
        if published:
            out.append(Message("assistant", (draw(texts) + ".",)))
    return out


@st.composite
def conversations(draw: Any, *, published: bool = False) -> list[Message]:
    """System message or not, then turns."""
    out: list[Message] = []
    if draw(st.booleans()):
        count = 1 if published else draw(st.integers(1, 3))
        out.append(Message("system", tuple(draw(texts) for _ in range(count))))
    for _ in range(draw(st.integers(1, 4))):
        parts = draw(st.lists(st.one_of(texts, media), min_size=1, max_size=4))
        out.append(Message("user", tuple(parts)))
        for _ in range(draw(st.integers(0, 1 if published else 2))):
            out += draw(assistants(published=published))
    return out
