"""What each quantization costs the small trained model of the package: pictures, sounds, tools, forms.

The only trained Gemma 4 with media at hand knows a little world of figures and beeps. It is converted from
its BF16 checkpoint to every type, asked questions of each kind (nobody trained on these), and its predictions
are compared with BF16's on fresh dialogues of that world: the built-in texts of `gemmule bench quality` mean
nothing to it. Writes the report of docs/bench/tiny.

Usage: python benchmarks/quality/tiny.py FOLDER [--ask 200]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import gemmule
from gemmule._bench.engine import Subject
from gemmule._bench.quality import QualityPlan, measure_quality
from gemmule._bench.questions import SEED, ask_questions
from gemmule._bench.report import write_report
from gemmule._bench.texts import Text
from gemmule._demo import world

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from tiny_world import make_dialogue, render_pieces

TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]
KINDS = {"chat": "chat", "tool": "tools", "repeat": "copying", "text": "stories"}  # those without media
_CHARACTERS = 12_000  # of each category
_KEPT = {".md", ".svg", ".jsonl"}


def dialogues(kind: str) -> str:
    """Dialogues one after the other, as the template writes them."""
    rng = np.random.default_rng([SEED, len(kind)])
    text = ""
    while len(text) < _CHARACTERS:
        text += "".join(piece.text for piece in render_pieces(make_dialogue(kind, rng)))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of the report")
    parser.add_argument("--ask", type=int, default=200, help="questions of each kind")
    args = parser.parse_args()
    checkpoint = Path(world.__file__).with_name("model")
    plan = QualityPlan(tuple(Text(name, dialogues(kind)) for kind, name in KINDS.items()), 256, 16)
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary)
        paths = {kind: files / f"tiny-{kind}.gguf" for kind in ["BF16", *TYPES]}
        for kind, path in paths.items():
            gemmule.convert(checkpoint, path, type=kind)
        subjects = [Subject(str(path)) for path in paths.values()]
        rows = measure_quality(subjects[1:], plan, reference=subjects[0], progress=print)
        rows += ask_questions(subjects, args.ask, progress=print)
        args.folder.mkdir(parents=True, exist_ok=True)
        for path in write_report(rows, files / "report"):
            if path.suffix in _KEPT:
                shutil.copy(path, args.folder / path.name)


if __name__ == "__main__":
    main()
