"""The time from a question to the first token of its answer: a text, one picture, half a minute of sound.

As a user waits for it: template, tokenizer, decoding and embedding of media are all inside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gemmule import Model

__all__ = ["first_token_tests"]

_QUESTION = "What is the difference between a comet and an asteroid? Answer in one sentence."
_SECONDS, _RATE = 30, 16000


def first_token_tests(model: Model) -> Iterator[dict[str, Any]]:
    """A test for each kind of input that the model takes."""
    from PIL import Image

    import gemmule

    rng = np.random.default_rng(5)
    kinds: dict[str, dict[str, Any]] = {"text": {}}
    if "image" in model.info.modalities:
        pixels = rng.integers(0, 256, (480, 640, 3)).astype(np.uint8)
        kinds["image 640x480"] = {"images": Image.fromarray(pixels)}
    if "audio" in model.info.modalities:
        samples = rng.normal(0, 0.1, _SECONDS * _RATE).astype(np.float32)
        kinds[f"audio {_SECONDS} s"] = {"audio": gemmule.Audio((samples, _RATE))}
    has_template = "tokenizer.chat_template" in model._file.keys()  # noqa: SIM118
    for kind, media in kinds.items():
        ask = model.chat if has_template else model.generate
        start = time.perf_counter()
        reply = ask(_QUESTION, max_tokens=1, temperature=0.0, **media)
        yield {
            "seconds": time.perf_counter() - start,
            "n_prompt": reply.usage.prompt_tokens,
            "n_gen": 1,
            "test": f"first token, {kind}",
        }
