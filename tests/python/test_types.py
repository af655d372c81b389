"""What a type checker says about a user's program. Needs mypy, from the [lint] extra."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

USER = """
import gemmule
import numpy as np
from numpy.typing import NDArray

def use(model: gemmule.Model, ids: list[int], array: NDArray[np.int32], flag: bool, text: str) -> None:
    session = model.session()
    for prompt in ("a", ids, array):
        reveal_type(model.generate(prompt))  # Reply
    model.generate(["a", [1, 2]])
    model.generate(["a", ids])
    model.generate([text, array])
    model.generate([ids, "a"], logit_bias={1: 2.0}, stop=["x"])
    session.append(["a", ids])
    reveal_type(model.generate("a", stream=True))  # Stream
    reveal_type(model.generate("a", stream=flag))  # Reply | Stream
    reveal_type(session.generate("a", top_k=3))  # Reply
    reveal_type(session.generate("a", stream=True))  # Stream
    reveal_type(session.generate(stream=flag, max_tokens=3))  # Reply | Stream
    session.generate("a", temprature=3)  # error
    session.generate("a", temperature="hot")  # error
    model.generate("a", temprature=3)  # error
    model.generate({"a": 1})  # error
"""


@pytest.mark.slow
def test_a_users_program_type_checks(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "user.py"
    program.write_text(USER, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = {}
    for line in done.stdout.splitlines():
        if match := re.match(r".*user\.py:(\d+): (?:note: Revealed type is \"(.*)\"|(error): )", line):
            text = match[3] or re.sub(r"(gemmule|_\w+)\.|builtins\.", "", match[2])
            said[int(match[1])] = text
    wanted = {i: line.split("  # ")[1] for i, line in enumerate(USER.splitlines(), start=1) if "  # " in line}
    assert said == wanted, done.stdout
