"""Questions about pictures, sounds and tools: rows, tables, a picture, and the small model of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from bench_rows import base_row, quality_row
from gemmule._bench.engine import Subject
from gemmule._bench.plots import write_plots
from gemmule._bench.quality_report import quality_markdown
from gemmule._bench.question_chart import share_interval
from gemmule._bench.questions import QUESTIONS, SEED, ask_questions
from gemmule._demo import world
from project_modules import load_module
from test_cli_commands import gemmule as command


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small trained model in two types."""
    folder = tmp_path_factory.mktemp("questions")
    paths = {kind: folder / f"tiny-{kind}.gguf" for kind in ("BF16", "Q2_K")}
    for kind, path in paths.items():
        gemmule.convert(Path(world.__file__).with_name("model"), path, type=kind)
    return paths


def question_row(kind: str, right: float, **more: Any) -> dict[str, Any]:
    return {
        **base_row(**more), "gm_kind": "quality", "gm_text": f"question {kind}", "gm_question": kind,
        "gm_asked": 50, "gm_right": right, "gm_right_error": 0.02,
    }  # fmt: skip


def test_questions_stand_beside_a_comparison_of_texts(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = command(
        "bench", "quality", files["Q2_K"], "--ref", files["BF16"], "--ask", 1, "-c", 64, "-w", 1, "-o", output
    )
    assert done.returncode == 0, done.stderr
    assert "mean KL" in done.stdout
    assert "| right" in done.stdout
    assert "| valid" in done.stdout
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    asked = {row["gm_question"]: row for row in rows if "gm_question" in row}
    assert set(asked) == set(QUESTIONS)
    assert {name for name, row in asked.items() if "gm_valid" in row} == {
        "thinking",
        "tool",
        "choice",
        "form",
    }


def test_the_trained_model_chooses_tools_and_copies_arguments(files: dict[str, Path]) -> None:
    with gemmule.Model(files["BF16"], n_ctx=1024) as model:
        rng = np.random.default_rng([SEED, len("choice")])
        answers = [QUESTIONS["choice"](model, rng) for _ in range(10)]
    assert all(answer.valid for answer in answers)
    assert 7 <= sum(answer.right for answer in answers) <= 10


def test_all_of_a_few_right_is_not_certain(files: dict[str, Path]) -> None:
    rows = ask_questions([Subject(str(files["BF16"]))], 1)
    assert all(0.2 < row["gm_right_error"] < 0.4 for row in rows)
    low, high = share_interval(1.0, 10)
    assert high == 1.0
    assert 0.6 < low < 0.8
    assert share_interval(0.5, 10_000) == pytest.approx((0.49, 0.51), abs=1e-3)


def test_the_table_has_forms_only_where_one_was_asked_for() -> None:
    rows = [quality_row(0.1), quality_row(0.2, gm_text="prose"), quality_row(0.2, gm_text="code")]
    rows += [question_row("picture", 0.9), question_row("tool", 0.8, gm_valid=1.0, gm_valid_error=0.01)]
    text = quality_markdown(rows)
    assert "| right" in text
    assert next(line for line in text.splitlines() if line.startswith("| valid")).count("|") == 3


def test_the_picture_of_questions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        question_row(kind, p, name=f"{t}.gguf")
        for t in ("Q8_0", "Q2_K")
        for kind, p in (("tool", 1.0), ("form", 0.5))
    ]
    written = write_plots(rows, tmp_path)
    assert {path.name for path in written} == {"questions.svg", "questions.csv"}
    assert "right answers" in (tmp_path / "questions.svg").read_text()


@pytest.mark.parametrize("kind", ["chat", "tool", "repeat", "text"])
def test_the_dialogues_of_the_report_are_always_the_same(kind: str) -> None:
    tiny = load_module("benchmarks/quality", "tiny")
    text = tiny.dialogues(kind)
    assert text == tiny.dialogues(kind)
    assert 12_000 <= len(text) < 16_000
