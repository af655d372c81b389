"""Converting real weights: Gemma 3 270M, dequantized to a BF16 checkpoint, and back to GGUF.

The BF16 file must hold the numbers of the checkpoint exactly, the Q4_K_M file the tensor types, metadata and
vocabulary of the published one. Bounds of the mean KL(BF16 || type) are 1.5 times what the files of
llama-quantize (October 2026) from the same BF16 file reach on this text in this engine; a longer comparison
is benchmarks/quality/quantizers.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import gemmule
from gemmule import _core
from project_modules import load_module

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
TEXT = (
    "The harbour lay quiet in the first light. Fishing boats rocked at their moorings, and the smell of "
    "salt and tar hung over the stones. Marta had walked this way every morning for forty years, first "
    "with her father, then with her own children, and now alone. She knew the name of every boat and the "
    "temper of every owner. In 1987, after the great storm, eleven of them had been lost in one night, "
    "and the town had never quite forgotten the sound of the bells. Today the water was flat. A single "
    "gull stood on the wall and watched her as if she owed it something. She broke her bread in two and "
    "threw it the smaller half."
)


@pytest.fixture(scope="module")
def checkpoint(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "gemma-3-270m"
    load_module("tools", "export_checkpoint").export(demo_model_path, folder, n_shards=3)
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint: Path) -> Callable[[str], Path]:
    """The path of the checkpoint's file of a type; made once."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = checkpoint.parent / f"out-{kind}.gguf"
            gemmule.convert(checkpoint, made[kind], type=kind)
        return made[kind]

    return get


def _log_probabilities(path: Path, ids: np.ndarray) -> np.ndarray:
    """float64 [n, n_vocab]"""
    logits = _core.Model(str(path)).session(n_ctx=256, kv_type="f32").append_logits(ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _ids(path: Path) -> np.ndarray:
    return np.array(gemmule.Tokenizer(_core.GgufFile(str(path))).encode(TEXT), np.int32)


@pytest.fixture(scope="module")
def expected(converted: Callable[[str], Path]) -> np.ndarray:
    path = converted("BF16")
    return _log_probabilities(path, _ids(path))


def test_bf16_file_holds_the_numbers_of_the_checkpoint(
    checkpoint: Path, converted: Callable[[str], Path]
) -> None:
    names = load_module("tools", "export_checkpoint")._hf_name
    raw: dict[str, np.ndarray] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        data = np.fromfile(shard, np.uint8)
        size = int(data[:8].view(np.uint64)[0])
        for name, entry in json.loads(data[8 : 8 + size].tobytes()).items():
            if name != "__metadata__":
                first, last = (8 + size + offset for offset in entry["data_offsets"])
                raw[name] = data[first:last]
    tensors = gguf.GGUFReader(str(converted("BF16"))).tensors
    assert len(tensors) == len(raw) == 236
    for tensor in tensors:
        stored = raw[names(tensor.name)]
        if len(tensor.shape) == 1:  # norms: w in the checkpoint, 1 + w in the file
            values = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            assert tensor.data.tobytes() == (values + np.float32(1)).tobytes(), tensor.name
        else:
            assert tensor.data.tobytes() == stored.tobytes(), tensor.name


def test_q4_k_m_has_the_types_of_the_published_file(
    demo_model_path: Path, converted: Callable[[str], Path]
) -> None:
    published = {t.name: t.tensor_type.name for t in gguf.GGUFReader(str(demo_model_path)).tensors}
    ours = {t.name: t.tensor_type.name for t in gguf.GGUFReader(str(converted("Q4_K_M"))).tensors}
    assert ours == published
    assert Counter(ours.values()) == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}


def test_metadata_and_vocabulary_are_those_of_the_published_file(
    demo_model_path: Path, converted: Callable[[str], Path]
) -> None:
    """Equal but for two things: tokenizer.json has no scores, only an order, and add_sep_token false is what
    every reader assumes.
    """
    published, ours = _core.GgufFile(str(demo_model_path)), _core.GgufFile(str(converted("Q4_K_M")))
    keys = set(ours.keys())
    wanted = {key for key in list(published.keys()) if key.startswith(("gemma3.", "tokenizer."))}
    wanted |= {"general.architecture", "general.file_type", "general.quantization_version"}
    assert wanted - keys == {"tokenizer.ggml.add_sep_token"}
    scores = "tokenizer.ggml.scores"
    for key in sorted((wanted & keys) - {scores}):
        assert np.array_equal(published.get(key), ours.get(key)), key
    a, b = published.get(scores), ours.get(scores)
    normal = published.get("tokenizer.ggml.token_type") == 1
    assert np.array_equal(a[~normal], b[~normal])
    assert np.array_equal(np.argsort(a[normal], kind="stable"), np.argsort(b[normal], kind="stable"))


def test_encodings_are_those_of_the_published_file(
    demo_model_path: Path, converted: Callable[[str], Path]
) -> None:
    published = gemmule.Tokenizer(_core.GgufFile(str(demo_model_path)))
    ours = gemmule.Tokenizer(_core.GgufFile(str(converted("Q4_K_M"))))
    for text in (
        TEXT,
        "def f(x):\n\treturn x  # \n\n\n",
        "日本語 🙂 é ▁ <start_of_turn>user\n",
        "  a   b    c" * 9,
    ):
        assert ours.encode(text) == published.encode(text)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_one_file_whatever_the_way(checkpoint: Path, converted: Callable[[str], Path], kind: str) -> None:
    """From the folder, and from the BF16 file of the folder: the same tensors, byte for byte."""
    again = checkpoint.parent / f"again-{kind}.gguf"
    gemmule.quantize_file(converted("BF16"), again, kind)
    a, b = (gguf.GGUFReader(str(path)).tensors for path in (converted(kind), again))
    assert [t.name for t in a] == [t.name for t in b]
    assert [t.name for t, u in zip(a, b, strict=True) if t.data.tobytes() != u.data.tobytes()] == []


BOUNDS = {
    "Q8_0": 0.0042,
    "Q6_K": 0.0106,
    "Q5_K_M": 0.048,
    "Q4_K_M": 0.0075,
    "Q4_0": 0.468,
    "Q3_K_M": 0.273,
    "Q2_K": 0.769,
}


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_quality_stays_within_its_budget(
    converted: Callable[[str], Path], expected: np.ndarray, kind: str
) -> None:
    path = converted(kind)
    found = _log_probabilities(path, _ids(path))
    kl = float((np.exp(expected) * (expected - found)).sum(axis=1).mean())
    assert kl < BOUNDS[kind]


def test_importance_helps(checkpoint: Path, converted: Callable[[str], Path], expected: np.ndarray) -> None:
    path = converted("BF16")
    text = checkpoint.parent / "calibration.txt"
    text.write_text("\n".join(TEXT.split(". ")[::-1]) * 8, encoding="utf-8")
    imatrix = checkpoint.parent / "imatrix.gguf"
    gemmule.imatrix(path, text, imatrix)
    weighted = checkpoint.parent / "weighted.gguf"
    gemmule.convert(checkpoint, weighted, type="Q2_K", imatrix=imatrix)
    kl = []
    for file in (converted("Q2_K"), weighted):
        found = _log_probabilities(file, _ids(file))
        kl.append(float((np.exp(expected) * (expected - found)).sum(axis=1).mean()))
    assert kl[1] < kl[0]
