"""Nothing that was measured is lost when a measurement ends early: by Ctrl-C, a crash, or an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gemmule
from gemmule._bench.child import call, lines_of
from gemmule._bench.engine import Subject
from gemmule._bench.formats import read_rows
from gemmule._bench.quality import QualityPlan, measure_quality
from gemmule._bench.quality_report import summary_rows
from gemmule._bench.speed import SpeedPlan, measure_speed
from gemmule._bench.texts import Text
from gemmule._roofline import Roofline
from gemmule.cli import run_command_line

FOUND = {"n_threads": 1, "peak_rss": 5}


def found_in_a_round(depths: int, error: BaseException | None) -> Iterator[dict[str, Any]]:
    """What a process of `bench speed` finds, until it fails."""
    yield {"gm_isa": "avx2", "n_threads": 1, "build_commit": "0123abcd"}
    for depth in range(depths):
        yield {"seconds": 0.5, "n_gen": 8, "n_depth": depth}
    if error is not None:
        raise error


def failing_call(at: int, error: BaseException) -> Callable[..., Iterator[dict[str, Any]]]:
    """Processes of which number `at`, from 1 on, fails after one of its two tests."""
    count = iter(range(1, 1000))
    return lambda *_: found_in_a_round(*((1, error) if next(count) == at else (2, None)))


def memory_processes(*outcomes: dict[str, Any] | BaseException) -> Callable[..., Iterator[dict[str, Any]]]:
    """Processes of `bench memory`, one after the other."""
    left = iter(outcomes)

    def call(*_: Any) -> Iterator[dict[str, Any]]:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        yield dict(outcome)

    return call


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmule._bench.machine.yardstick", lambda: (1.0, 1.0))
    monkeypatch.setattr("gemmule._bench.machine._busy", lambda: 0.0)
    monkeypatch.setattr("gemmule._roofline.kept_roofline", lambda: Roofline(()))


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("error", [gemmule.DeviceError("gone"), KeyboardInterrupt()])
def test_rounds_and_parts_of_a_round_are_kept(
    error: BaseException, tiny_gemma3_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule._bench.speed.call", failing_call(2, error))
    kept: list[list[dict[str, Any]]] = []
    with pytest.raises(type(error)):
        measure_speed(
            [Subject(str(tiny_gemma3_path))], SpeedPlan(), force=True, keep=lambda r: kept.append([*r])
        )
    assert [[len(row["samples_ns"]) for row in rows] for rows in kept] == [[1, 1], [2, 1]]
    assert kept[-1][0]["gm_isa"] == "avx2"


@pytest.mark.usefixtures("idle")
def test_ctrl_c_in_the_middle_of_everything(
    tiny_gemma3_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "a" / "report"
    monkeypatch.setattr("gemmule._bench.speed.call", failing_call(99, KeyboardInterrupt()))
    monkeypatch.setattr("gemmule._bench.memory.call", memory_processes(KeyboardInterrupt()))
    command = ["bench", "all", str(tiny_gemma3_path), "-o", str(folder), "-r", "2", "--force", "-c", "64"]
    assert run_command_line(command) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert f"what was measured until now is in {folder}" in err
    assert [len(row["samples_ns"]) for row in read_rows(folder)] == [2, 2]
    assert run_command_line(["bench", "report", str(folder), "-o", str(folder)]) == 0
    assert "tg8 @ d1" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("idle")
def test_what_is_wrong_with_quality_is_said_before_speed_is_measured(
    tiny_gemma3_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gemmule._bench.speed.call", failing_call(1, AssertionError("measured")))
    command = ["bench", "all", str(tiny_gemma3_path), "-o", str(tmp_path / "report"), "--force"]
    for options, message in (
        (["--ref", "no-such.gguf"], "there is no model file no-such.gguf"),
        (["--ask", "1"], "takes no pictures and sounds"),
        (["--memory-kv", "nonsense"], "nonsense"),
        (["--context", "0"], "at least 64 tokens"),
        (["--context", "99999999"], "--ctx must be"),
    ):
        assert run_command_line([*command, *options]) in (2, 3)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_windows_are_kept_and_an_unfinished_file_has_no_total(
    tiny_gemma4_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule._bench.quality._BATCH", 1)  # a window at a time
    plan = QualityPlan((Text("one", "some words " * 40), Text("two", "other words " * 20)), 64, 2)
    kept: list[list[dict[str, Any]]] = []
    rows = measure_quality([Subject(str(tiny_gemma4_path))], plan, keep=lambda r: kept.append([*r]))
    names = [[row["gm_text"] for row in some] for some in kept]
    assert names[0] == ["one"]
    assert names[-2:] == [["one", "two"], ["one", "two", "all"]]
    assert kept[-1] == rows
    assert summary_rows(kept[-2]) == []
    assert summary_rows(rows) == rows[-1:]


@pytest.mark.usefixtures("idle")
def test_a_llama_bench_program_joins_and_fails_halfway(
    tiny_gemma3_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gemmule._bench.speed.call", failing_call(99, KeyboardInterrupt()))
    program = tmp_path / "llama-bench"
    row = {"model_filename": "/models/other.gguf", "model_type": "gemma3 1M", "model_size": 5, "n_prompt": 0}
    row |= {"model_n_params": 5, "n_gen": 8, "n_depth": 0, "n_threads": 1, "avg_ts": 3.0, "stddev_ts": 0.0}
    row |= {"samples_ns": [1], "test_time": "2026-01-01T00:00:00Z"}
    program.write_text(f"#!/bin/sh\necho loading\necho '{json.dumps(row)}'\n[ $# -eq 14 ] || exit 9\n")
    program.chmod(0o755)
    output = tmp_path / "rows.jsonl"
    command = ["bench", "speed", str(tiny_gemma3_path), "--force", "-r", "2", "-o", str(output)]
    assert run_command_line([*command, "--library", str(program)]) == 2
    assert "add --peer" in capsys.readouterr().err
    command += ["--peer", "llama.cpp", "--library", str(program)]
    assert run_command_line(command) == 0
    theirs = read_rows(output)[-1]
    assert (theirs["gm_engine"], theirs["gm_quantization"]) == ("llama.cpp", "F32")
    assert theirs["model_filename"] == tiny_gemma3_path.name
    program.write_text(program.read_text() + "echo out of luck >&2; exit 1\n")
    assert run_command_line(command) == 1
    assert "llama-bench failed: out of luck" in capsys.readouterr().err
    assert read_rows(output)[-1]["avg_ts"] == 3.0


def test_lines_of_a_program_that_fails() -> None:
    code = "import sys; print(1, flush=True); print('no luck', file=sys.stderr); sys.exit(3)"
    lines = lines_of([sys.executable, "-c", code], "a test")
    assert next(lines) == "1\n"
    with pytest.raises(gemmule.Error, match=r"^a test failed: no luck$"):
        next(lines)


def test_a_program_ends_with_the_loop() -> None:
    lines = lines_of([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"], "a test")
    assert next(lines) == "1\n"
    lines.close()  # type: ignore[attr-defined]


def test_an_error_of_the_process_keeps_its_class(tiny_gemma3_path: Path) -> None:
    request = {"subject": {"path": str(tiny_gemma3_path), "isa": "abacus"}, "plan": {"n_prompt": [8]}}
    with pytest.raises(gemmule.DeviceError, match="abacus"):
        list(call("speed", request))


def test_rows_for_a_file_are_there_after_every_round(
    tiny_gemma3_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gemmule._bench.memory.call", memory_processes(gemmule.DeviceError("gone")))
    file = tmp_path / "rows.jsonl"
    file.write_text("old\n")
    assert run_command_line(["bench", "memory", str(tiny_gemma3_path), "-o", str(file)]) == 4
    assert file.read_text() == "old\n"  # nothing was measured
    assert "until now" not in capsys.readouterr().err
    monkeypatch.setattr("gemmule._bench.memory.call", memory_processes(FOUND, gemmule.DeviceError("gone")))
    assert run_command_line(["bench", "memory", str(tiny_gemma3_path), "-o", str(file)]) == 4
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["gm_n_ctx"] == 512
    assert f"what was measured until now is in {file}" in capsys.readouterr().err
