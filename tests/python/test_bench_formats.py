"""Rows as others read them, tables, reports and pictures."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import gemmule
from bench_rows import memory_row, quality_row, speed_row
from gemmule._bench import formats
from gemmule._bench.charts import pareto
from gemmule._bench.plots import write_plots
from gemmule._bench.quality_report import indistinguishable
from gemmule._bench.record import head
from gemmule._bench.report import write_report
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

PICTURES = ["size-quality", "speed-single", "speed-prompt", "memory"]
PICTURES += ["depth", "roofline", "categories", "drafting"]


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
    theirs = {"model_filename": "/models/a.gguf", "model_size": 5, "n_prompt": 0, "n_gen": 8, "avg_ts": 3.0}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(theirs) + "\n")
    (row,) = formats.read_rows(tmp_path / "theirs.jsonl")
    assert row["model_filename"] == "a.gguf"
    assert row["gm_engine"] == "llama.cpp"


@pytest.mark.parametrize("text", ["", "nothing\n", "[1]\n", '{"n_prompt": 1}\n'])
def test_what_is_no_row_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(gemmule.FormatError, match=r"bad\.jsonl"):
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


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto([(3, 1), (2, 2), (1, 3), (2.5, 2.5), (1, 4)]) == [2, 1, 0]


def test_what_overlaps_is_called_indistinguishable() -> None:
    close = [quality_row(0.02, name="a.gguf"), quality_row(0.021, name="b.gguf", seed=2)]
    assert indistinguishable(close) == [("A", "B")] or indistinguishable(close) == [("B", "A")]
    assert indistinguishable([quality_row(0.02), quality_row(0.2, name="b.gguf")]) == []


def test_a_report_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    written = {path.name for path in write_report(rows(), tmp_path)}
    assert {"speed.jsonl", "memory.jsonl", "quality.jsonl", "report.md", "report.html"} <= written
    for name in (
        "size-quality",
        "speed-single",
        "speed-prompt",
        "memory",
        "depth",
        "roofline",
        "categories",
        "drafting",
    ):
        ElementTree.parse(tmp_path / f"{name}.svg")
        assert f"{name}.csv" in written
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 8
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    again = tmp_path / "again"
    assert run_command_line(["bench", "report", str(tmp_path), "-o", str(again)]) == 0
    assert (again / "report.md").read_text() == (tmp_path / "report.md").read_text()


def test_only_pictures_with_rows_are_drawn(tmp_path: Path) -> None:
    written = write_plots([speed_row(1.0)], tmp_path, png=True)
    assert [path.name for path in written] == ["speed-single.svg", "speed-single.png", "speed-single.csv"]


def test_pictures_in_the_terminal() -> None:
    text = terminal_plots(rows())
    assert text.count("█") > 100
    assert "tg128 @ d4096, tokens per second (| what the memory allows)" in text
    assert "mean KL divergence" in text


def test_without_the_extra_the_fix_is_named(tmp_path: Path) -> None:
    (tmp_path / "speed.jsonl").write_text(formats.jsonl_text([speed_row(1.0)]))
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from gemmule.cli import run_command_line\n"
        f"sys.exit(run_command_line(['bench', 'plot', {str(tmp_path)!r}, *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install 'gemmule[bench]'" in done.stderr
    done = subprocess.run([*command, "--term"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "tg128" in done.stdout
