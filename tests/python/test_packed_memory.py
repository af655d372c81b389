"""Weights packed in memory while a model runs: the same bits, and a limit that holds."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gemmule


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, tiny_gemma4_path: Path) -> Path:
    out = tmp_path_factory.mktemp("packed") / "tiny-q8_0.gguf"
    gemmule.quantize_file(tiny_gemma4_path, out, "Q8_0")
    return out


def test_generation_is_the_same_while_weights_are_packed(quantized: Path) -> None:
    replies, packed_bytes = [], []
    for packed in (False, True):
        with gemmule.Model(quantized, packed=packed) as model:
            session = model.session()
            session.append([2, *range(5, 75)])
            replies.append(session.generate(temperature=0, max_tokens=60).tokens)
            packed_bytes.append(model._engine().packed_bytes)
    assert replies[0] == replies[1]
    assert packed_bytes[0] == 0
    assert packed_bytes[1] > 0


def test_logits_are_the_same_bits_before_during_and_after(quantized: Path) -> None:
    with gemmule.Model(quantized, packed=False) as model:
        expected = model.logits([2, 9, 7, 30])
    with gemmule.Model(quantized, packed=True) as model:
        for _ in range(4):
            assert np.array_equal(model.logits([2, 9, 7, 30]), expected)


def test_a_memory_limit_is_kept_or_refused_with_both_numbers(quantized: Path) -> None:
    with gemmule.Model(quantized, memory_limit="1GiB") as model:
        assert model.plan.available <= 1 << 30
        assert model.plan.total <= 1 << 30
    with pytest.raises(gemmule.NotEnoughMemoryError, match="allowed"):
        gemmule.Model(quantized, memory_limit=1000)
    for bad in (0, -5, "much", 1.5):
        with pytest.raises(ValueError, match="memory_limit"):
            gemmule.Model(quantized, memory_limit=bad)  # type: ignore[arg-type]


def test_packed_is_auto_or_a_bool(quantized: Path) -> None:
    for bad in ("yes", 1, None):
        with pytest.raises(TypeError, match="packed"):
            gemmule.Model(quantized, packed=bad)  # type: ignore[arg-type]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no huge pages"
)
def test_parts_that_were_released_do_not_come_back_with_huge_pages(quantized: Path) -> None:
    """A huge page of the file is mapped whole when any byte of it is touched; the plan would not hold."""

    def flags() -> list[str]:
        maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
        return next(after.split("\n")[0].split() for at, after in pairwise(maps) if str(quantized) in at)

    with gemmule.Model(quantized, packed=False) as model:
        model.logits([2, 9])
        assert "nh" not in flags()
    gc.collect()  # the mapping goes with its last view
    with gemmule.Model(quantized, packed=True) as model:
        model.logits([2, 9])
        assert "nh" in flags()
