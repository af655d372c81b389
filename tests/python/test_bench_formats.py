"""Rows as others read them, tables, reports and pictures."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import gemmule
from bench_rows import base_row, memory_row, quality_row, speed_row
from gemmule._bench import formats
from gemmule._bench.advice import recommendation
from gemmule._bench.compare import compare_rows
from gemmule._bench.plots import write_plots
from gemmule._bench.quality_report import indistinguishable, quality_markdown
from gemmule._bench.record import head
from gemmule._bench.report import write_report
from gemmule._bench.series import pareto
from gemmule._bench.terminal import terminal_plots
from gemmule.cli import run_command_line

# What llama-bench of 2026-10 writes into every row of its own.
FIELDS = [
    "build_commit",
    "build_number",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "n_cpu_moe",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "flash_attn",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "load_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "repack",
    "fit_target",
    "fit_min_ctx",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
]

PICTURES = ["size-quality", "size-same-top", "size-perplexity", "trade-off", "speed-single", "speed-prompt"]
PICTURES += ["memory", "depth", "roofline", "categories", "drafting"]


def rows() -> list[dict[str, object]]:
    made = []
    for i, name in enumerate(("q8_0.gguf", "q4_k_m.gguf", "q2_k.gguf")):
        size = {"name": name, "model_size": (600 - 150 * i) * 10**6}
        limit = {
            "gm_limit_ts": 60.0,
            "gm_weight_bytes": 6e8,
            "gm_cache_bytes": 1e6,
            "gm_macs": 5e8,
            "gm_head_macs": 1e8,
        }
        for depth in (0, 4096):
            made.append(speed_row(4.0 - i, n_gen=128, n_depth=depth, **size, **limit))
            made.append(
                speed_row(1.0, n_prompt=512, n_depth=depth, gm_prefill_efficiency=0.5, **size, **limit)
            )
        made.append(speed_row(3.0, n_gen=64, test="drafting off", **size))
        made.append(speed_row(2.0, n_gen=64, test="drafting on", gm_draft_n=90, gm_draft_accepted=60, **size))
        made += [memory_row(n_ctx, **size) for n_ctx in (512, 4096)]
        for text in ("all", "prose", "code"):
            made.append(quality_row(0.003 * 8**i, **size) | {"gm_text": text})
    return made


def test_rows_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    made = rows()
    path.write_text(formats.jsonl_text(made), encoding="utf-8")
    assert formats.read_rows(path) == made
    assert formats.read_rows(tmp_path) == made


def test_a_head_and_a_test_have_all_fields_of_llama_bench(tiny_gemma3_path: Path) -> None:
    from gemmule._bench import machine
    from gemmule._bench.record import timed

    base = head(str(tiny_gemma3_path), machine.describe(), n_threads=2, kv_type="f16")
    row = timed(base, [0.5, 0.6], n_prompt=512)
    assert set(FIELDS) <= row.keys()
    assert all(key in FIELDS or key.startswith("gm_") or key in ("use_mmap", "use_direct_io") for key in row)
    assert row["samples_ts"] == pytest.approx([1024, 853.33], rel=1e-4)


def test_rows_go_into_llama_benchs_database() -> None:
    """As its -o sql makes it: a table of that name, a column for each field."""
    database = sqlite3.connect(":memory:")
    row = {key: value for key, value in speed_row(1.0).items() if not isinstance(value, list)}
    database.execute(f"CREATE TABLE llama_bench ({', '.join(row)})")
    database.execute(f"INSERT INTO llama_bench VALUES ({','.join('?' * len(row))})", tuple(row.values()))
    (rate,) = database.execute("SELECT avg_ts FROM llama_bench WHERE n_gen = 128").fetchone()
    assert rate == pytest.approx(128, rel=0.05)


def test_rows_of_llama_bench_are_read(tmp_path: Path) -> None:
    theirs = {key: value for key, value in speed_row(1.0, name="/models/a.gguf").items() if key in FIELDS}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(theirs) + "\n")
    (row,) = formats.read_rows(tmp_path / "theirs.jsonl")
    assert row["model_filename"] == "a.gguf"
    assert row["gm_engine"] == "llama.cpp"


@pytest.mark.parametrize("text", [b"", b"nothing\n", b"[1]\n", b'{"n_prompt": 1}\n', b"GGUF\x03\xff", b"5\n"])
def test_what_is_no_row_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(text)
    with pytest.raises(gemmule.FormatError, match=r"bad\.jsonl"):
        formats.read_rows(tmp_path / "bad.jsonl")


def test_rows_that_lack_what_is_read_later_are_refused(tmp_path: Path) -> None:
    question = base_row(gm_kind="quality", test_time="", gm_text="", gm_question="", gm_right=1.0, gm_asked=1)
    for row, name in (
        (speed_row(1.0), "samples_ns"),
        (speed_row(1.0), "model_filename"),
        (memory_row(512), "gm_before"),
        (quality_row(0.1), "gm_samples_nll"),
        (quality_row(0.1), "gm_kl_99"),
        (question, "gm_right_error"),
        (speed_row(1.0), "gm_kind"),
    ):
        for broken in (row | {name: {}}, {key: value for key, value in row.items() if key != name}):
            if name == "gm_kind":
                broken["gm_kind"] = "taste"
            (tmp_path / "bad.jsonl").write_text(formats.jsonl_text([broken]))
            with pytest.raises(
                gemmule.FormatError, match=rf"bad\.jsonl:1 .*{'taste' if name == 'gm_kind' else name}"
            ):
                formats.read_rows(tmp_path / "bad.jsonl")


def test_csv_has_a_column_for_every_field() -> None:
    made = rows()
    read = list(csv.DictReader(io.StringIO(formats.csv_text(made))))
    assert len(read) == len(made)
    assert float(read[0]["avg_ts"]) == made[0]["avg_ts"]
    assert json.loads(read[0]["samples_ns"]) == made[0]["samples_ns"]


def test_the_table_is_llama_benchs() -> None:
    lines = formats.speed_markdown(rows()).splitlines()
    assert lines[0].split(" | ")[0].strip("| ") == "model"
    assert "| tg128 @ d4096 |" in "\n".join(lines).replace("  ", " ")
    assert len({len(line) for line in lines}) == 1


def test_files_of_one_quantization_are_told_apart(tmp_path: Path) -> None:
    made = [row(0.02, name=name, model_type="gemma4 1M Q8_0") | {"gm_quantization": "Q8_0"}
            for row in (speed_row, quality_row) for name in ("old.gguf", "new.gguf")]  # fmt: skip
    text = formats.speed_markdown(made) + quality_markdown(made)
    assert text.count("gemma4 1M Q8_0 old") == text.count("gemma4 1M Q8_0 new") == 2
    assert "Indistinguishable in mean KL: old and new" in text
    assert "new  6" in terminal_plots(made)
    write_plots(made, tmp_path)
    assert "new" in (tmp_path / "speed-single.svg").read_text()
    changes = compare_rows(made, made)
    assert {change.name.split()[3] for change in changes} == {"old", "new"}
    assert formats.told_apart(made[:1]) == made[:1]


def test_questions_have_a_table_of_their_own() -> None:
    question = base_row(gm_kind="quality", gm_text="question tool", gm_question="tool")
    question |= {"gm_right": 0.75, "gm_right_error": 0.125}
    texts = [quality_row(0.02) | {"gm_text": text} for text in ("prose", "code", "all")]
    text = quality_markdown([*texts, question])
    assert "| 75.0 ± 12.5 % |" in text
    assert "question tool" not in text
    assert "| right " in quality_markdown([question])


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto([(3, 1), (2, 2), (1, 3), (2.5, 2.5), (1, 4)]) == [2, 1, 0]


def test_what_overlaps_is_called_indistinguishable() -> None:
    close = [quality_row(0.02, name="a.gguf"), quality_row(0.021, name="b.gguf", seed=2)]
    assert indistinguishable(close) == [("A", "B")] or indistinguishable(close) == [("B", "A")]
    assert indistinguishable([quality_row(0.02), quality_row(0.2, name="b.gguf")]) == []


def test_a_report_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    written = {path.name for path in write_report(rows(), tmp_path)}
    assert {"speed.jsonl", "memory.jsonl", "quality.jsonl", "report.md", "report.html"} <= written
    for name in PICTURES:
        ElementTree.parse(tmp_path / f"{name}.svg")
        assert f"{name}.csv" in written
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(PICTURES)
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Which to take\n\nFor this machine (16.0 GB): q4_k_m.gguf" in text
    assert "Indistinguishable" not in text


def test_a_report_of_the_rows_of_a_report_is_the_same(tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_report([speed_row(1.0)], tmp_path)
    assert run_command_line(["bench", "report", str(tmp_path), "-o", str(again)]) == 0
    assert (again / "report.md").read_text() == (tmp_path / "report.md").read_text()


def test_only_pictures_with_rows_are_drawn(tmp_path: Path) -> None:
    written = write_plots([speed_row(1.0)], tmp_path, png=True)
    assert [path.name for path in written] == ["speed-single.svg", "speed-single.png", "speed-single.csv"]


def test_pictures_in_the_terminal() -> None:
    for width in (80, 120):
        text = terminal_plots(rows(), width=width)
        assert max(map(len, text.splitlines())) == width
        assert "\033" not in text
        assert text.count("█") > 100
        for title in ("tg128, tokens", "pp512, tokens", "mean KL divergence", "memory of", "by depth"):
            assert title in text
        assert "| what the read bandwidth allows" in text
        assert "Q8_0  32.0 ± 0.1 ┤█" in text
    assert "\033[" in terminal_plots(rows(), colours=True)
    assert terminal_plots([]) == ""


def test_pictures_of_single_points_in_the_terminal() -> None:
    extremes = [speed_row(1e-5), speed_row(1e6, n_gen=128, n_depth=4), memory_row(512), quality_row(0.02)]
    text = terminal_plots(extremes)
    assert "● A" in text
    assert "by depth" in text


@pytest.mark.parametrize(("environment", "styled"), [({}, False), ({"FORCE_COLOR": "1"}, True)])
def test_colours_only_where_they_are_wanted(
    tmp_path: Path, environment: dict[str, str], styled: bool
) -> None:
    (tmp_path / "speed.jsonl").write_text(formats.jsonl_text([speed_row(1.0)]))
    command = [sys.executable, "-m", "gemmule", "bench", "plot", str(tmp_path), "--term"]
    colourless = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    for more in (environment, environment | {"NO_COLOR": "1"}):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=colourless | more)
        assert ("\033[" in done.stdout) == (styled and "NO_COLOR" not in more)


def test_rows_without_a_picture_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = speed_row(1.0, test="load and first token")
    (tmp_path / "speed.jsonl").write_text(formats.jsonl_text([row]))
    for option in ((), ("--term",)):
        assert run_command_line(["bench", "plot", str(tmp_path), *option]) == 3
        assert "hold nothing that can be drawn" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "speed.jsonl"]


def test_the_file_to_take() -> None:
    machine = {"gm_memory": 8_000_000_000}

    def file(name: str, kl: float, seconds: float, size: float) -> list[dict[str, Any]]:
        fields = {"name": name, "model_size": round(size * 1e9), **machine}
        return [quality_row(kl, **fields), speed_row(seconds, noise=0.001, **fields)]

    exact, good, even = (
        file("q8.gguf", 0.001, 4.0, 7.9),
        file("q4.gguf", 0.03, 2.0, 5),
        file("q5.gguf", 0.02, 2.0, 5),
    )
    bad = file("q2.gguf", 0.4, 1.0, 3)
    assert recommendation(exact + good + bad).startswith("For this machine (8.0 GB): q4.gguf, the fastest")
    assert ": q5.gguf," in recommendation(exact + good + even + bad)  # as fast, and closer
    assert ": q2.gguf, the closest" in recommendation(exact + bad)
    assert recommendation(exact + file("f32.gguf", 0.0, 9.0, 30)).endswith(
        "none of these files fits into its memory."
    )
    assert recommendation(good) == ""  # nothing to choose from


def test_a_file_that_cannot_be_written_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report([speed_row(1.0)], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("gemmule._bench.plots.csv_text", lambda _: "\ud800")  # no UTF-8
    monkeypatch.setattr("gemmule._bench.report.jsonl_text", lambda _: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report([speed_row(2.0)], tmp_path)
    with pytest.raises(UnicodeEncodeError):
        write_plots([speed_row(1.0)], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (tmp_path / "report.md").stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_without_the_extra_the_fix_is_named(tmp_path: Path) -> None:
    (tmp_path / "speed.jsonl").write_text(formats.jsonl_text([speed_row(1.0)]))
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['plotext'] = None\n"
        "from gemmule.cli import run_command_line\n"
        f"sys.exit(run_command_line(['bench', 'plot', {str(tmp_path)!r}, *sys.argv[1:]]))"
    )
    for option in ((), ("--term",)):
        command = [sys.executable, "-c", code, *option]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert "pip install 'gemmule[bench]'" in done.stderr
