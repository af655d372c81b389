"""Broken files through the whole package: one short refusal each, or an answer; never a crash."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemmule

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hostile"))
from make_hostile import expectation, hostile_files

FAMILY = ("tiny-gemma4-e2b-f16.gguf", "tiny-gemma4-26b-f16.gguf")


def corpus(
    tmp_path: Path, stages: tuple[str, ...], seed: int, every: int = 1, source: Path | None = None
) -> Iterator[tuple[str, Path]]:
    """Writes each file in turn under the same path; names are yielded for the messages."""
    path = tmp_path / "broken.gguf"
    n = 0
    for name, content in hostile_files(source or tmp_path / "seed.gguf", seed):
        if expectation(name)[1] not in stages:
            continue
        n += 1
        if n % every == 0:
            path.write_bytes(content)
            yield name, path


def answer(path: Path) -> str | None:
    """None when the file gives an answer, else the refusal."""
    try:
        with gemmule.Model(path, n_ctx=64) as model:
            model.generate("a b", max_tokens=2, temperature=0)
    except gemmule.Error as error:
        return str(error)
    return None


def is_short(message: str) -> bool:
    return 0 < len(message) < 600 and "\n" not in message


def test_models_that_lie_are_refused(tmp_path: Path) -> None:
    wrong = []
    for name, path in corpus(tmp_path, ("model",), seed=3):
        message = answer(path)
        if message is None:
            wrong.append(f"{name}: accepted")
        elif not (is_short(message) and (path.name in message or "logits" in message)):
            wrong.append(f"{name}: {message}")
    assert wrong == []


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    wrong = []
    for name, path in corpus(tmp_path, ("header", "none"), seed=4, every=8):
        message = answer(path)
        if message is None and name.startswith("refuse"):
            wrong.append(f"{name}: accepted")
        if message is not None and not is_short(message):
            wrong.append(f"{name}: {message}")
    assert wrong == []


@pytest.mark.parametrize("name", FAMILY)
def test_members_that_lie_are_refused(golden: Path, tmp_path: Path, name: str) -> None:
    """Per-layer embeddings, sharing and experts: every wrong number, and a sample of the wrong tensors."""
    wrong = []
    for i, (what, path) in enumerate(corpus(tmp_path, ("model",), seed=6, source=golden / name)):
        if i % 24 and not what.startswith(("refuse.model.number-", "refuse.model.array-")):
            continue
        message = answer(path)
        if message is None:
            wrong.append(f"{what}: accepted")
        elif not (is_short(message) and (path.name in message or "logits" in message)):
            wrong.append(f"{what}: {message}")
    assert wrong == []


@pytest.mark.parametrize("name", FAMILY)
def test_damaged_members_never_crash(golden: Path, tmp_path: Path, name: str) -> None:
    stages = ("header", "none")
    for what, path in corpus(tmp_path, stages, seed=7, every=100, source=golden / name):
        message = answer(path)
        assert message is not None or not what.startswith("refuse"), what
        assert message is None or is_short(message), what


@pytest.mark.slow
def test_every_damaged_file(tmp_path: Path) -> None:
    for name, path in corpus(tmp_path, ("header", "model", "none"), seed=5, every=2):
        message = answer(path)
        assert message is not None or not name.startswith("refuse"), name
        assert message is None or is_short(message), name


@pytest.mark.slow
@pytest.mark.parametrize("source", FAMILY)
def test_every_damaged_member(golden: Path, tmp_path: Path, source: str) -> None:
    stages = ("header", "model", "none")
    for name, path in corpus(tmp_path, stages, seed=8, every=2, source=golden / source):
        message = answer(path)
        assert message is not None or not name.startswith("refuse"), name
        assert message is None or is_short(message), name
