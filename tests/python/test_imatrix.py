"""Importance matrices: our own measurement, llama.cpp's files; damaged ones are refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule import _core
from gemmule._convert.imatrix import Imatrix, ImatrixEntry, compute, imatrix, read_imatrix, write_imatrix
from gemmule._errors import FormatError, ModelNotFoundError

TEXT = "the cat sat on the mat and the dog ran over the hill to see what the cat had seen there "


def _matrix() -> Imatrix:
    dense = ImatrixEntry(np.array([[4.0, 0.0, 8.0]], np.float32), np.array([4]))
    experts = ImatrixEntry(np.array([[2.0, 4.0], [0.0, 0.0], [3.0, 3.0]], np.float32), np.array([2, 0, 3]))
    entries = {"blk.0.ffn_down_exps.weight": experts, "blk.0.attn_q.weight": dense}
    return Imatrix(entries, ("some/wiki.txt",), 3, 512)


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, _matrix())
    again = read_imatrix(path)
    assert (again.datasets, again.n_chunks, again.chunk_size) == (("some/wiki.txt",), 3, 512)
    assert set(again.entries) == set(_matrix().entries)
    for name, entry in _matrix().entries.items():
        assert np.array_equal(again.entries[name].sum2, entry.sum2)
        assert np.array_equal(again.entries[name].counts, entry.counts)
    assert again.name == "wiki.txt"
    with pytest.raises(FileExistsError):
        write_imatrix(path, _matrix())
    write_imatrix(path, _matrix(), overwrite=True)


def test_the_file_is_what_llama_cpp_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, _matrix())
    file = _core.GgufFile(str(path))
    assert file.get("general.type") == "imatrix"
    assert file.get("imatrix.datasets") == ["some/wiki.txt"]
    assert file.type_of("imatrix.chunk_count") == "u32"
    shapes = {name: (kind, tuple(shape)) for name, kind, shape, *_ in file.tensors()}
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": ("F32", (3, 1)),
        "blk.0.attn_q.weight.counts": ("F32", (1, 1)),
        "blk.0.ffn_down_exps.weight.in_sum2": ("F32", (2, 3)),
        "blk.0.ffn_down_exps.weight.counts": ("F32", (1, 3)),
    }


def test_importance() -> None:
    matrix = _matrix()
    found = matrix.importance("blk.0.attn_q.weight", 3)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, 0.0, 2.0]]
    experts = matrix.importance("blk.0.ffn_down_exps.weight", 2, 3)
    assert experts is not None
    assert experts.tolist() == [[1.0, 2.0], [1.0, 1.0], [1.0, 1.0]]  # the idle expert weighs all alike
    assert matrix.importance("blk.1.attn_q.weight", 3) is None
    assert matrix.importance("token_embd.weight", 3) is None
    with pytest.raises(
        FormatError, match=r"blk.0.attn_q.weight, which needs 1 x 4; it was made from another"
    ):
        matrix.importance("blk.0.attn_q.weight", 4)


def test_fused_and_split_experts_share_their_input() -> None:
    entry = ImatrixEntry(np.ones((2, 4), np.float32), np.array([1, 2]))
    split = Imatrix({"blk.3.ffn_gate_exps.weight": entry, "blk.3.ffn_up_exps.weight": entry})
    found = split.importance("blk.3.ffn_gate_up_exps.weight", 4, 2)
    assert found is not None
    assert found.tolist() == [[1.0] * 4, [0.5] * 4]
    fused = Imatrix({"blk.3.ffn_gate_up_exps.weight": entry})
    assert fused.importance("blk.3.ffn_up_exps.weight", 4, 2) is not None
    assert fused.importance("blk.3.ffn_up.weight", 4, 1) is None


def _legacy(*, calls: int = 5, values: list[float] | None = None, tail: bool = True) -> bytes:
    values = [5.0, 10.0] if values is None else values
    name = b"blk.0.attn_q.weight"
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", calls, len(values))
    data += struct.pack(f"<{len(values)}f", *values)
    return data + (struct.pack("<ii", 7, 8) + b"wiki.txt" if tail else b"")


@pytest.mark.parametrize("tail", [True, False])
def test_legacy_form(tmp_path: Path, tail: bool) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(_legacy(tail=tail))
    matrix = read_imatrix(path)
    assert (matrix.n_chunks, matrix.name) == ((7, "wiki.txt") if tail else (0, ""))
    found = matrix.importance("blk.0.attn_q.weight", 2)
    assert found is not None
    assert found.tolist() == [[1.0, 2.0]]


def test_damaged_legacy_files(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    whole = _legacy()
    without_tail = len(_legacy(tail=False))
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        if cut in (without_tail, without_tail + 4):  # files without the dataset, or the calls, are whole
            read_imatrix(path)
            continue
        with pytest.raises(FormatError, match=r"m\.dat"):
            read_imatrix(path)
    rng = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            read_imatrix(path)
        except FormatError:
            continue


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_impossible_numbers_are_named(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(_legacy(values=[1.0, bad]))
    with pytest.raises(FormatError, match=r"blk.0.attn_q.weight has the sum .* at 1"):
        read_imatrix(path)
    entry = ImatrixEntry(np.array([[1.0, bad]], np.float32), np.array([1]))
    write_imatrix(tmp_path / "m.gguf", Imatrix({"blk.0.attn_q.weight": entry}))
    with pytest.raises(FormatError, match=r"blk.0.attn_q.weight has the sum .* at 1"):
        read_imatrix(tmp_path / "m.gguf")


def test_files_that_are_something_else(tmp_path: Path, tiny_gemma4_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_imatrix(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="holds no importance matrix"):
        read_imatrix(tiny_gemma4_path)
    (tmp_path / "cut.gguf").write_bytes(tiny_gemma4_path.read_bytes()[:1000])
    with pytest.raises(FormatError):
        read_imatrix(tmp_path / "cut.gguf")
    (tmp_path / "text.dat").write_text("just a text that is no matrix")
    with pytest.raises(FormatError, match="is no importance matrix"):
        read_imatrix(tmp_path / "text.dat")


def _gguf(path: Path, tensors: dict[str, Any]) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight.in_sum2": np.ones((1, 4), np.float32)}, r"a.weight.counts is missing"),
        ({"a.weight.counts": np.ones((1, 1), np.float32)}, r"a.weight.in_sum2 is missing"),
        (
            {"a.weight.in_sum2": np.ones((1, 4), np.float16), "a.weight.counts": np.ones((1, 1), np.float32)},
            "must be F32",
        ),
        (
            {"a.weight.in_sum2": np.ones((1, 4), np.float32), "a.weight.counts": np.ones((3, 1), np.float32)},
            "4 sums for 3 counts",
        ),
        (
            {
                "a.weight.in_sum2": np.ones((1, 4), np.float32),
                "a.weight.counts": -np.ones((1, 1), np.float32),
            },
            "the count -1.0 at 0",
        ),
    ],
)
def test_inconsistent_files(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    _gguf(tmp_path / "m.gguf", tensors)
    with pytest.raises(FormatError, match=message):
        read_imatrix(tmp_path / "m.gguf")


def test_sums_are_those_of_the_taps(tiny_gemma4_path: Path) -> None:
    model = _core.Model(str(tiny_gemma4_path), n_threads=2)
    tokens = np.arange(40, dtype=np.int32) % model.n_vocab
    collector = _core.ImportanceCollector(model, head=True)
    model.session(n_ctx=64).append_importance(tokens, collector)
    taps = model.session(n_ctx=64).append_taps(tokens, ["attn_in.1", "ffn_act.0", "output_norm"])
    entries = {name: (sum2, counts) for name, sum2, counts in collector.entries()}
    for name, tap in [
        ("blk.1.attn_k.weight", "attn_in.1"),
        ("blk.0.ffn_down.weight", "ffn_act.0"),
        ("token_embd.weight", "output_norm"),
    ]:
        sum2, counts = entries[name]
        assert counts.tolist() == [40]
        np.testing.assert_allclose(sum2[0], (taps[tap].astype(np.float64) ** 2).sum(axis=0), rtol=1e-12)
    other = _core.Model(str(tiny_gemma4_path))
    with pytest.raises(ValueError, match="another model"):
        other.session(n_ctx=64).append_importance(tokens, collector)


def test_windows_as_llama_imatrix(tiny_gemma4_path: Path) -> None:
    with gemmule.Model(tiny_gemma4_path) as model:
        n_tokens = len(model.tokenizer.encode(TEXT * 8, special=False))
    calls: list[tuple[int, int, str]] = []
    made = compute(tiny_gemma4_path, TEXT * 8, n_ctx=16, progress=lambda *args: calls.append(args))
    n_windows = n_tokens // 16
    assert (made.n_chunks, made.chunk_size) == (n_windows, 16)
    assert [done for done, _, _ in calls] == [16 * (i + 1) for i in range(n_windows)]
    assert {total for _, total, _ in calls} == {16 * n_windows}
    assert all(entry.counts.tolist() == [16 * n_windows] for entry in made.entries.values())
    assert "token_embd.weight" not in made.entries
    assert f"{n_windows} windows of 16" in str(made)
    assert compute(tiny_gemma4_path, TEXT * 8, n_ctx=16, n_chunks=2, n_threads=1).n_chunks == 2
    assert "token_embd.weight" in compute(tiny_gemma4_path, TEXT * 8, n_ctx=16, n_chunks=1, head=True).entries


def test_result_does_not_depend_on_threads(tiny_gemma4_path: Path) -> None:
    one = compute(tiny_gemma4_path, TEXT * 4, n_ctx=32, n_threads=1)
    three = compute(tiny_gemma4_path, TEXT * 4, n_ctx=32, n_threads=3)
    assert one.entries.keys() == three.entries.keys()
    for name in one.entries:
        assert one.entries[name].sum2.tobytes() == three.entries[name].sum2.tobytes()


def test_imatrix_function(tmp_path: Path, tiny_gemma4_path: Path) -> None:
    text, dst = tmp_path / "text.txt", tmp_path / "m.gguf"
    text.write_text(TEXT * 8)
    made = imatrix(tiny_gemma4_path, text, dst, n_ctx=32)
    again = read_imatrix(dst)
    assert again.datasets == (str(text),)
    assert again.entries.keys() == made.entries.keys()
    with pytest.raises(FileExistsError):
        imatrix(tiny_gemma4_path, text, dst, n_ctx=32)
    with pytest.raises(ValueError, match="also the input"):
        imatrix(tiny_gemma4_path, text, text, overwrite=True)
    text.write_text("cat")
    with pytest.raises(ValueError, match=r"one window takes 512; use a longer text"):
        imatrix(tiny_gemma4_path, text, tmp_path / "n.gguf")
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        imatrix(tiny_gemma4_path, text, tmp_path / "n.gguf")
    assert not (tmp_path / "n.gguf").exists()


def test_cancelled(tiny_gemma4_path: Path) -> None:
    stop = _core.StopToken()
    stop.cancel()
    with pytest.raises(gemmule.Cancelled):
        compute(tiny_gemma4_path, TEXT * 8, n_ctx=32, stop=stop)


# Sums over all columns that llama.cpp's llama-imatrix (October 2026) gives for the Gemma 3 270M of the [demo]
# extra on the LICENSE file of this repository, `-c 512 --chunks 2`.
_PEER_SUMS = {
    "blk.0.attn_output.weight": 2.61361e7,
    "blk.0.attn_q.weight": 1.86824e8,
    "blk.0.ffn_down.weight": 1.78561e6,
    "blk.0.ffn_up.weight": 1.3346e6,
    "blk.17.attn_output.weight": 143249,
    "blk.17.attn_q.weight": 2.77425e6,
    "blk.17.ffn_down.weight": 16571.2,
    "blk.17.ffn_up.weight": 70805.2,
    "blk.8.attn_output.weight": 865161,
    "blk.8.attn_q.weight": 6.53677e6,
    "blk.8.ffn_down.weight": 60192.4,
    "blk.8.ffn_up.weight": 303758,
}


@pytest.mark.slow
@pytest.mark.real_model
def test_equals_llama_imatrix_on_the_real_model(demo_model_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "LICENSE").read_text()
    made = compute(demo_model_path, text, n_chunks=2)
    assert len(made.entries) == 18 * 7
    assert all(entry.counts.tolist() == [1024] for entry in made.entries.values())
    for name, expected in _PEER_SUMS.items():
        assert made.entries[name].sum2.sum() == pytest.approx(expected, rel=0.01), name


def test_a_matrix_of_another_model_is_named_with_its_file(tmp_path: Path) -> None:
    entry = ImatrixEntry(np.ones((1, 32), np.float32), np.array([4]))
    write_imatrix(tmp_path / "other.gguf", Imatrix({"blk.0.attn_q.weight": entry}))
    with pytest.raises(
        FormatError, match=r"other\.gguf: 32 values .* blk\.0\.attn_q\.weight, which needs 1 x 64"
    ):
        read_imatrix(tmp_path / "other.gguf").importance("blk.0.attn_q.weight", 64)
