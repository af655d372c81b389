"""`bench compare` finds what was planted and nothing else; rows that do not belong together are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gemmule
from bench_rows import memory_row, quality_row, speed_row
from gemmule._bench.compare import Condition, compare_rows, comparison_markdown
from gemmule._bench.formats import check_comparable
from gemmule._bench.statistics import t_quantile


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_slowdown_of_five_percent_is_found(seed: int, paired: bool) -> None:
    session = {"gm_session": "1" if paired else "2"}
    old = speed_row(1.0, seed=seed, noise=0.004)
    (change,) = compare_rows([old], [speed_row(1.05, seed=100 + seed, noise=0.004, **session)])
    assert change.real
    assert change.metric == "tg"
    assert change.change == pytest.approx(0.05, abs=0.015)
    assert Condition.parse("tg>2%").holds(change)
    assert not Condition.parse("tg>9%").holds(change)
    assert not Condition.parse("pp>2%").holds(change)


def test_two_runs_of_one_build_differ_in_one_of_a_hundred_at_most() -> None:
    found = 0
    for seed in range(400):
        old, new = speed_row(1.0, seed=seed), speed_row(1.0, seed=1000 + seed, gm_session="2")
        found += compare_rows([old], [new])[0].real
    assert found <= 10


def test_a_faster_build_breaks_no_condition() -> None:
    (change,) = compare_rows([speed_row(1.0, noise=0.001)], [speed_row(0.8, seed=1, noise=0.001)])
    assert change.real
    assert change.shown == "20.0% better" or change.change < -0.19
    assert not Condition.parse("tg>1%").holds(change)


def test_a_host_that_changed_excuses_as_much_change() -> None:
    slow = speed_row(1.05, seed=1, noise=0.001, gm_session="2", gm_yardstick=[[9.4, 1.0]] * 5)
    (change,) = compare_rows([speed_row(1.0, noise=0.001)], [slow])
    assert change.shown == "indistinguishable"


def test_one_repetition_proves_nothing() -> None:
    (change,) = compare_rows([speed_row(1.0, rounds=1)], [speed_row(2.0, rounds=1)])
    assert math.isinf(change.error)
    assert not change.real
    assert "unknown" in comparison_markdown([change])


def test_a_quality_loss_is_found_and_equal_files_are_equal() -> None:
    changes = compare_rows([quality_row(0.02)], [quality_row(0.025, seed=3)])
    kl = next(change for change in changes if change.metric == "kl")
    assert kl.real
    assert Condition.parse("kl>10%").holds(kl)
    assert not any(change.real for change in compare_rows([quality_row(0.02)], [quality_row(0.02)]))
    same = [change for change in compare_rows([quality_row(0.02)], [quality_row(0.02, seed=5)])]
    assert not any(change.real for change in same if change.metric == "kl")


def test_two_quantizations_are_compared_as_such() -> None:
    changes = compare_rows([quality_row(0.02, name="q8_0.gguf")], [quality_row(0.2, name="q4_k.gguf")])
    assert any(change.real for change in changes)


def test_memory_may_differ_by_a_percent() -> None:
    old, new = memory_row(4096), memory_row(4096)
    new["gm_peak_rss"] = round(1.005 * old["gm_peak_rss"])
    assert not compare_rows([old], [new])[0].real
    new["gm_peak_rss"] = round(1.05 * old["gm_peak_rss"])
    assert Condition.parse("memory>3%").holds(compare_rows([old], [new])[0])


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(gemmule.FormatError, match="text_sha256 differs"):
        check_comparable([quality_row(0.1), quality_row(0.1, name="b.gguf") | {"gm_text_sha256": "other"}])
    with pytest.raises(gemmule.FormatError, match="cpu_info differs"):
        check_comparable([speed_row(1.0), speed_row(1.0, cpu_info="another")])
    with pytest.raises(gemmule.FormatError, match="no test of the same file"):
        compare_rows([speed_row(1.0)], [speed_row(1.0, n_gen=64)])


@pytest.mark.parametrize("text", ["tg", "tg>", "tg>5", "speed>5%", "tg<5%"])
def test_bad_conditions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition"):
        Condition.parse(text)


def test_t_quantile() -> None:
    # Of published tables: 0.995, by degrees of freedom.
    known = {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 8: 3.355, 30: 2.750}
    for degrees, value in known.items():
        assert t_quantile(0.995, degrees) == pytest.approx(value, rel=0.05)
    assert np.isclose(t_quantile(0.975, 1e6), 1.95996, atol=1e-4)
