"""`gemmule demo --media`: the small trained model that comes with the package sees, hears, thinks, calls a
function and fills in a form.

The model is a Hugging Face folder of a few megabytes. It is converted once into the cache folder, under a
name made of its digest, and the pictures and sounds are written beside it so that they can be looked at.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._asking import ask
from gemmule.cli._show import Printer, json_line
from gemmule.cli._toolbox import Toolbox

if TYPE_CHECKING:
    from gemmule import Model, Reply

__all__ = ["media_model", "show_media"]

_SEED = 7


def media_model() -> Path:
    """The small model as one file, made at the first call."""
    from gemmule._cache import cache_dir
    from gemmule._convert.convert import convert
    from gemmule._errors import ModelNotFoundError
    from gemmule._version import __version__

    folder = Path(__file__).resolve().parents[1] / "_demo" / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelNotFoundError(f"this installation lacks the small model: there is no {weights}")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    target = cache_dir() / "demo" / f"gemmule-tiny-{__version__}-{digest.hexdigest()[:12]}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(folder, target, type="BF16", overwrite=True)
    return target


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    title: str
    question: str
    files: tuple[Path, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    tools: tuple[Callable[..., Any], ...] = ()


def get_weather(city: str) -> dict[str, Any]:
    """Get the weather of a city.

    Args:
        city: The city.
    """
    return {"sky": "sunny", "temperature": 21}


def _steps(folder: Path) -> list[_Step]:
    """The questions, with their files drawn into `folder`."""
    import numpy as np

    from gemmule._demo import world

    form = {"enum": [world.describe_figure(c, s).capitalize() for c in world.COLOURS for s in world.SHAPES]}
    rng = np.random.default_rng(_SEED)
    star, ring, beeps = folder / "star.png", folder / "ring.png", folder / "beeps.wav"
    world.draw_figure("red", "star", rng, (320, 240)).save(star)
    world.draw_figure("blue", "ring", rng, (240, 240)).save(ring)
    _write_wav(beeps, world.make_beeps(3, "high", rng), world.SAMPLE_RATE)
    return [
        _Step("A picture", "What is in the picture?", (star,)),
        _Step("A sound", "What do you hear?", (beeps,)),
        _Step("A picture and a sound in one message", "What do you see and hear?", (ring, beeps)),
        _Step("Thinking first", "What is in the picture?", (ring,), {"think": True}),
        _Step("A tool: a Python function", "What is the weather in Paris?", (), {}, (get_weather,)),
        _Step("An answer of a given form", "Name the colour and the shape.", (star,), {"schema": form}),
    ]


def _write_wav(path: Path, samples: Any, rate: int) -> None:
    """float [n] in -1 .. 1 as 16-bit mono."""
    import wave

    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def show_media(model: "Model", folder: Path) -> "tuple[list[Reply], bool]":
    """Asks everything and shows the answers; the replies, and whether Ctrl-C stopped it."""
    from gemmule import Message
    from gemmule.cli._attach import attach, content_of

    replies: list[Reply] = []
    for step in _steps(folder):
        click.echo(f"\n{step.title}")
        for file in step.files:
            _indented(str(file))
        click.echo(f"> {step.question}")
        message = Message("user", content_of([attach(str(file)) for file in step.files], step.question))
        tools = list(step.tools)
        toolbox = Toolbox(tools, always=True, tell=_indented) if tools else None
        options = {**step.options, **({"tools": tools} if tools else {})}
        outcome = ask(_asker(model, options), [message], Printer("silent"), toolbox)
        if outcome.interrupted:
            return replies, True
        for each in outcome.messages:
            if each.thinking:
                _indented(f"thinks: {each.thinking.strip()}")
        parsed = outcome.reply.parsed
        click.echo(outcome.reply.text if parsed is None else json_line(parsed))
        replies.append(outcome.reply)
    return replies, False


def _indented(text: str) -> None:
    click.echo(f"  {text}")


def _asker(model: "Model", options: dict[str, Any]) -> Callable[[list[Any]], Any]:
    return lambda messages: model.chat(messages, temperature=0, max_tokens=200, stream=True, **options)
