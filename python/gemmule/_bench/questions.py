"""How often the small model of the package is right: pictures, sounds, both, tools, a form, thinking.

Nobody trained on these pictures and sounds (another seed). Answers are greedy and right only when every word
or argument asked for is there; beside that, whether the answer has the form that was asked for at all. A
model that was not trained on this little world knows none of it, so the questions say nothing about others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemmule._bench import machine
from gemmule._bench.engine import Subject, head_of
from gemmule._bench.record import KIND, Keep, Row, now
from gemmule._demo import world
from gemmule._errors import UnsupportedError

if TYPE_CHECKING:
    from gemmule import Model

__all__ = ["QUESTIONS", "Answer", "ask_questions", "check_modalities", "share"]

SEED = 20261121
_CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo", "Berlin", "Madrid", "Vienna", "Dublin")
_SYLLABLES = ("ba", "de", "ko", "lu", "mi", "na", "po", "re", "sa", "ti", "vi", "zo")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Whether it says the right thing, and whether it has the form that was asked for, if one was."""

    right: bool
    valid: bool | None = None


Question = Callable[["Model", np.random.Generator], Answer]


def _picture(model: Model, rng: np.random.Generator) -> Answer:
    picture, colour, shape = world.draw_scene(rng)
    reply = model.chat("What is in the picture?", images=picture, temperature=0, max_tokens=24)
    return Answer(world.describe_figure(colour, shape) in reply.text.lower())


def _draw_sound(rng: np.random.Generator) -> tuple[Any, str]:
    import gemmule

    count, pitch = int(rng.integers(1, len(world.COUNTS))), str(rng.choice(list(world.PITCHES)))
    sound = gemmule.Audio((world.make_beeps(count, pitch, rng), world.SAMPLE_RATE))
    return sound, world.describe_beeps(count, pitch)


def _sound(model: Model, rng: np.random.Generator) -> Answer:
    sound, wanted = _draw_sound(rng)
    reply = model.chat("What do you hear?", audio=sound, temperature=0, max_tokens=24)
    return Answer(wanted in reply.text.lower())


def _both(model: Model, rng: np.random.Generator) -> Answer:
    picture, colour, shape = world.draw_scene(rng)
    sound, heard = _draw_sound(rng)
    question = "What do you see and hear?"
    text = model.chat(question, images=picture, audio=sound, temperature=0, max_tokens=32).text.lower()
    return Answer(world.describe_figure(colour, shape) in text and heard in text)


def _thinking(model: Model, rng: np.random.Generator) -> Answer:
    picture, colour, shape = world.draw_scene(rng)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 48, "think": True}
    reply = model.chat("What is in the picture?", images=picture, **options)
    return Answer(world.describe_figure(colour, shape) in reply.text.lower(), bool(reply.thinking))


def _tool(model: Model, rng: np.random.Generator) -> Answer:
    city = str(rng.choice(_CITIES))
    reply = model.chat(f"What is the weather in {city}?", tools=[get_weather], temperature=0, max_tokens=64)
    calls = [(call.name, call.arguments) for call in reply.tool_calls]
    valid = len(calls) == 1 and calls[0][0] == "get_weather" and set(calls[0][1]) == {"city"}
    return Answer(valid and calls[0][1]["city"] == city, valid)


def _choice(model: Model, rng: np.random.Generator) -> Answer:
    """Which of two tools, with numbers or a name that nobody has heard, copied letter by letter."""
    wanted: tuple[str, dict[str, Any]]
    if rng.random() < 0.5:
        city = "".join(rng.choice(_SYLLABLES, 2)).capitalize()
        question, wanted = f"What is the weather in {city}?", ("get_weather", {"city": city})
    else:
        a, b = (int(x) for x in rng.integers(2, 100, 2))
        question, wanted = f"What is {a} plus {b}?", ("add", {"a": a, "b": b})
    reply = model.chat(question, tools=[get_weather, add], temperature=0, max_tokens=64)
    calls = [(call.name, call.arguments) for call in reply.tool_calls]
    names = {"get_weather": {"city"}, "add": {"a", "b"}}
    valid = len(calls) == 1 and set(calls[0][1]) == names.get(calls[0][0])
    return Answer(valid and calls[0] == wanted, valid)


def get_weather(city: str) -> dict[str, Any]:
    """Get the weather of a city.

    Args:
        city: The city.
    """
    return {"city": city}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b


def _form(model: Model, rng: np.random.Generator) -> Answer:
    """A JSON value of a schema: one of all the sentences there are."""
    picture, colour, shape = world.draw_scene(rng)
    all_of_them = [world.describe_figure(c, s).capitalize() for c in world.COLOURS for s in world.SHAPES]
    question = "Name the colour and the shape."
    reply = model.chat(question, images=picture, schema={"enum": all_of_them}, temperature=0, max_tokens=32)
    wanted = world.describe_figure(colour, shape).capitalize()
    return Answer(reply.parsed == wanted, reply.parsed in all_of_them)


QUESTIONS: dict[str, Question] = {
    "picture": _picture, "sound": _sound, "both": _both, "thinking": _thinking,
    "tool": _tool, "choice": _choice, "form": _form,
}  # fmt: skip


def check_modalities(subjects: Sequence[Subject]) -> None:
    """Throws UnsupportedError for a file that cannot be asked."""
    from gemmule._inspect import modalities_of, open_header
    from gemmule._media.embedder import open_mmproj

    for subject in subjects:
        if not {"image", "audio"} <= set(modalities_of(open_mmproj(open_header(subject.path), None))):
            raise UnsupportedError(f"{subject.path} takes no pictures and sounds, so --ask cannot be used")


def ask_questions(
    subjects: Sequence[Subject],
    n: int,
    *,
    seed: int = SEED,
    progress: Callable[[str], None] = lambda _: None,
    keep: Keep = lambda _: None,
) -> list[Row]:
    """A row for every file and kind of question, each asked n times."""
    from gemmule import Model

    check_modalities(subjects)
    facts = machine.describe()
    rows: list[Row] = []
    for subject in subjects:
        base = head_of(subject, facts)
        with Model(subject.path, n_ctx=1024, n_threads=subject.n_threads or None) as model:
            for name, ask in QUESTIONS.items():
                progress(f"{n} questions about {name}: {subject.path}")
                rng = np.random.default_rng([seed, len(name)])
                answers = [ask(model, rng) for _ in range(n)]
                rows.append({
                    **base, KIND: "quality", "test_time": now(), "gm_text": f"question {name}",
                    "gm_question": name, "gm_asked": n, "gm_seed": seed,
                    **_share("right", [answer.right for answer in answers]),
                    **_share("valid", [answer.valid for answer in answers if answer.valid is not None]),
                })  # fmt: skip
                keep(rows)
    return rows


def share(name: str, right: int, n: int) -> Row:
    """The share of n answers, and its standard error by the rule of succession: all of a few right is not
    certain.
    """
    p = (right + 1) / (n + 2)
    return {f"gm_{name}": right / n, f"gm_{name}_error": math.sqrt(p * (1 - p) / (n + 2))}


def _share(name: str, answers: Sequence[bool]) -> Row:
    return share(name, sum(answers), len(answers)) if answers else {}
