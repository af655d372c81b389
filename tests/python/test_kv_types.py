"""Number formats of the KV cache: the same bits for every way to run, sizes as planned, texts refused."""

from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule import _core

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHS = ["tiny-gemma3-f32", "tiny-gemma4-f32", "tiny-gemma4-e2b-f16", "tiny-gemma4-26b-f16"]
TYPES = ["f16", "f32", "q8_0", "sliding=f16,global=q8_0", "sliding=q8_0,global=f32"]
IDS = np.arange(2, 102, dtype=np.int32)


def _path(arch: str) -> str:
    return str(GOLDEN / f"{arch}.gguf")


def _logits(arch: str, kv_type: str, *, n_threads: int = 1, isa: str = "", step: int = 100) -> np.ndarray:
    session = _core.Model(_path(arch), n_threads=n_threads, isa=isa).session(n_ctx=128, kv_type=kv_type)
    parts = [session.append_logits(IDS[i : i + step]) for i in range(0, len(IDS), step)]
    return np.concatenate(parts)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kv_type", TYPES)
def test_bits_do_not_depend_on_the_way_to_run(arch: str, kv_type: str) -> None:
    base = _logits(arch, kv_type, isa="scalar").tobytes()
    for n_threads, step in [(1, 100), (2, 1), (3, 7), (2, 33)]:
        assert _logits(arch, kv_type, n_threads=n_threads, step=step).tobytes() == base


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kv_type", TYPES)
def test_a_rewind_gives_the_same_bits(arch: str, kv_type: str) -> None:
    session = _core.Model(_path(arch)).session(n_ctx=128, kv_type=kv_type)
    whole = session.append_logits(IDS)
    session.rewind(40)
    session.append_logits(IDS[:20])
    session.rewind(40)
    assert session.append_logits(IDS[40:]).tobytes() == whole[40:].tobytes()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kv_type", TYPES)
def test_the_plan_is_what_a_session_reserves(arch: str, kv_type: str) -> None:
    file = _core.GgufFile(_path(arch))
    plan = _core.memory_plan(file, n_ctx=700, kv_type=kv_type)
    session = _core.Model(_path(arch)).session(n_ctx=700, kv_type=kv_type)
    assert plan["kv"] == session.kv_bytes
    assert session.kv_used_bytes == 0
    session.append(IDS)
    assert 0 < session.kv_used_bytes <= session.kv_bytes


def test_keys_that_are_part_of_the_values_take_less() -> None:
    # 256 positions: four sliding layers of 2 heads x 24 numbers, two global ones of 16 + 48 instead of 96
    plan = _core.memory_plan(_core.GgufFile(_path("tiny-gemma4-f32")), n_ctx=256, kv_type="f32")
    assert plan["kv"] == 256 * 4 * (4 * 2 * 2 * 24 + 2 * (16 + 48))


@pytest.mark.parametrize("kv_type", ["q9", "", "F16", "global=q4_0", "global=f16,global=f32", "f16,q8_0"])
def test_other_types_are_refused_with_what_is_possible(kv_type: str) -> None:
    with pytest.raises(ValueError, match="choose f16, q8_0 or f32"):
        gemmule.Model(_path("tiny-gemma4-f32"), kv_type=kv_type)


def test_the_model_takes_a_type_for_each_kind_of_layer() -> None:
    with gemmule.Model(_path("tiny-gemma4-f32"), kv_type="sliding=f16,global=q8_0", n_ctx=256) as model:
        assert model.plan.kv_type == "sliding=f16,global=q8_0"
        logits = model.logits(IDS.tolist())
    assert logits.tobytes() == _logits("tiny-gemma4-f32", "sliding=f16,global=q8_0")[-1].tobytes()
