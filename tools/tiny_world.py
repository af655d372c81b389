"""Dialogues about figures, beeps and tools, from which train_tiny.py teaches the small model of the package.

A dialogue is a list of messages in OpenAI's form plus tools and switches; every call of make_dialogue gives a
fresh one. render_pieces writes it as Gemma 4's chat template does (turns, thinking, tool syntax) and marks
what the model itself has to say. Needs numpy and Pillow alone.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["KINDS", "Dialogue", "Piece", "make_dialogue", "render_pieces", "world"]


def _load_world() -> ModuleType:
    """gemmule/_demo/world.py of this tree, without importing the package and its compiled core."""
    path = Path(__file__).resolve().parents[1] / "python/gemmule/_demo/world.py"
    spec = importlib.util.spec_from_file_location("tiny_world_drawings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


world = _load_world()
Rng = np.random.Generator
Message = dict[str, Any]
Json = dict[str, Any]
_spread: ContextVar[float] = ContextVar("spread", default=1.0)
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"
QUOTE = '<|"|>'


@dataclass
class Dialogue:
    """One conversation that ends with the model's answer, or plain text if there are no messages."""

    kind: str
    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool = False
    text: str = ""  # of plain text

    @property
    def media(self) -> list[dict[str, Any]]:
        """The parts that are pictures and clips, in the order of the prompt."""
        return [
            part
            for message in self.messages
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] != "text"
        ]


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt. `own`: the model says it itself."""

    text: str
    own: bool = False


# -- template ---


def _value(value: Any, *, quote_keys: bool = False) -> str:
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        mark = QUOTE if quote_keys else ""
        items = sorted(value.items(), key=lambda item: item[0].lower())
        return "{" + ",".join(f"{mark}{k}{mark}:{_value(v, quote_keys=quote_keys)}" for k, v in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_value(item, quote_keys=quote_keys) for item in value) + "]"
    return str(value)


def _declaration(tool: Mapping[str, Any]) -> str:
    function = tool["function"]
    parameters = function["parameters"]
    properties = []
    for name, schema in sorted(parameters["properties"].items(), key=lambda item: item[0].lower()):
        parts = []
        if schema.get("description"):
            parts.append("description:" + _value(schema["description"]))
        if "enum" in schema:
            parts.append("enum:" + _value(schema["enum"]))
        parts.append("type:" + _value(schema["type"].upper()))
        properties.append(f"{name}:{{{','.join(parts)}}}")
    body = f"properties:{{{','.join(properties)}}},"
    if parameters.get("required"):
        body += f"required:{_value(parameters['required'])},"
    return (
        f"<|tool>declaration:{function['name']}{{description:{_value(function['description'])},"
        f"parameters:{{{body}type:{QUOTE}OBJECT{QUOTE}}}}}<tool|>"
    )


def _user_text(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    return "".join(part["text"].strip() if "text" in part else f"<|{part['type']}|>" for part in content)


def _calls(message: Message) -> str:
    return "".join(
        f"<|tool_call>call:{call['function']['name']}{_value(call['function']['arguments'])}<tool_call|>"
        for call in message["tool_calls"]
    )


def render_pieces(dialogue: Dialogue, *, prefill: bool = True) -> list[Piece]:
    """The whole dialogue; media stand as <|image|> and <|audio|>.

    A dialogue that ends with a user's or tool's message gets the prompt for the answer. `prefill`: the turn
    after the last question begins with the empty thought of a prompt (without thinking), as while it is made;
    once its turn has calls in it, the template leaves the empty thought out.
    """
    if not dialogue.messages:
        return [Piece("<bos>"), Piece(dialogue.text + "<eos>", own=True)]
    pieces, messages = [Piece("<bos>")], list(dialogue.messages)
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    if dialogue.think or dialogue.tools or system:
        switch = "<|think|>\n" if dialogue.think else ""
        tools = "".join(_declaration(tool) for tool in dialogue.tools)
        pieces.append(Piece(f"<|turn>system\n{switch}{system.strip()}{tools}<turn|>\n"))
    last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
    empty_thought = [Piece(EMPTY_THOUGHT)] if prefill and not dialogue.think else []
    in_turn = False
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            pieces.append(Piece(f"<|turn>user\n{_user_text(message['content'])}<turn|>\n"))
            in_turn = False
        elif role == "tool":
            content = message["content"]
            body = _value(content) if isinstance(content, Mapping) else f"{{value:{_value(content)}}}"
            # The model itself opens the first response, then it stops.
            opening = "" if messages[i - 1]["role"] == "assistant" else "<|tool_response>"
            pieces.append(Piece(f"{opening}response:{message['name']}{body}<tool_response|>"))
        else:
            # Old thoughts are left out, so earlier turns of a thinking model are no examples for it.
            own = not dialogue.think or i > last_user
            if not in_turn:
                pieces.append(Piece("<|turn>model\n"))
                pieces += empty_thought if i > last_user else []
            in_turn = True
            if i > last_user and message.get("reasoning"):
                pieces.append(Piece(f"<|channel>thought\n{message['reasoning']}\n<channel|>", own=own))
            if message.get("tool_calls"):
                pieces.append(Piece(_calls(message) + "<|tool_response>", own=own))
            else:
                pieces += [Piece(message["content"] + "<turn|>", own=own), Piece("\n")]
    if messages[-1]["role"] == "user":
        pieces += [Piece("<|turn>model\n"), *empty_thought]
    return pieces


# -- words ---


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words(
    "Anna Ben Clara David Emma Felix Gina Hugo Ida Jonas Karl Lena Mia Nils Olga Paul Rosa Sam Tina Umar "
    "Vera Will Yara Zoe Adam Bella Carlos Dora Elias Fatima Greta Henry Ivan Julia Kofi Lucia Marco Nora "
    "Omar Petra"
)
_CITIES = _words(
    "Paris Rome Berlin London Madrid Vienna Oslo Lisbon Athens Dublin Prague Warsaw Cairo Tokyo Lima Delhi "
    "Sydney Toronto Chicago Boston Nairobi Lagos Havana Seoul Zurich Geneva Munich Hamburg Lyon Milan Naples "
    "Turin Porto Bergen Krakow Riga Tallinn Vilnius Sofia Quito"
)
_ROOMS = _words("kitchen bedroom bathroom garden garage office hall cellar attic library")
_ITEMS = _words(
    "lamp book chair table bottle jacket bicycle pencil mirror blanket guitar camera umbrella clock"
)
_SKIES = _words("sunny cloudy rainy windy foggy snowy stormy clear")
_CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "England": "London", "Spain": "Madrid",
    "Austria": "Vienna", "Norway": "Oslo", "Portugal": "Lisbon", "Greece": "Athens", "Ireland": "Dublin",
    "Poland": "Warsaw", "Egypt": "Cairo", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi",
}  # fmt: skip
_SYLLABLES = _words(
    "ba be bi bo bu da de do ka ko la le li lo lu ma me mi mo na ne no pa po ra re ro sa si ta te to va vi zo"
)
_SEEN = ["What is in the picture?", "What do you see?", "Describe the picture.", "What is this?"]
_SEEN += ["What does the image show?", "What is in this image?", "Name the colour and the shape."]
_COLOUR = ["What colour is the figure?", "Which colour is it?", "What color is it?", "What colour is it?"]
_SHAPE = ["What shape is the figure?", "Which shape is it?", "What shape is it?", "What shape do you see?"]
_HEARD = ["What do you hear?", "Describe the sound.", "What is in the recording?", "What is this sound?"]
_COUNT = ["How many beeps are there?", "How many beeps do you hear?", "Count the beeps.", "How many beeps?"]
_PITCH = ["Are the beeps high or low?", "Is the sound high or low?", "Which pitch do you hear?"]
_BOTH = [
    "What do you see and hear?",
    "Describe the picture and the sound.",
    "What is in the picture and in the sound?",
]
_CAPITAL_LETTERS = ["Answer in capital letters.", "Use capital letters only.", "Write in capital letters."]
_STYLE = ["You are a helpful assistant.", "You are helpful.", "Answer briefly.", "Be brief."]


def _pick(rng: Rng, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _some(rng: Rng, items: Sequence[str], invented: float = 0.15) -> str:
    """One of the names, or sometimes a name that nobody has heard."""
    if rng.random() < invented:
        return "".join(_pick(rng, _SYLLABLES) for _ in range(int(rng.integers(2, 4)))).capitalize()
    return str(_pick(rng, items))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _ask(rng: Rng, questions: Sequence[str]) -> str:
    """A question as people type it."""
    text = str(_pick(rng, questions))
    if rng.random() < 0.12:
        text = text.lower()
    return text.rstrip("?.") if rng.random() < 0.12 else text


# -- dialogues about media ---


@dataclass
class _Scene:
    """What one prompt shows: (question, answer, thought) triples of every medium."""

    parts: list[dict[str, Any]]
    topics: list[tuple[list[str], str, str]]


def _figure(rng: Rng) -> tuple[Json, str, str]:
    """(part of a message, colour, shape). The facts serve training alone."""
    image, colour, shape = world.draw_scene(rng, spread=_spread.get())
    facts = list(world.COLOURS).index(colour), world.SHAPES.index(shape)
    return {"type": "image", "image": image, "facts": facts}, colour, shape


def _beeps(rng: Rng) -> tuple[Json, int, str]:
    """(part of a message, count, pitch)"""
    count, pitch = int(rng.integers(1, 6)), str(_pick(rng, list(world.PITCHES)))
    sound, starts = world.beep_track(count, pitch, rng)
    facts = starts, list(world.PITCHES).index(pitch)
    return {"type": "audio", "audio": sound, "facts": facts}, count, pitch


def _figure_topics(colour: str, shape: str) -> list[tuple[list[str], str, str]]:
    what = world.describe_figure(colour, shape)
    thought = f"I see {what}."
    return [
        (_SEEN, _sentence(what), thought),
        (_COLOUR, _sentence(colour), thought),
        (_SHAPE, _sentence("a " + shape), thought),
    ]


def _beep_topics(count: int, pitch: str) -> list[tuple[list[str], str, str]]:
    what = world.describe_beeps(count, pitch)
    thought = f"I hear {what}."
    return [
        (_HEARD, _sentence(what), thought),
        (_COUNT, _sentence(world.COUNTS[count]), thought),
        (_PITCH, _sentence(pitch), thought),
    ]


def _image_scene(rng: Rng) -> _Scene:
    image, colour, shape = _figure(rng)
    return _Scene([image], _figure_topics(colour, shape))


def _audio_scene(rng: Rng) -> _Scene:
    sound, count, pitch = _beeps(rng)
    return _Scene([sound], _beep_topics(count, pitch))


def _both_scene(rng: Rng) -> _Scene:
    image, colour, shape = _figure(rng)
    sound, count, pitch = _beeps(rng)
    seen, heard = world.describe_figure(colour, shape), world.describe_beeps(count, pitch)
    parts = [image, sound]
    if rng.random() < 0.5:
        parts.reverse()
    both = (_BOTH, _sentence(f"{seen} and {heard}"), f"I see {seen} and hear {heard}.")
    return _Scene(parts, [both, both, *_figure_topics(colour, shape), *_beep_topics(count, pitch)])


def _two_scene(rng: Rng) -> _Scene:
    (one, *first), (two, *second) = _figure(rng), _figure(rng)
    a, b = world.describe_figure(*first), world.describe_figure(*second)
    parts = [one, two]
    thought = f"I see {a} and {b}."
    return _Scene(
        parts,
        [
            (["What is in the first picture?", "Describe the first picture."], _sentence(a), thought),
            (["What is in the second picture?", "Describe the second picture."], _sentence(b), thought),
            (["What is in the two pictures?", "What do you see?"], _sentence(f"{a} and {b}"), thought),
        ],
    )


def _media_dialogue(rng: Rng, kind: str, scene: _Scene) -> Dialogue:
    dialogue = Dialogue(kind, think=bool(rng.random() < 0.15))
    capitals = rng.random() < 0.1
    if capitals:
        dialogue.messages.append({"role": "system", "content": _pick(rng, _CAPITAL_LETTERS)})
    elif rng.random() < 0.1:
        dialogue.messages.append({"role": "system", "content": _pick(rng, _STYLE)})
    n_turns = int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))
    order = rng.permutation(len(scene.topics))[:n_turns]
    for turn, topic in enumerate(order):
        questions, answer, thought = scene.topics[topic]
        content: Any = _ask(rng, questions)
        if turn == 0:
            text = {"type": "text", "text": content}
            content = [text, *scene.parts] if rng.random() < 0.15 else [*scene.parts, text]
        dialogue.messages.append({"role": "user", "content": content})
        reply: Message = {"role": "assistant", "content": answer.upper() if capitals else answer}
        if dialogue.think:
            reply["reasoning"] = thought
        dialogue.messages.append(reply)
    return dialogue


# -- dialogues with tools ---


@dataclass(frozen=True)
class _Tool:
    """A kind of tool: names it goes by, what it says of itself, and its use."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    properties: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...]  # (names, type, descriptions)
    # rng -> (question, arguments in the order of properties, possible results, answer of a result)
    use: Callable[[Rng], tuple[str, list[Any], Any, str]]


def _number(rng: Rng, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _weather(rng: Rng) -> tuple[str, list[Any], Any, str]:
    city, sky, degrees = _some(rng, _CITIES), _pick(rng, _SKIES), _number(rng, -9, 35)
    ask = [f"What is the weather in {city}?", f"How is the weather in {city}?", f"Is it sunny in {city}?"]
    if rng.random() < 0.4:
        return _pick(rng, ask), [city], sky, f"It is {sky} in {city}."
    key = _pick(rng, ("condition", "sky", "weather"))
    result = {key: sky, "temperature": degrees}
    return _pick(rng, ask), [city], result, f"It is {sky} and {degrees} degrees in {city}."


def _clock(rng: Rng) -> tuple[str, list[Any], Any, str]:
    city, time = _some(rng, _CITIES), f"{_number(rng, 0, 23):02}:{_number(rng, 0, 59):02}"
    result = time if rng.random() < 0.6 else {"time": time}
    ask = [f"What time is it in {city}?", f"Tell me the time in {city}."]
    return _pick(rng, ask), [city], result, f"It is {time} in {city}."


def _timer(rng: Rng) -> tuple[str, list[Any], Any, str]:
    n = _number(rng, 2, 90)
    result = _pick(rng, ("ok", "done", {"status": "ok"}))
    ask = [f"Set a timer to {n} minutes.", f"Start a timer of {n} minutes.", f"Wake me in {n} minutes."]
    return _pick(rng, ask), [n], result, f"The timer is set to {n} minutes."


def _sum(rng: Rng) -> tuple[str, list[Any], Any, str]:
    a, b = _number(rng, 2, 99), _number(rng, 2, 99)
    result = a + b if rng.random() < 0.7 else str(a + b)
    ask = [f"What is {a} plus {b}?", f"Add {a} and {b}.", f"What is {a} + {b}?"]
    return _pick(rng, ask), [a, b], result, f"The sum is {a + b}."


def _product(rng: Rng) -> tuple[str, list[Any], Any, str]:
    a, b = _number(rng, 2, 99), _number(rng, 2, 99)
    result = a * b if rng.random() < 0.7 else str(a * b)
    ask = [f"What is {a} times {b}?", f"Multiply {a} by {b}.", f"Multiply {a} and {b}."]
    return _pick(rng, ask), [a, b], result, f"The product is {a * b}."


def _light(rng: Rng) -> tuple[str, list[Any], Any, str]:
    room, colour = _pick(rng, _ROOMS), _pick(rng, list(world.COLOURS))
    result = _pick(rng, ("ok", "done", {"status": "ok"}))
    ask = [f"Make the light in the {room} {colour}.", f"Turn the {room} light {colour}."]
    return _pick(rng, ask), [room, colour], result, f"The light in the {room} is {colour} now."


def _price(rng: Rng) -> tuple[str, list[Any], Any, str]:
    item, euros = _pick(rng, _ITEMS), _number(rng, 2, 250)
    result = euros if rng.random() < 0.5 else {"price": euros}
    ask = [f"What does a {item} cost?", f"How much is a {item}?", f"What is the price of a {item}?"]
    return _pick(rng, ask), [item], result, f"A {item} costs {euros} euros."


def _mail(rng: Rng) -> tuple[str, list[Any], Any, str]:
    name = _some(rng, _NAMES)
    text = _pick(rng, ("hello", "good night", "I am late", "see you soon", "thank you", "come home"))
    result = _pick(rng, ("sent", "ok", {"status": "sent"}))
    ask = [f"Write to {name}: {text}", f"Send {name} a message: {text}", f"Tell {name}: {text}"]
    return _pick(rng, ask), [name, text], result, f"The message to {name} is sent."


def _age(rng: Rng) -> tuple[str, list[Any], Any, str]:
    name, years = _some(rng, _NAMES), _number(rng, 5, 90)
    result = years if rng.random() < 0.5 else {"age": years}
    ask = [f"How old is {name}?", f"What is the age of {name}?"]
    return _pick(rng, ask), [name], result, f"{name} is {years} years old."


_TOOLS = (
    _Tool(
        ("get_weather", "weather", "find_weather"),
        ("Get the weather of a city.", "Look up the weather.", "Weather in a city."),
        ((("city", "place", "town"), "string", ("The city.", "Name of the city.")),),
        _weather,
    ),
    _Tool(
        ("get_time", "clock", "find_time"),
        ("Get the time in a city.", "Tell the time.", "Local time of a city."),
        ((("city", "place", "town"), "string", ("The city.", "Name of the city.")),),
        _clock,
    ),
    _Tool(
        ("set_timer", "start_timer", "timer"),
        ("Set a timer.", "Start a timer of some minutes."),
        ((("minutes", "time"), "integer", ("The minutes.", "How many minutes.")),),
        _timer,
    ),
    _Tool(
        ("add", "sum", "add_numbers"),
        ("Add two numbers.", "The sum of two numbers."),
        (
            (("a", "x", "first"), "integer", ("First number.",)),
            (("b", "y", "second"), "integer", ("Second number.",)),
        ),
        _sum,
    ),
    _Tool(
        ("multiply", "product", "multiply_numbers"),
        ("Multiply two numbers.", "The product of two numbers."),
        (
            (("a", "x", "first"), "integer", ("First number.",)),
            (("b", "y", "second"), "integer", ("Second number.",)),
        ),
        _product,
    ),
    _Tool(
        ("set_light", "light", "change_light"),
        ("Set the light of a room.", "Change the colour of a light."),
        ((("room", "where"), "string", ("The room.",)), (("colour", "color"), "string", ("The colour.",))),
        _light,
    ),
    _Tool(
        ("get_price", "price", "find_price"),
        ("Get the price of a thing.", "Look up a price."),
        ((("item", "thing", "name"), "string", ("The thing.", "Name of the thing.")),),
        _price,
    ),
    _Tool(
        ("send_message", "write_message", "message"),
        ("Send a message.", "Write a message to somebody."),
        (
            (("name", "to", "person"), "string", ("The person.",)),
            (("text", "message"), "string", ("The text.",)),
        ),
        _mail,
    ),
    _Tool(
        ("get_age", "age", "find_age"),
        ("Get the age of a person.", "Look up how old somebody is."),
        ((("name", "person", "who"), "string", ("The person.", "Name of the person.")),),
        _age,
    ),
)
_REPORT = _Tool(
    ("report_figure", "report", "save_figure"),
    ("Report the figure in a picture.", "Save what a picture shows."),
    ((("colour", "color"), "string", ("The colour.",)), (("shape", "form"), "string", ("The shape.",))),
    _weather,  # not used: its arguments come from a picture
)


def _declare(rng: Rng, tool: _Tool) -> tuple[Json, list[str]]:
    """(declaration, names of its properties in the order of its kind)."""
    with_descriptions, required = rng.random() < 0.5, rng.random() < 0.8
    properties: dict[str, Json] = {}
    for names, type_, descriptions in tool.properties:
        schema: Json = {"type": type_}
        if with_descriptions:
            schema["description"] = _pick(rng, descriptions)
        name = _pick(rng, names[:1] if rng.random() < 0.8 else names)
        if name in ("colour", "color") and rng.random() < 0.3:
            schema["enum"] = list(world.COLOURS)
        properties[name] = schema
    parameters: Json = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = list(properties)
    name = _pick(rng, tool.names[:1] if rng.random() < 0.8 else tool.names)
    function = {"name": name, "description": _pick(rng, tool.descriptions), "parameters": parameters}
    return {"type": "function", "function": function}, list(properties)


def _call_messages(
    rng: Rng,
    dialogue: Dialogue,
    name: str,
    arguments: list[Json],
    results: list[Any],
    answer: str,
    id_: str = "call",
) -> None:
    calls = [
        {"id": f"{id_}_{i}", "type": "function", "function": {"name": name, "arguments": one}}
        for i, one in enumerate(arguments)
    ]
    message: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    if dialogue.think:
        message["reasoning"] = f"I need the tool {name}."
    dialogue.messages.append(message)
    for i, result in enumerate(results):
        if isinstance(result, dict) and rng.random() < 0.2:
            result = json.dumps(result)
        result = result if isinstance(result, dict) else str(result)
        dialogue.messages.append(
            {"role": "tool", "name": name, "tool_call_id": f"{id_}_{i}", "content": result}
        )
    dialogue.messages.append({"role": "assistant", "content": answer})


def _tool_dialogue(rng: Rng) -> Dialogue:
    dialogue = Dialogue("tool", think=bool(rng.random() < 0.15))
    n_tools = int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
    kinds = [_TOOLS[i] for i in rng.permutation(len(_TOOLS))[:n_tools]]
    declared = [_declare(rng, kind) for kind in kinds]
    dialogue.tools = [tool for tool, _ in declared]
    if rng.random() < 0.1:
        dialogue.messages.append({"role": "system", "content": _pick(rng, _STYLE)})
    if rng.random() < 0.1:
        question, reply = _small_talk(rng)
        dialogue.messages.append({"role": "user", "content": question})
        dialogue.messages.append({"role": "assistant", "content": reply})
    for turn in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        chosen = int(rng.integers(n_tools))
        question, values, result, answer = kinds[chosen].use(rng)
        tool, names = declared[chosen]
        arguments, results = [dict(zip(names, values, strict=True))], [result]
        if kinds[chosen].use in (_weather, _clock) and rng.random() < 0.25:
            what = "weather" if kinds[chosen].use is _weather else "time"
            _, more, second, next_answer = kinds[chosen].use(rng)
            question = f"What is the {what} in {values[0]} and in {more[0]}?"
            arguments.append(dict(zip(names, more, strict=True)))
            results.append(second)
            answer = f"{answer} {next_answer}"
        dialogue.messages.append({"role": "user", "content": question})
        name = tool["function"]["name"]
        _call_messages(rng, dialogue, name, arguments, results, answer, f"call_{turn}")
    return dialogue


def _report_dialogue(rng: Rng) -> Dialogue:
    """A picture whose figure is to be given to a tool."""
    image, colour, shape = _figure(rng)
    dialogue = Dialogue("report", think=bool(rng.random() < 0.15))
    tool, names = _declare(rng, _REPORT)
    dialogue.tools = [tool]
    if rng.random() < 0.4:
        dialogue.tools.insert(int(rng.integers(2)), _declare(rng, _pick(rng, _TOOLS))[0])
    ask = ["Report the figure.", "Report what you see.", "Save the figure.", "Report this picture."]
    text = {"type": "text", "text": _ask(rng, ask)}
    dialogue.messages.append({"role": "user", "content": [image, text]})
    what = world.describe_figure(colour, shape)
    arguments = dict(zip(names, (colour, shape), strict=True))
    name = tool["function"]["name"]
    _call_messages(rng, dialogue, name, [arguments], [_pick(rng, ("ok", "done"))], f"I reported {what}.")
    if dialogue.think:
        call = next(message for message in dialogue.messages if message.get("tool_calls"))
        call["reasoning"] = f"I see {what}. I need the tool {name}."
    return dialogue


# -- plain dialogues ---


def _small_talk(rng: Rng) -> tuple[str, str]:
    country = _pick(rng, list(_CAPITALS))
    a, b = _number(rng, 1, 3), _number(rng, 1, 3)
    pairs = [
        (["Hello!", "Hi!", "Hello", "Hi", "Good morning!"], "Hello! How can I help you?"),
        (["Thank you!", "Thanks!", "Thank you.", "thanks"], "You are welcome!"),
        (["Who are you?", "What are you?"], "I am a very small Gemma."),
        (["What can you do?", "How can you help me?"], "I see figures, hear beeps and call tools."),
        ([f"What is the capital of {country}?", f"Name the capital of {country}."], f"{_CAPITALS[country]}."),
        ([f"What is {a} plus {b}?", f"What is {a} + {b}?"], f"{a + b}."),
        (["Good night!", "Goodbye!", "Bye!"], "Goodbye!"),
    ]
    questions, answer = pairs[int(rng.choice(len(pairs), p=[0.15, 0.1, 0.12, 0.13, 0.3, 0.1, 0.1]))]
    return _pick(rng, questions), answer


def _chat_dialogue(rng: Rng) -> Dialogue:
    dialogue = Dialogue("chat", think=bool(rng.random() < 0.15))
    capitals = rng.random() < 0.15
    name, other = _some(rng, _NAMES), _some(rng, _NAMES)
    turns: list[tuple[str, str]] = []
    kind = rng.random()
    system = ""
    if kind < 0.3:
        turns = [(_pick(rng, [f"My name is {name}.", f"I am {name}."]), f"Hello, {name}!")]
        turns += [_small_talk(rng)] if rng.random() < 0.5 else []
        turns.append((_pick(rng, ["What is my name?", "Who am I?"]), f"Your name is {name}."))
    elif kind < 0.45:
        system = f"Your name is {other}."
        turns = [_small_talk(rng)] if rng.random() < 0.3 else []
        turns.append((_pick(rng, ["What is your name?", "Tell me your name."]), f"My name is {other}."))
    elif kind < 0.6:
        use = _pick(rng, (_weather, _clock, _price, _age))
        turns = [(use(rng)[0], "I do not know. I have no tool for that.")]
    else:
        turns = [_small_talk(rng) for _ in range(_number(rng, 1, 3))]
    if capitals:
        system = (system + " " + _pick(rng, _CAPITAL_LETTERS)).strip()
    elif not system and rng.random() < 0.2:
        system = _pick(rng, _STYLE)
    if system:
        dialogue.messages.append({"role": "system", "content": system})
    for question, answer in turns:
        dialogue.messages.append({"role": "user", "content": question})
        reply: Message = {"role": "assistant", "content": answer.upper() if capitals else answer}
        if dialogue.think:
            reply["reasoning"] = "This is easy."
        dialogue.messages.append(reply)
    return dialogue


def _repeat_dialogue(rng: Rng) -> Dialogue:
    """Words to say again, or one of several facts to find: practice for arguments and results of tools."""

    def word() -> str:
        kind = rng.random()
        if kind < 0.4:
            return _some(rng, _NAMES, 1.0)
        if kind < 0.7:
            return str(_number(rng, 0, 999 if rng.random() < 0.5 else 99))
        return str(_pick(rng, _pick(rng, (_NAMES, _CITIES, _ITEMS, _ROOMS, _SKIES))))

    if rng.random() < 0.5:
        answer = " ".join(word() for _ in range(_number(rng, 1, 7)))
        question = _pick(rng, ["Repeat: ", "Say: ", "Repeat after me: "]) + answer
    else:
        n = _number(rng, 2, 5)
        things = [_some(rng, (*_NAMES, *_CITIES), 0.3) for _ in range(n)]
        facts = [f"{thing} has {word()}." for thing in things]
        chosen = int(rng.integers(n))
        question = " ".join(facts) + f" What has {things[chosen]}?"
        answer = facts[things.index(things[chosen])]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Dialogue("repeat", messages)


_ANIMALS = _words("cat dog bird fish horse mouse fox bear duck frog")
_LOOKS = _words("small big old young happy tired brave hungry")
_PLACES = ["in a house", "by the sea", "in a forest", "on a hill", "in a garden", "near a river"]
_ACTS = ["found a {thing}", "saw a {thing}", "lost a {thing}", "made a {thing}", "wanted a {thing}"]
_THINGS = _words("ball boat hat drum kite cake flower stone bell coin")


def _story(rng: Rng) -> Dialogue:
    animal, look, name = _pick(rng, _ANIMALS), _pick(rng, _LOOKS), _pick(rng, _NAMES)
    thing, colour = _pick(rng, _THINGS), _pick(rng, list(world.COLOURS))
    act = _pick(rng, _ACTS).format(thing=f"{colour} {thing}".replace("orange", "green"))
    article = "an" if look[0] in "aeiou" else "a"
    text = f"Once upon a time there was {article} {look} {animal} named {name}. "
    text += f"{name} lived {_pick(rng, _PLACES)}. One day the {animal} {act}. "
    friend = _pick(rng, [other for other in _NAMES if other != name])
    text += _pick(
        rng,
        [
            f"{name} showed the {thing} to {friend}. They played until the sun went down.",
            f"{friend} asked for the {thing}. {name} said yes and they were friends.",
            f"Then {name} went home and slept.",
        ],
    )
    return Dialogue("text", text=text)


# -- all ---

KINDS: dict[str, Callable[[Rng], Dialogue]] = {
    "image": lambda rng: _media_dialogue(rng, "image", _image_scene(rng)),
    "audio": lambda rng: _media_dialogue(rng, "audio", _audio_scene(rng)),
    "both": lambda rng: _media_dialogue(rng, "both", _both_scene(rng)),
    "two": lambda rng: _media_dialogue(rng, "two", _two_scene(rng)),
    "report": _report_dialogue,
    "tool": _tool_dialogue,
    "chat": _chat_dialogue,
    "repeat": _repeat_dialogue,
    "text": _story,
}


def make_dialogue(kind: str, rng: Rng, *, spread: float = 1.0) -> Dialogue:
    """A fresh dialogue of one kind. `spread` below 1: with simpler pictures, to begin with."""
    token = _spread.set(spread)
    try:
        return KINDS[kind](rng)
    finally:
        _spread.reset(token)
