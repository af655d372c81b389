"""The commands of `gemmule bench` on tiny models: what they measure, print and refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule._bench import machine
from gemmule._bench.engine import Subject
from gemmule._bench.quality import QualityPlan, measure_quality
from gemmule._bench.speed import SpeedPlan, measure_speed
from gemmule._bench.statistics import compare_rows, log_softmax
from gemmule._bench.texts import Text, load_texts
from gemmule._bench.work import Work
from test_cli_commands import assert_one_line_error
from test_cli_commands import gemmule as command


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_CACHE_DIR", str(tmp_path / "cache"))


def test_speed_of_two_files_in_turns(
    tiny_gemma3_path: Path, tiny_gemma4_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule._bench.speed._TRIES", 1)
    order: list[str] = []
    plan = SpeedPlan((32,), (4,), (0, 16), steps=(1, 2), drafting=False, rounds=2)
    subjects = [Subject(str(path), n_threads=1) for path in (tiny_gemma3_path, tiny_gemma4_path)]
    rows = measure_speed(subjects, plan, force=True, progress=order.append)
    assert ["gemma3" in line for line in order] == [True, False, True, False]
    tests = [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows if not r.get("gm_test")]
    assert tests == [(32, 0, 0), (0, 4, 0), (32, 0, 16), (0, 4, 16)] * 2
    assert all(len(row["samples_ns"]) == 2 and row["avg_ts"] > 0 for row in rows)
    assert all(row["n_threads"] == 1 and len(row["gm_sha256"]) == 64 for row in rows)
    verify = {row["gm_test"]: row["gm_verify_factor"] for row in rows if "gm_verify_factor" in row}
    assert verify["step of 1"] == 1
    assert any(row.get("gm_test") == "first token, text" for row in rows)


def test_efficiencies_are_shares_of_the_roof(tiny_gemma4_path: Path) -> None:
    from gemmule._roofline import Roofline

    results = [("read 4 KB pages", 1.0, "GB/s"), ("read huge pages", 2.0, "GB/s"), ("f32 a", 3.0, "GMAC/s")]
    roof = Roofline(
        tuple({"name": n, "threads": 1, "value": v, "unit": u, "note": ""} for n, v, u in results)
    )
    plan = SpeedPlan((32,), (4,), first=False, drafting=False, rounds=1)
    subject = Subject(str(tiny_gemma4_path), n_threads=1)
    rows = measure_speed([subject], plan, roofline=roof, force=True)
    pp, tg = (row for row in rows if not row.get("gm_test"))
    work = Work.of(str(tiny_gemma4_path))
    assert tg["gm_limit_ts"] == pytest.approx(2e9 / (work.weight_bytes + tg["gm_cache_bytes"]))
    assert tg["gm_decode_efficiency"] == pytest.approx(tg["avg_ts"] / tg["gm_limit_ts"])
    assert pp["gm_prefill_efficiency"] == pytest.approx(pp["avg_ts"] * work.macs / 3e9)


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_gemma3_path: Path) -> None:
    monkeypatch.setattr(machine, "other_load", lambda _: 0.4)
    with pytest.raises(machine.BusyMachineError, match=r"40% of this machine.*--force"):
        measure_speed([Subject(str(tiny_gemma3_path))], SpeedPlan(rounds=1))


def test_the_work_of_a_token(tiny_gemma4_path: Path) -> None:
    info = gemmule.inspect(tiny_gemma4_path)
    work = Work.of(str(tiny_gemma4_path))
    assert work.weight_bytes <= 4 * info.n_params
    assert work.head_macs == info.n_vocab * info.d_model
    assert work.macs == pytest.approx(info.n_params - work.head_macs, rel=0.02)


def test_perplexity_is_that_of_score(tiny_gemma4_path: Path) -> None:
    text = load_texts()[0].content
    plan = QualityPlan((Text("one", text),), 128, 100)
    (row,) = measure_quality([Subject(str(tiny_gemma4_path))], plan)
    with gemmule.Model(tiny_gemma4_path) as model:
        score = model.score(text, n_ctx=128)
    assert row["gm_positions"] == score.n_tokens
    assert row["gm_ppl"] == pytest.approx(score.perplexity, rel=1e-5)
    assert row["gm_ppl_error"] == pytest.approx(score.perplexity_error, rel=1e-3)


def test_a_file_does_not_differ_from_itself(tiny_gemma4_path: Path) -> None:
    subject = Subject(str(tiny_gemma4_path))
    rows = measure_quality([subject], QualityPlan(load_texts(), 64, 1), reference=subject)
    assert [row["gm_text"] for row in rows] == [text.name for text in load_texts()] + ["all"]
    for row in rows:
        assert row["gm_kl_mean"] == pytest.approx(0, abs=1e-6)
        assert row["gm_same_top"] == 1
        assert row["gm_dp_rms"] == 0
        assert row["gm_ln_ppl_ratio"] == 0


def test_texts_too_short_to_score(tiny_gemma4_path: Path) -> None:
    from gemmule._bench.quality_report import quality_markdown

    subject = Subject(str(tiny_gemma4_path))
    with pytest.raises(gemmule.FormatError, match="'nothing' is empty"):
        measure_quality([subject], QualityPlan((Text("nothing", ""),)))
    (row,) = measure_quality([subject], QualityPlan((Text("one", "a"),)), reference=subject)
    assert row["gm_positions"] == 1
    assert row["gm_ppl_error"] is None  # of one position nothing is known
    assert " ± ?" in quality_markdown([row])


def test_drafting_that_changes_the_answer_is_an_error() -> None:
    from types import SimpleNamespace

    from gemmule._bench.drafting import drafting_tests

    timings = SimpleNamespace(
        predicted_ms=1.0, predicted_n=2, draft_n=1, draft_n_accepted=1, draft_acceptance=1.0
    )
    answers = iter([[1, 2], [1, 3]])
    model: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(eos_ids=[0]),
        generate=lambda *_, **__: SimpleNamespace(timings=timings, tokens=next(answers)),
    )
    with pytest.raises(gemmule.Error, match="drafting changed the tokens"):
        drafting_tests(model, 2)


def test_divergence_by_hand() -> None:
    a = log_softmax(np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32)))
    b = log_softmax(np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32)))
    found = compare_rows(a, b, np.array([0, 1], np.int32))
    assert found["kl"] == pytest.approx([0.25 * np.log(2), 0], abs=1e-6)
    assert found["dp"] == pytest.approx([-0.25, 0], abs=1e-6)
    assert list(found["same"]) == [0, 1]


def test_other_tokens_are_refused(tiny_gemma4_path: Path, demo_model_path: Path) -> None:
    subjects = [Subject(str(tiny_gemma4_path))]
    plan = QualityPlan(load_texts(), 64, 1)
    with pytest.raises(gemmule.FormatError, match="into other tokens"):
        measure_quality(subjects, plan, reference=Subject(str(demo_model_path)))


def test_the_texts_are_six_categories() -> None:
    names = [text.name for text in load_texts()]
    assert names == ["chat", "code", "languages", "maths", "prose", "tools"]
    for line in load_texts()[-1].content.splitlines():
        json.loads(line)


def test_memory_is_what_was_planned(tiny_gemma4_path: Path) -> None:
    from gemmule._bench.memory import measure_memory, memory_markdown

    (row,) = measure_memory([str(tiny_gemma4_path)], [64], ["q8_0"], n_threads=1)
    assert row["gm_kv_bytes"] == row["gm_planned_kv"] > 0
    assert row["gm_peak_rss"] > row["gm_kv_bytes"]
    assert "q8_0" in memory_markdown([row])


@pytest.mark.slow
def test_everything_in_one_command(tiny_gemma4_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    options = ["-p", 32, "-n", 4, "-r", 2, "--threads", 1, "--no-first", "--no-drafting", "--force"]
    options += ["--context", 64, "--memory-kv", "q8_0", "-c", 64, "-w", 1]
    done = command("bench", "all", tiny_gemma4_path, "--ref", tiny_gemma4_path, "-o", folder, *options)
    assert done.returncode == 0, done.stderr
    names = {Path(line).name for line in done.stdout.splitlines()}
    assert {
        "speed.jsonl",
        "memory.jsonl",
        "quality.jsonl",
        "report.md",
        "report.html",
        "speed-single.svg",
    } <= names
    memory = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    assert [(row["gm_n_ctx"], row["type_k"]) for row in memory] == [(64, "q8_0")]
    assert all(row["gm_kv_bytes"] == row["gm_planned_kv"] for row in memory)
    same = command("bench", "compare", folder, folder, "--fail-if", "tg>5%", "--fail-if", "kl>1%")
    assert same.returncode == 0, same.stderr
    assert "worse" not in same.stdout.split("verdict")[1]


def test_compare_fails_where_it_should(tmp_path: Path) -> None:
    from bench_rows import speed_row
    from gemmule._bench.formats import jsonl_text

    for name, seconds in (("old", 1.0), ("new", 1.2)):
        (tmp_path / f"{name}.jsonl").write_text(jsonl_text([speed_row(seconds, noise=0.002)]))
    files = (tmp_path / "old.jsonl", tmp_path / "new.jsonl")
    done = command("bench", "compare", *files, "--fail-if", "tg>5%")
    assert done.returncode == 7
    assert "worse" in done.stdout
    assert done.stderr.startswith("gemmule: worse than allowed: gemma4 1M a.gguf tg128 ")
    assert command("bench", "compare", *files, "--fail-if", "tg>30%").returncode == 0
    assert_one_line_error(command("bench", "compare", *files, "--fail-if", "tg"), 2)


def test_bad_numbers_are_refused(tiny_gemma3_path: Path) -> None:
    assert_one_line_error(command("bench", "speed", tiny_gemma3_path, "-p", "1,x"), 2)
    assert_one_line_error(command("bench", "speed", "no-such.gguf"), 3)
    assert_one_line_error(command("bench", "speed", tiny_gemma3_path, "--kv", "f17", "--force", "-r", 1), 2)


def test_what_is_not_asked_for_is_not_measured(tiny_gemma3_path: Path) -> None:
    options = ["-p", 0, "-n", 0, "--no-first", "--no-drafting", "-r", 1, "--force", "--format", "jsonl"]
    done = command("bench", "speed", tiny_gemma3_path, *options)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["gm_test"] for line in done.stdout.splitlines()] == ["load and first token"]


def test_texts_are_told_apart_and_in_utf_8(tmp_path: Path) -> None:
    for folder, content in (("a", b"one"), ("b", b"\xff")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match="one name"):
        load_texts([tmp_path / "a" / "x.txt", tmp_path / "b" / "x.txt"])
    with pytest.raises(gemmule.FormatError, match="UTF-8"):
        load_texts([tmp_path / "b" / "x.txt"])


def test_questions_need_a_model_that_sees_and_hears(tiny_gemma4_path: Path) -> None:
    done = command("bench", "quality", tiny_gemma4_path, "--ask", 1, "-c", 64, "-w", 1)
    assert_one_line_error(done, 3)


@pytest.mark.slow
def test_the_roofline_is_kept(tmp_path: Path) -> None:
    from gemmule._roofline import kept_roofline, measure_roofline

    assert kept_roofline() is None
    found = measure_roofline(1, force=True)
    assert found.bandwidth(1) > 0.5
    assert kept_roofline() == found
    assert "GB/s" in found.text()


@pytest.mark.parametrize("name", ["_bench.compare", "_bench.record", "_bench.formats"])
def test_help_stays_cheap(name: str) -> None:
    code = (
        "import sys; from gemmule.cli import run_command_line; run_command_line(['bench', '--help'])\n"
        f"assert 'gemmule.{name}' not in sys.modules and 'numpy' not in sys.modules"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
