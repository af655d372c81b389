"""The model that comes with the package, on the command line: it sees, hears, thinks, calls functions."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gemmule._demo import world
from gemmule.cli import run_command_line
from gemmule.cli._demo_media import _write_wav, media_model

GREEDY = ["--temperature", "0", "-n", "60"]


@pytest.fixture(scope="module")
def model() -> Path:
    return media_model()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_command_line([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))


def test_the_demo_answers_right(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", "--media")
    assert code == 0, err
    answers = [part.splitlines()[1:] for part in out.split("\n> ")[1:]]
    assert answers[0][0] == "A red star."
    assert answers[1][0] == "Three high beeps."
    assert answers[2][0] == "A blue ring and three high beeps."
    assert answers[3][0].startswith("  thinks: ")
    assert answers[3][1] == "A blue ring."
    assert answers[4][0].startswith("  get_weather(city='Paris') -> ")
    assert answers[4][1] == "It is sunny and 21 degrees in Paris."
    assert json.loads(answers[5][0]) == "A red star"
    assert "peak memory" in out
    for line in out.splitlines():
        if line.endswith((".png", ".wav")):
            assert Path(line.strip()).is_file()


def test_pictures_and_sounds_through_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(20261121)
    right = 0
    for i in range(10):
        image, colour, shape = world.draw_scene(rng)
        picture, sound = tmp_path / f"{i}.png", tmp_path / f"{i}.wav"
        image.save(picture)
        count, pitch = int(rng.integers(1, 6)), str(rng.choice(list(world.PITCHES)))
        _write_wav(sound, world.make_beeps(count, pitch, rng), world.SAMPLE_RATE)
        seen = run(capsys, "run", model, "What is in the picture?", picture, *GREEDY)[1]
        heard = run(capsys, "run", model, "What do you hear?", sound, *GREEDY)[1]
        right += seen.strip().lower() == f"{world.describe_figure(colour, shape)}."
        right += heard.strip().lower() == f"{world.describe_beeps(count, pitch)}."
    assert right >= 19  # of 20


def test_a_chat_remembers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "figure.png"
    world.draw_figure("green", "square", np.random.default_rng(3), (200, 200)).save(picture)
    saved = tmp_path / "talk.json"
    lines = [f"/image {picture}", "What is in the picture?", "What colour is it?", f"/save {saved}"]
    lines += ["/undo", "/regen", "/clear", f"/load {saved}", "What shape is it?", "/status"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    code, out, err = run(capsys, "chat", model, *GREEDY)
    assert code == 0, err
    first, second, again, last, *status = out.splitlines()
    assert first == again == "A green square."
    assert "green" in second.lower()
    assert "square" in last.lower()
    assert any("cached" in line for line in status)


def test_the_plan_and_the_tokens(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "figure.png"
    world.draw_figure("green", "square", np.random.default_rng(3), (200, 200)).save(picture)
    code, out, _ = run(capsys, "run", model, "What is this?", picture, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["fits"]
    assert plan["prompt"].count("<|image|>") == 1
    count = int(run(capsys, "tokenize", model, "What is this?", picture, "--chat", "--count")[1])
    assert count == plan["tokens"]["total"]
    assert plan["tokens"]["image"] > 0
    code, out, _ = run(capsys, "run", model, "What is this?", picture, "--dry-run")
    assert f"{plan['tokens']['image']} image" in out
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:100])
    code, out, err = run(capsys, "run", model, "What is this?", broken)
    assert (code, out, err.count("\n")) == (6, "", 1)
    assert str(broken.name) in err
