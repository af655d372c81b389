"""The scripts that run the micro-benchmarks: names of machines, rows of programs, starting and loading."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from project_modules import load_module

run = load_module("benchmarks", "run")
load = load_module("benchmarks/engine", "load")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("cpu", "flags", "n_cores", "name"),
    [
        (
            "Intel(R) Xeon(R) Processor @ 2.50GHz",
            "avx2 avx512f avx512_vnni",
            2,
            "intel-xeon-2.50ghz-2c-avx512vnni",
        ),
        ("Intel(R) Core(TM) i7-1260P CPU", "avx2 avx_vnni", 12, "intel-core-i7-1260p-12c-avxvnni"),
        ("AMD EPYC 7B13", "fma avx2", 8, "amd-epyc-7b13-8c-avx2"),
        ("AMD Ryzen 7 5800X 8-Core Processor", "avx2", 8, "amd-ryzen-7-5800x-8c-avx2"),
        ("Neoverse-N1", "asimd asimddp", 4, "neoverse-n1-4c-asimddp"),
        ("arm64", "", 1, "arm64-1c"),
    ],
)
def test_the_name_of_a_machine(cpu: str, flags: str, n_cores: int, name: str) -> None:
    assert run.machine_name(cpu, flags, n_cores) == name


def _vector_bench(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """benchmarks/run.py with a program of this code in place of vector_bench; where its results go."""
    program = folder / "vector_bench"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    output = folder / "results.jsonl"
    arguments = ["run.py", "--only", "vector", "--build", str(folder), "--output", str(output), "--force"]
    monkeypatch.setattr(sys, "argv", arguments)
    return output


def test_results_begin_with_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _vector_bench(tmp_path, """print('{"name": "rope", "share": 0.5}')""", monkeypatch)
    run.main()
    first, row = (json.loads(line) for line in output.read_text().splitlines())
    assert first["bench"] == "machine"
    assert first["cpu_info"]
    assert first["commit"]
    assert len(first["yardstick"]) == 2
    assert row == {"bench": "vector", "name": "rope", "share": 0.5}


def test_a_program_that_fails_leaves_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _vector_bench(tmp_path, "raise SystemExit(3)", monkeypatch)
    with pytest.raises(SystemExit, match="vector ended with status 3"):
        run.main()
    assert not output.exists()


def test_loading_is_timed_cold_and_warm(tiny_gemma4_path: Path) -> None:
    rows = load.measure(tiny_gemma4_path, repeat=1)
    assert [row["state"] for row in rows] == ["cold", "warm"]
    for row in rows:
        assert min(row[key] for key in ("start", "open", "first")) > 0
        assert row["share"] == 0.0  # no roofline in this cache folder
