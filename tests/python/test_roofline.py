"""What was measured of this machine: kept, merged, distrusted, and used by models that are new to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gemmule
from gemmule import _core
from gemmule import _roofline as module
from gemmule._inspect import devices, open_header, weights_read
from gemmule._roofline import Roofline, kept_roofline, machine_roofline, measure_roofline
from gemmule.cli import run_command_line

CORES = devices()[0].n_physical


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_CACHE_DIR", str(tmp_path / "cache"))


def result(name: str, threads: int, value: float, unit: str = "GB/s") -> dict[str, Any]:
    return {"name": name, "threads": threads, "value": value, "unit": unit, "note": ""}


def passes(kind: str, threads: int, slope: float) -> list[dict[str, Any]]:
    return [result(f"V({t}) {kind}", threads, 1 + slope * (t - 1), "x") for t in range(1, 14)]


def keep(monkeypatch: pytest.MonkeyPatch, *results: dict[str, Any]) -> None:
    """As if these had been measured."""
    monkeypatch.setattr(_core, "measure_roofline", lambda *_, **__: list(results))
    measure_roofline(force=True)


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "{}", "[]", "[" * 100_000, "null\n", "7",
        '{"name": "read", "threads": 1, "value": "fast", "unit": "", "note": ""}',
        '{"name": "read", "threads": 1, "value": NaN, "unit": "", "note": ""}',
        '{"name": 3, "threads": 1, "value": 2, "unit": "", "note": ""}',
        '{"name": "read", "threads": null, "value": 2, "unit": "", "note": ""}',
        '{"name": "read", "value": 2}',
        '{"name": "read", "threads": 1, "value": 1' + 400 * "0" + ', "unit": "", "note": ""}',
        '{"name": "read", "threads": 1000000000000, "value": 2, "unit": "", "note": ""}',
    ],
)  # fmt: skip
def test_a_damaged_result_counts_as_none(
    text: str, monkeypatch: pytest.MonkeyPatch, tiny_gemma4_path: Path
) -> None:
    keep(monkeypatch, result("read", 1, 2))
    module._place().write_text(text)
    assert kept_roofline() is None
    with gemmule.Model(tiny_gemma4_path, n_ctx=64) as model:
        assert model.generate("x", max_tokens=2).tokens
    keep(monkeypatch, result("read", 1, 3))
    assert kept_roofline() == Roofline((result("read", 1, 3),))


def test_a_foreign_file_or_no_home_folder_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_roofline() is None
    module._place().parent.mkdir(parents=True)
    module._place().write_bytes(b"\xff\xfe\x00")
    assert kept_roofline() is None
    module._place().unlink()
    module._place().mkdir()
    assert kept_roofline() is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "cache_dir", homeless)
    assert kept_roofline() is None
    monkeypatch.setattr(_core, "measure_roofline", lambda *_, **__: [result("read", 1, 2)])
    assert measure_roofline(force=True).bandwidth(1) == 2


def test_results_of_other_thread_counts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, result("read", 1, 10), result("read", CORES + 1, 20), *passes("Q4_K", CORES + 1, 0.2))
    keep(monkeypatch, result("read", 1, 11))
    kept = kept_roofline()
    assert kept is not None
    assert (kept.bandwidth(1), kept.bandwidth(CORES + 1)) == (11, 20)
    assert len(kept.results) == 15


def test_part_of_a_roofline_is_measured_anew_where_all_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, result("read", CORES + 1, 10), *passes("Q4_K", CORES + 1, 0.2))
    whole = [result("read", CORES, 20), *passes("Q4_K", CORES, 0.2)]
    monkeypatch.setattr(_core, "measure_roofline", lambda *_, **__: whole)
    assert machine_roofline(force=True).bandwidth(CORES) == 20
    monkeypatch.setattr(_core, "measure_roofline", None)
    assert machine_roofline().bandwidth(CORES) == 20


def test_the_fewest_threads_that_saturate_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 8)
    roof = Roofline(tuple(result("read huge pages", n, v) for n, v in ((1, 20), (2, 39), (4, 40), (8, 38))))
    assert roof.decode_threads() == 2
    assert Roofline(()).decode_threads() == 0
    monkeypatch.setattr(module, "_cores", lambda: 16)
    assert roof.decode_threads() == 0  # all of 16 cores were not measured


def test_passes_are_those_of_the_types_by_their_bytes() -> None:
    roof = Roofline((*passes("Q4_K", 2, 0.1), *passes("Q6_K", 2, 0.4)))
    mixed = roof.passes({"Q4_K": 300, "Q6_K": 100, "F32": 50}, 2, 13)
    assert mixed == pytest.approx([1 + 0.175 * t for t in range(13)])
    assert roof.passes({"Q4_K": 100, "Q5_K": 100}, 2, 13) == []  # half of it is not known
    assert roof.passes({"Q4_K": 100}, 4, 13) == []
    assert roof.passes({}, 2, 13) == []


def test_a_new_model_begins_with_what_was_measured(
    tiny_gemma4_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> tuple[list[float], list[int]]:
        with gemmule.Model(tiny_gemma4_path, n_ctx=256) as model:
            reply = model.generate("once upon a time", max_tokens=60, temperature=0)
            return model._drafts._guess(), list(reply.tokens)

    guesses, tokens = answer()
    assert guesses == []
    keep(monkeypatch, result("read", 1, 9.9), result("read", CORES, 10), *passes("F32", CORES, 0.1))
    assert answer() == (pytest.approx([1 + 0.1 * t for t in range(13)]), tokens)
    keep(monkeypatch, *passes("F16", CORES, 0.1))
    with gemmule.Model(golden / "tiny-gemma4-e2b-f16.gguf", n_ctx=64) as model:
        assert model._drafts._guess()
    with gemmule.Model(golden / "tiny-gemma4-26b-f16.gguf", n_ctx=64) as model:
        assert not model._drafts._guess()  # other tokens use other experts


def test_what_is_measured_is_what_drafting_takes() -> None:
    roof = Roofline(tuple(_core.measure_roofline(1, n_bytes=1)))
    guesses = roof.passes({"Q4_K": 3, "Q6_K": 1, "Q8_0": 1, "Q4_0": 1}, 1, 13)
    assert guesses[0] == 1
    _core.DraftTable(guesses)
    with pytest.raises(ValueError, match="13 numbers"):
        _core.DraftTable(guesses[1:])
    assert f"V(1), V(2), ... Q4_K{'':>13}1 threads      1.00" in roof.text()
    assert len(roof.text().splitlines()) < 40


def test_show_says_what_the_bandwidth_allows(
    tiny_gemma4_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n_bytes = sum(weights_read(open_header(tiny_gemma4_path)).values())

    def shown(*arguments: str) -> str:
        assert run_command_line(["show", str(tiny_gemma4_path), *arguments]) == 0
        return capsys.readouterr().out

    assert "at most" not in shown()
    keep(monkeypatch, result("read", CORES, 42))
    assert "at most" not in shown()  # so small a model may stay in the caches
    monkeypatch.setattr(module, "_READ_BYTES", 1)
    limit = json.loads(shown("--json"))["info"]["speed_limit"]
    assert limit == {"tokens_per_second": pytest.approx(42e9 / n_bytes), "gb_per_second": 42}
    assert "tokens per second here without drafting (read bandwidth 42 GB/s)" in shown()


def test_of_experts_only_those_in_use_are_read(golden: Path) -> None:
    dense, experts = (
        open_header(golden / "tiny-gemma4-f32.gguf"),
        open_header(golden / "tiny-gemma4-26b-f16.gguf"),
    )
    assert sum(weights_read(dense).values()) <= sum(size for *_, size, _ in dense.tensors())
    n, used = (experts.get(f"gemma4.{key}") for key in ("expert_count", "expert_used_count"))
    of_experts = sum(size for name, *_, size, _ in experts.tensors() if "_exps." in name)
    unused = sum(size for *_, size, _ in experts.tensors()) - sum(weights_read(experts).values())
    assert unused == pytest.approx(of_experts * (1 - used / n), rel=1e-3)
