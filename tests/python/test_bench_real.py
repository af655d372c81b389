"""A planted loss of quality in a real file: one tensor of Gemma 3 270M in fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemmule
from gemmule._bench.texts import load_texts
from gemmule.cli import run_command_line

pytestmark = [pytest.mark.real_model, pytest.mark.slow]


def test_one_damaged_tensor_is_found_and_an_equal_file_is_not(
    demo_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = tmp_path / "whole.gguf", tmp_path / "damaged.gguf"
    gemmule.quantize_file(demo_model_path, whole, "Q8_0")
    gemmule.quantize_file(
        demo_model_path, damaged, "Q8_0", tensor_types={r"blk\.9\.ffn_down\.weight": "Q3_K"}
    )
    (tmp_path / "prose.txt").write_text(next(t.content for t in load_texts() if t.name == "prose"))
    options = ["--ref", str(demo_model_path), "--text", str(tmp_path / "prose.txt"), "-c", "64", "-w", "12"]
    for name, file in (("old", whole), ("again", whole), ("new", damaged)):
        rows = str(tmp_path / f"{name}.jsonl")
        assert run_command_line(["bench", "quality", str(file), "-o", rows, *options]) == 0
    capsys.readouterr()
    compare = ["bench", "compare", str(tmp_path / "old.jsonl")]
    conditions = ["--fail-if", "kl>20%", "--fail-if", "ppl>20%"]
    assert run_command_line([*compare, str(tmp_path / "again.jsonl"), *conditions]) == 0
    assert capsys.readouterr().out.count("indistinguishable") == 3
    assert run_command_line([*compare, str(tmp_path / "new.jsonl"), *conditions]) == 7
    err = capsys.readouterr().err
    assert "mean KL" in err
    assert "perplexity" not in err  # which a loss this small does not move beyond its error
