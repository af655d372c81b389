"""How often the small trained model is right, through the public API, at several quantizations.

Pictures and sounds nobody trained on (another seed): the colour and the shape of a figure, the number and the
pitch of beeps, and both in one prompt; greedy answers, right only when every word asked for is there.

Usage: python benchmarks/quality/demo_model.py -n 200 --types BF16 Q8_0 Q4_K_M
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import gemmule
from gemmule._demo import world

FOLDER = Path(world.__file__).with_name("model")
SEED = 20261121


def ask_picture(model: gemmule.Model, rng: np.random.Generator) -> bool:
    picture, colour, shape = world.draw_scene(rng)
    reply = model.chat("What is in the picture?", images=picture, temperature=0, max_tokens=24)
    return world.describe_figure(colour, shape) in reply.text.lower()


def draw_sound(rng: np.random.Generator) -> tuple[gemmule.Audio, str]:
    count, pitch = int(rng.integers(1, len(world.COUNTS))), str(rng.choice(list(world.PITCHES)))
    sound = gemmule.Audio((world.make_beeps(count, pitch, rng), world.SAMPLE_RATE))
    return sound, world.describe_beeps(count, pitch)


def ask_sound(model: gemmule.Model, rng: np.random.Generator) -> bool:
    sound, wanted = draw_sound(rng)
    reply = model.chat("What do you hear?", audio=sound, temperature=0, max_tokens=24)
    return wanted in reply.text.lower()


def ask_both(model: gemmule.Model, rng: np.random.Generator) -> bool:
    picture, colour, shape = world.draw_scene(rng)
    sound, heard = draw_sound(rng)
    question = "What do you see and hear?"
    reply = model.chat(question, images=picture, audio=sound, temperature=0, max_tokens=32)
    text = reply.text.lower()
    return world.describe_figure(colour, shape) in text and heard in text


ASKS: dict[str, Callable[[gemmule.Model, np.random.Generator], bool]] = {
    "picture": ask_picture,
    "sound": ask_sound,
    "both": ask_both,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=200, help="questions of each kind")
    parser.add_argument("--types", nargs="+", default=["BF16", "Q8_0", "Q4_K_M"])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    print("| type | size | " + " | ".join(ASKS) + " | answers/s |\n|---|---|" + "---|" * (len(ASKS) + 1))
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.types:
            path = Path(scratch) / f"{kind}.gguf"
            size = gemmule.convert(options.folder, path, type=kind).size
            began = time.perf_counter()
            cells = []
            with gemmule.Model(path, n_ctx=1024) as model:
                for name, ask in ASKS.items():
                    rng = np.random.default_rng([options.seed, len(name)])
                    share = sum(ask(model, rng) for _ in range(options.n)) / options.n
                    error = math.sqrt(share * (1 - share) / options.n)
                    cells.append(f"{share:.1%} +/- {error:.1%}")
            speed = options.n * len(ASKS) / (time.perf_counter() - began)
            print(f"| {kind} | {size / 1e6:.1f} MB | {' | '.join(cells)} | {speed:.1f} |", flush=True)


if __name__ == "__main__":
    main()
