"""Logits and activations of tiny models against stored float32 results of transformers, and equal bits.

One model per kind: Gemma 3, Gemma 4, Gemma 4 with per-layer embeddings and shared keys and values (E2B), and
with experts (26B). Error of one position = max|a - b| / max|b| over its row, where b is the reference; the
bound is 1e-4 for an f32 KV cache (8e-7 to 7e-6 are reached; float order only). The bit tests
compare a run with one thread, one chunk, with every other way to run the same tokens: the bytes must be
the same. The files come from tools/make_golden.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule import _core

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ARCHITECTURES = {
    "gemma3": "tiny-gemma3-f32",
    "gemma4": "tiny-gemma4-f32",
    "e2b": "tiny-gemma4-e2b-f16",
    "26b": "tiny-gemma4-26b-f16",
}
BOUND = 1e-4


def _gguf(arch: str) -> str:
    return str(GOLDEN / f"{ARCHITECTURES[arch]}.gguf")


def _load(arch: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{ARCHITECTURES[arch]}.npz") as data:
        return {name: data[name] for name in data.files}


def _error(value: np.ndarray, reference: np.ndarray) -> float:
    assert value.shape == reference.shape
    return float((np.abs(value - reference).max(axis=1) / np.abs(reference).max(axis=1)).max())


def _run(
    arch: str, ids: np.ndarray, *, kv_type: str, n_threads: int = 1, isa: str = "", chunk: int = 0
) -> np.ndarray:
    """float32 [n, n_vocab], appended in chunks (0 = all at once)."""
    session = _core.Model(_gguf(arch), n_threads=n_threads, isa=isa).session(n_ctx=128, kv_type=kv_type)
    step = chunk or len(ids)
    return np.concatenate([session.append_logits(ids[i : i + step]) for i in range(0, len(ids), step)])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_match_the_reference(arch: str) -> None:
    golden = _load(arch)
    model = gemmule.Model(_gguf(arch), kv_type="f32")
    logits = model.logits(golden["ids"], all=True)
    assert logits.dtype == np.float32
    assert _error(logits, golden["logits"]) < BOUND


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_tap_matches_the_reference(arch: str) -> None:
    golden = _load(arch)
    names = [name for name in golden if name not in ("ids", "info", "logits")]
    assert {"embed", "layer_out.0", "layer_out.4", "output_norm"} <= set(names)
    taps = _core.Model(_gguf(arch)).session(n_ctx=128, kv_type="f32").append_taps(golden["ids"], names)
    errors = {name: _error(taps[name], golden[name]) for name in names}
    assert max(errors.values()) < BOUND, errors


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_f16_cache_stays_close_to_the_reference(arch: str) -> None:
    golden = _load(arch)
    # f16 keeps 11 bits of K and V (relative 5e-4); the sharp softmax of the random model amplifies that.
    assert _error(_run(arch, golden["ids"], kv_type="f16"), golden["logits"]) < 2e-2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_golden_prompt_is_longer_than_four_windows(arch: str) -> None:
    golden = _load(arch)
    file = _core.GgufFile(_gguf(arch))
    window = file.get(f"{file.get('general.architecture')}.attention.sliding_window")
    assert len(golden["ids"]) > 4 * window
    assert json.loads(str(golden["info"]))["window_effect"] > 1.0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("isa", ["scalar", ""])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("chunk", [1, 7, 64, 0])
def test_bits_do_not_depend_on_the_way_to_run(
    arch: str, kv_type: str, isa: str, n_threads: int, chunk: int
) -> None:
    ids = _load(arch)["ids"]
    base = _run(arch, ids, kv_type=kv_type, isa="scalar")
    other = _run(arch, ids, kv_type=kv_type, isa=isa, n_threads=n_threads, chunk=chunk)
    assert base.tobytes() == other.tobytes()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_every_supported_level_gives_the_same_bits(arch: str, kv_type: str) -> None:
    ids = _load(arch)["ids"]
    levels = [level["name"] for level in _core.cpu_info()["levels"] if level["supported"]]
    results = {name: _run(arch, ids, kv_type=kv_type, isa=name).tobytes() for name in levels}
    assert len(set(results.values())) == 1, list(results)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("keep", [0, 1, 7, 8, 15, 16, 17, 39])
def test_rewind_and_replay_gives_the_same_bits(arch: str, kv_type: str, keep: int) -> None:
    ids = _load(arch)["ids"]
    session = _core.Model(_gguf(arch)).session(n_ctx=128, kv_type=kv_type)
    first = session.append_logits(ids)
    session.rewind(keep)
    session.append(np.full(9, 300, np.int32))  # other tokens must leave no trace
    session.rewind(keep)
    assert session.n_tokens == keep
    again = session.append_logits(ids[keep:])
    assert first[keep:].tobytes() == again.tobytes()
    assert session.logits().tobytes() == first[-1].tobytes()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_are_the_log_softmax_of_the_logits(arch: str) -> None:
    golden = _load(arch)
    ids = golden["ids"]
    targets = np.append(ids[1:], -1).astype(np.int32)
    session = _core.Model(_gguf(arch)).session(n_ctx=128, kv_type="f32")
    scores, top_ids, top_logprobs = session.append_score(ids, targets, top=3)
    rows = golden["logits"].astype(np.float64)
    logp = (
        rows
        - np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - rows.max(axis=1, keepdims=True)
    )
    np.testing.assert_allclose(scores[:-1], logp[np.arange(len(ids) - 1), ids[1:]], atol=2e-3)
    assert np.isnan(scores[-1])
    assert (top_ids[:-1, 0] == rows.argmax(axis=1)[:-1]).all()
    np.testing.assert_allclose(top_logprobs[:-1, 0], logp.max(axis=1)[:-1], atol=2e-3)


@pytest.mark.parametrize("prompt", [[2], [2, 380, 5, 381], list(range(60))])
def test_rows_of_unread_tables_are_never_touched(tmp_path: Path, prompt: list[int]) -> None:
    """NaN in every row of the per-layer table that no token of the prompt names changes nothing."""
    source = Path(_gguf("e2b"))
    file = _core.GgufFile(str(source))
    offset, n_bytes = next((t[3], t[4]) for t in file.tensors() if t[0] == "per_layer_token_embd.weight")
    raw = bytearray(source.read_bytes())
    table = np.frombuffer(raw, np.float16, n_bytes // 2, offset).reshape(384, -1)
    table[np.setdiff1d(np.arange(384), prompt)] = np.nan
    other = tmp_path / "holes.gguf"
    other.write_bytes(raw)
    ids = np.array(prompt, np.int32)
    expected = _core.Model(str(source)).session(n_ctx=64).append_logits(ids)
    assert _core.Model(str(other)).session(n_ctx=64).append_logits(ids).tobytes() == expected.tobytes()


def test_shared_layers_have_no_cache_and_need_no_tensors_for_it() -> None:
    file = _core.GgufFile(_gguf("e2b"))
    plan = _core.memory_plan(file, n_ctx=64, kv_type="f32")
    own = 2 * 256 * 4 * (2 * 8 + 16)  # keys and values, 256 positions, two sliding layers and one global
    assert plan["kv"] == own
    assert _core.Model(_gguf("e2b")).session(n_ctx=64, kv_type="f32").kv_bytes == own
    table = next(t for t in file.tensors() if t[0] == "per_layer_token_embd.weight")
    assert plan["weights"] == sum(t[4] for t in file.tensors()) - table[4]


def test_core_calls_that_fail_leave_the_session_alone(golden: Path) -> None:
    model = _core.Model(str(golden / "tiny-gemma4-f32.gguf"), n_threads=1)
    session = model.session(n_ctx=64)
    ids = np.arange(2, 22, dtype=np.int32)
    with pytest.raises(ValueError, match="no tap called"):
        session.append_taps(ids, ["nope"])
    assert session.n_tokens == 0
    with pytest.raises(gemmule.ContextLengthError):
        session.append_logits(np.zeros(50_000_000, np.int32))
    with pytest.raises(gemmule.Error, match="busy"):
        session.append(ids, progress=lambda done, total: session.append(ids))
    assert session.n_tokens == 0
    seen: list[int] = []
    session.append(ids, progress=lambda done, total: seen.append(session.n_tokens))
    assert seen == [0]
    assert session.n_tokens == 20


@pytest.mark.parametrize("n_ubatch", [0, -1, 4097, 2**55])
def test_absurd_steps_are_refused(golden: Path, n_ubatch: int) -> None:
    path = str(golden / "tiny-gemma3-f32.gguf")
    with pytest.raises(ValueError, match="n_ubatch"):
        _core.memory_plan(_core.GgufFile(path), n_ctx=64, n_ubatch=n_ubatch)
    with pytest.raises(ValueError, match="n_ubatch"):
        _core.Model(path, n_ubatch=n_ubatch)


@pytest.mark.parametrize(
    ("arch", "tensor"),
    [
        ("gemma4", "blk.0.ffn_up.weight"),
        ("gemma4", "blk.1.attn_k.weight"),
        ("gemma4", "token_embd.weight"),
        ("e2b", "per_layer_model_proj.weight"),
        ("e2b", "blk.3.inp_gate.weight"),
        ("e2b", "blk.5.proj.weight"),
        ("e2b", "blk.2.attn_v.weight"),  # whose values another layer shares
        ("26b", "blk.0.ffn_gate_inp.weight"),
        ("26b", "blk.1.ffn_gate_up_exps.weight"),
        ("26b", "blk.4.ffn_down_exps.weight"),
    ],
)
def test_a_nan_in_the_weights_never_becomes_a_number(tmp_path: Path, arch: str, tensor: str) -> None:
    source = Path(_gguf(arch))
    raw = bytearray(source.read_bytes())
    offset = next(t[3] for t in _core.GgufFile(str(source)).tensors() if t[0] == tensor)
    raw[offset + 400 : offset + 404] = np.float32(np.nan).tobytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(raw)
    ids = list(range(2, 60))
    with gemmule.Model(broken, n_ctx=64) as model:
        calls = [
            lambda: model.generate(ids, max_tokens=1),
            lambda: model.logits(ids, all=True),
            lambda: model.score(ids, n_ctx=32),
        ]
        if tensor != "token_embd.weight":  # a row that no token of the prompt uses stays out of the stream
            calls.append(lambda: model.hidden(ids))
        for call in calls:
            with pytest.raises(gemmule.Error, match="not finite"):
                call()
