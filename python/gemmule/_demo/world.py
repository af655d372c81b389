"""The little world that the small model of the package was trained on: coloured figures and beeps.

draw_figure makes a picture of one figure, make_beeps a clip of one to five equal tones. Both draw everything
that is not asked for (size, place, turn, ground, noise; tone, lengths, pauses, loudness) from the generator
that is given, so one seed is one picture or clip. Needs numpy and Pillow alone.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "COUNTS",
    "PITCHES",
    "SAMPLE_RATE",
    "SHAPES",
    "beep_track",
    "describe_beeps",
    "describe_figure",
    "draw_figure",
    "draw_scene",
    "make_beeps",
]

SAMPLE_RATE = 16000
COLOURS = {
    "red": (215, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 40),
    "green": (35, 160, 60),
    "blue": (35, 75, 215),
    "purple": (140, 45, 170),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COUNTS = ("zero", "one", "two", "three", "four", "five")
PITCHES = {"low": (220.0, 450.0), "high": (1400.0, 2600.0)}  # Hz
_CORNERS = {"square": 4, "triangle": 3}
_SCALE = {"square": 1.12, "triangle": 1.2, "star": 1.2, "cross": 1.08}  # so that all look equally large


def describe_figure(colour: str, shape: str) -> str:
    """ "a red circle", "an orange star" """
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def describe_beeps(count: int, pitch: str) -> str:
    """ "three high beeps" """
    return f"{COUNTS[count]} {pitch} beep{'' if count == 1 else 's'}"


def _outline(shape: str, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners around the origin."""
    if shape == "star":
        spokes = [(radius if i % 2 == 0 else 0.4 * radius, math.pi * i / 5) for i in range(10)]
    elif shape == "cross":
        arm = 0.27 * radius
        corners = [(radius, arm), (arm, arm), (arm, radius)]
        quarter = [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]
        spokes = [(r, a + math.pi / 2 * i) for i in range(4) for r, a in quarter]
    else:
        n = _CORNERS[shape]
        spokes = [(radius, 2 * math.pi * (i + (n == 4) / 2) / n) for i in range(n)]
    return [(r * math.cos(a + turn), r * math.sin(a + turn)) for r, a in spokes]


def draw_figure(
    colour: str,
    shape: str,
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
    *,
    spread: float = 1.0,
) -> Image.Image:
    """One figure on a plain ground. `size` is (width, height), up to 1:2 or 2:1 if it is not given.

    `spread` below 1 draws simpler pictures: more nearly square, the figure larger and less turned.
    """
    if size is None:
        edge, aspect = rng.uniform(110, 300), 2.0 ** rng.uniform(-0.5 * spread, 0.5 * spread)
        size = round(edge * aspect), round(edge / aspect)
    width, height = size
    short = min(width, height)
    grey = rng.uniform(0, 70) if rng.random() < 0.4 else rng.uniform(170, 255)
    image = Image.new("RGB", size, (round(grey),) * 3)
    radius = short * rng.uniform(0.45 - 0.11 * spread, 0.45)
    reach = min(radius * _SCALE.get(shape, 1.0), 0.49 * short)
    x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
    fill = tuple(np.clip(np.array(COLOURS[colour]) + rng.uniform(-14, 14, 3), 0, 255).astype(int).tolist())
    draw = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            draw.ellipse(box, fill=fill)
        else:
            draw.ellipse(box, outline=fill, width=max(2, round(radius * rng.uniform(0.3, 0.42))))
    else:
        corners = _outline(shape, reach, -math.pi / 2 + spread * rng.uniform(-0.5, 0.5))
        draw.polygon([(x + dx, y + dy) for dx, dy in corners], fill=fill)
    noise = rng.uniform(0, 7)
    if noise > 1:
        pixels = np.asarray(image, np.float32)
        pixels = pixels + rng.normal(0, noise, pixels.shape).astype(np.float32)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


def draw_scene(rng: np.random.Generator, *, spread: float = 1.0) -> tuple[Image.Image, str, str]:
    """(picture, colour, shape) of a figure of any kind."""
    colour = str(rng.choice(list(COLOURS)))
    shape = str(rng.choice(SHAPES))
    return draw_figure(colour, shape, rng, spread=spread), colour, shape


def make_beeps(count: int, pitch: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """`count` equal tones of one pitch, mono at 16 kHz, one to four seconds."""
    return beep_track(count, pitch, rng)[0]


def beep_track(
    count: int, pitch: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The same clip with the seconds at which its tones begin, [count]."""
    low, high = PITCHES[pitch]
    frequency = math.exp(rng.uniform(math.log(low), math.log(high)))
    tones = np.full(count, rng.uniform(0.1, 0.3)) * rng.uniform(0.9, 1.1, count)
    pauses = np.full(count + 1, rng.uniform(0.15, 0.4)) * rng.uniform(0.9, 1.1, count + 1)
    pauses[[0, -1]] = rng.uniform(0.0, 0.4, 2)
    spare = 1.0 - tones.sum() - pauses.sum()
    if spare > 0:
        at_start = rng.random()
        pauses[0] += spare * at_start
        pauses[-1] += spare * (1 - at_start)
    starts = np.cumsum(pauses[:-1]) + np.concatenate([[0.0], np.cumsum(tones[:-1])])
    n = round(float(tones.sum() + pauses.sum()) * SAMPLE_RATE)
    sound = rng.normal(0, 10 ** rng.uniform(-5, -3), n)
    gain = 10 ** rng.uniform(-1.2, -0.1)
    for start, length in zip(starts, tones, strict=True):
        first, last = round(start * SAMPLE_RATE), min(n, round((start + length) * SAMPLE_RATE))
        t = np.arange(last - first) / SAMPLE_RATE
        edge = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.008)  # no clicks
        sound[first:last] += gain * edge * np.sin(2 * math.pi * frequency * t + rng.uniform(0, 2 * math.pi))
    return np.clip(sound, -1, 1).astype(np.float32), starts
