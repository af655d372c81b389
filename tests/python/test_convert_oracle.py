"""Conversion against transformers and llama.cpp: tiny random checkpoints of every variant.

Float files must give transformers' logits at every position (max|a - b| / max|b| below 1e-4). For quantized
files the yardstick is transformers itself running on the dequantized weights of that very file: KL(source ||
gemmule) may exceed KL(source || dequantized) by what rounding activations to 8 bits adds (_BUDGET).
llama.cpp opens the one file, and the three of `split`, and writes the same greedy text.
Needs torch, transformers >= 5.17, gguf and xllamacpp (marker oracle).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule import _core
from gemmule._bench import llamacpp
from project_modules import load_module

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

folders = load_module("tools", "tiny_folder")
checkpoints = load_module("tools", "make_tiny_checkpoint")

TEXT_VARIANTS = [name for name, variant in folders.VARIANTS.items() if not variant.is_drafter]
N_LONG = 90  # far beyond the window of 16
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save one variant as transformers does; returns the folder."""

    def make(name: str, *, folder: str = "", **options: Any) -> Path:
        path = tmp_path / (folder or name)
        checkpoints.save(name, path, **options)
        return path

    return make


def _load(folder: Path) -> Any:
    """The checkpoint in float32, as transformers reads it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    return cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def _ids(folder: Path, n: int, seed: int = 1) -> np.ndarray:
    """int32 [n]: BOS and random ids; no places for media, which are not text."""
    media = {"<|image|>", "<|audio|>", "<|video|>", "<start_of_image>"}
    tokens = folders.vocabulary(gemma3="gemma3" in folder.name)[0]
    allowed = np.array([i for i, token in enumerate(tokens) if token not in media], np.int32)
    ids = np.random.default_rng(seed).choice(allowed, n)
    ids[0] = 2
    return ids


def _logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    return np.asarray(out.logits[0].float().numpy())


def _ours(path: Path, ids: np.ndarray) -> np.ndarray:
    return np.asarray(_core.Model(str(path)).session(n_ctx=256, kv_type="f32").append_logits(ids))


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(value - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


def _kl(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean of KL(expected || found) over positions. Logits are scaled so that the best one lies 8 above
    the mean, as in real models: random ones put all probability on one token, or spread it evenly.
    """
    scale = 8 / float((expected.max(axis=1) - expected.mean(axis=1)).mean())
    logs = []
    for logits in (expected, found):
        shifted = scale * (logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        logs.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


# -- float files --


@pytest.mark.parametrize("n_tokens", [1, N_LONG])
@pytest.mark.parametrize("name", TEXT_VARIANTS)
def test_float_conversion_keeps_the_function(save: Save, tmp_path: Path, name: str, n_tokens: int) -> None:
    folder = save(name, dtype="F32")
    path = tmp_path / "out.gguf"
    gemmule.convert(folder, path, type="F32")
    ids = _ids(folder, n_tokens)
    assert _error(_ours(path, ids), _logits(_load(folder), ids)) < 1e-4


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("name", ["12b", "e2b", "26b", "gemma3-text"])
def test_half_checkpoints_keep_their_type(save: Save, tmp_path: Path, name: str, dtype: str) -> None:
    folder = save(name, dtype=dtype, shards=True)
    path = tmp_path / "out.gguf"
    report = gemmule.convert(folder, path, type=dtype)
    assert report.tensor_types[dtype] > 0
    ids = _ids(folder, N_LONG)
    assert _error(_ours(path, ids), _logits(_load(folder), ids)) < 1e-4


@pytest.mark.parametrize("options", [{"old_dialect": True}, {"tied": False}, {"wide": True}, {"seed": 7}])
@pytest.mark.parametrize("name", ["12b", "e4b", "31b-text"])
def test_other_forms_of_the_checkpoint(
    save: Save, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    folder = save(name, dtype="F32", **options)
    path = tmp_path / "out.gguf"
    gemmule.convert(folder, path, type="F32")
    ids = _ids(folder, N_LONG)
    assert _error(_ours(path, ids), _logits(_load(folder), ids)) < 1e-4


@pytest.mark.parametrize("name", ["12b", "e2b", "26b", "gemma3-text"])
def test_greedy_ids_are_those_of_transformers(save: Save, tmp_path: Path, name: str) -> None:
    folder = save(name, dtype="F32")
    path = tmp_path / "out.gguf"
    gemmule.convert(folder, path, type="F32")
    ids = _ids(folder, 24)
    model = _load(folder)
    expected: list[int] = []
    for _ in range(32):
        row = _logits(model, np.array([*ids.tolist(), *expected], np.int32))[-1]
        expected.append(int(row.argmax()))
    assert _greedy(path, ids, 32) == expected


def _greedy(path: Path, ids: np.ndarray, n: int) -> list[int]:
    session = _core.Model(str(path)).session(n_ctx=256, kv_type="f32")
    session.append(ids)
    out: list[int] = []
    for _ in range(n):
        out.append(int(np.asarray(session.logits()).argmax()))
        session.append(np.array(out[-1:], np.int32))
    return out


@pytest.mark.parametrize("name", ["12b", "gemma3-text"])
def test_encodings_are_those_of_transformers(save: Save, tmp_path: Path, name: str) -> None:
    folder = save(name, dtype="BF16")
    path = tmp_path / "out.gguf"
    gemmule.convert(folder, path, type="BF16")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = gemmule.Tokenizer(_core.GgufFile(str(path)))
    texts = ["Hello the user, what is that?", "<bos>hi\n\n\n there  ü é 日本 🙂\t!", "a  b   c    d"]
    turn = (
        "<start_of_turn>user\nhello<end_of_turn>\n"
        if name == "gemma3-text"
        else "<|turn>user\nhello<turn|>\n"
    )
    for text in [*texts, turn]:
        expected = reference(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_bos=False) == expected


# -- quantized files --


def _dequantized(folder: Path, float_file: Path, path: Path) -> Any:
    """The model of `folder` with the weights of a quantized file in place of its matrices.

    Tensors are matched by content: a matrix has the same float32 numbers in the checkpoint and in its F32
    file, so this needs no table of names.
    """
    model = _load(folder)
    places: dict[int, list[Any]] = {}
    for tensor in model.state_dict().values():
        if tensor.ndim >= 2:
            places.setdefault(hash(tensor.contiguous().numpy().tobytes()), []).append(tensor)
    quantized = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    n_replaced = 0
    for tensor in gguf.GGUFReader(str(float_file)).tensors:
        if tensor.name == "rope_freqs.weight" or len(tensor.shape) < 2:
            continue
        other = quantized[tensor.name]
        values = gguf.quants.dequantize(other.data, other.tensor_type).astype(np.float32)
        targets = places.get(hash(tensor.data.astype(np.float32).tobytes()), [])
        assert targets, tensor.name
        for target in targets:
            target.copy_(torch.from_numpy(values.reshape(tuple(target.shape)).copy()))
        n_replaced += other.tensor_type.name not in ("F32", "F16", "BF16")
    assert n_replaced > 0
    return model


# KL of gemmule over KL of the weights alone: activations in 8 bits add 0.5 to 0.7 of what weights in 8 bits
# cost, which next to weights in 4 bits is little (-0.02 to 0.03).
_BUDGET = {"Q8_0": 2.0, "Q4_K_M": 1.1}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("name", TEXT_VARIANTS)
def test_quantized_conversion_stays_within_its_budget(
    save: Save, tmp_path: Path, name: str, kind: str
) -> None:
    folder = save(name, dtype="F32", wide=True)
    float_file, path = tmp_path / "float.gguf", tmp_path / "out.gguf"
    gemmule.convert(folder, float_file, type="F32")
    gemmule.convert(folder, path, type=kind)
    ids = _ids(folder, N_LONG)
    expected = _logits(_load(folder), ids)
    of_weights = _kl(expected, _logits(_dequantized(folder, float_file, path), ids))
    found = _kl(expected, _ours(path, ids))
    print(f"{name} {kind}: KL of the weights {of_weights:.5f}, of gemmule {found:.5f}")
    assert found <= _BUDGET[kind] * of_weights


# -- llama.cpp --


@pytest.fixture
def bundle(save: Save, tmp_path: Path) -> Path:
    """The tiny 12B with its media embedders and its drafter in one BF16 file. Its audio frames have the true
    640 samples, which llama.cpp takes for granted.
    """
    folder = folders.write_folder(tmp_path / "12b", "12b")
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["audio_embed_dim"] = 640
    (folder / "config.json").write_text(json.dumps(config))
    entries = {}
    for name, shape in folders.tensors("12b"):
        size = (shape[0], 640) if "embed_audio" in name else shape
        entries[name] = ("BF16", folders.round_to(folders.values(name, size, gemma3=False), "BF16"))
    folders.write_weights(folder, entries)
    save("12b-assistant", folder="12b-assistant", dtype="BF16")
    path = tmp_path / "one.gguf"
    report = gemmule.convert(folder, path, type="BF16")
    assert list(report.sections) == ["mmproj", "drafter"]
    return path


def _greedy_llama(path: Path, ids: np.ndarray, n: int) -> list[int]:
    engine = llamacpp.LlamaCpp(path, n_ctx=256, n_threads=1, kv_type="f32")
    row = engine.append(ids)
    out: list[int] = []
    for _ in range(n):
        out.append(int(row.argmax()))
        row = engine.append(np.array(out[-1:], np.int32))
    return out


def test_llama_cpp_writes_the_same_text_from_the_one_file(bundle: Path) -> None:
    tokenizer = gemmule.Tokenizer(_core.GgufFile(str(bundle)))
    engine = llamacpp.LlamaCpp(bundle, n_ctx=64, n_threads=1)
    for prompt in (
        "Hello the user,",
        "that is the system\n\n",
        "<|turn>user\nhelp me<turn|>\n<|turn>model\n",
    ):
        ids = np.array(tokenizer.encode(prompt), np.int32)
        assert engine.tokenize(prompt, special=True, bos=True).tolist() == ids.tolist()
        assert _greedy_llama(bundle, ids, 32) == _greedy(bundle, ids, 32)


@pytest.mark.parametrize("name", TEXT_VARIANTS)
def test_llama_cpp_computes_the_same_logits(save: Save, tmp_path: Path, name: str) -> None:
    """llama.cpp rounds activations to f16 in places: 1e-3 per position here, more where that makes a router
    of the mixture choose another expert; a wrong tensor or key would change every position.
    """
    folder = save(name, dtype="F32")
    path = tmp_path / "out.gguf"
    gemmule.convert(folder, path, type="F32")
    ids = _ids(folder, 48)
    engine = llamacpp.LlamaCpp(path, n_ctx=256, n_threads=1, kv_type="f32")
    found, ours = engine.append(ids, all_logits=True), _ours(path, ids)
    errors = np.abs(ours - found).max(axis=1) / np.abs(found).max(axis=1)
    assert np.median(errors) < 4e-3
    assert (ours.argmax(axis=1) == found.argmax(axis=1)).mean() > 0.9


class _Raw:
    """llama.cpp's functions for parts that are not text models."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("xllamacpp.xllamacpp")
        assert spec is not None
        assert spec.origin is not None
        self.lib = ctypes.CDLL(spec.origin)
        block = llamacpp._Block
        self.lib.mtmd_context_params_default.restype = block
        self.lib.mtmd_init_from_file.restype = ctypes.c_void_p
        self.lib.mtmd_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p, block]
        self.lib.mtmd_support_vision.argtypes = self.lib.mtmd_support_audio.argtypes = [ctypes.c_void_p]
        self.lib.mtmd_support_vision.restype = self.lib.mtmd_support_audio.restype = ctypes.c_bool
        self.lib.llama_model_n_embd.argtypes = [ctypes.c_void_p]
        self.lib.llama_model_n_params.argtypes = [ctypes.c_void_p]
        self.lib.llama_model_n_params.restype = ctypes.c_uint64


def test_llama_cpp_opens_the_split_files(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    files = gemmule.split(bundle, tmp_path / "parts")
    kinds = {str(_core.GgufFile(str(file)).get("general.architecture")): Path(file) for file in files}
    assert set(kinds) == {"gemma4", "clip", "gemma4-assistant"}
    text = llamacpp.LlamaCpp(kinds["gemma4"], n_ctx=64, n_threads=1)
    raw = _Raw()
    params = raw.lib.mtmd_context_params_default()
    context = raw.lib.mtmd_init_from_file(str(kinds["clip"]).encode(), text._model, params)
    assert context
    assert raw.lib.mtmd_support_vision(context)
    assert raw.lib.mtmd_support_audio(context)
    model_params = raw.lib.llama_model_default_params
    model_params.restype = llamacpp._Block
    load = raw.lib.llama_model_load_from_file
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p, llamacpp._Block]
    drafter = load(str(kinds["gemma4-assistant"]).encode(), model_params())
    assert drafter
    assert raw.lib.llama_model_n_params(drafter) > 0
    assert raw.lib.llama_model_n_embd(drafter) == 24
    ids = _ids(bundle.parent / "12b", 12)
    assert _greedy_llama(kinds["gemma4"], ids, 16) == _greedy(bundle, ids, 16)


_SERVER = """
import json, sys, xllamacpp
text, drafter, mmproj = sys.argv[1:4]
params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = text, mmproj
if drafter:
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
    params.speculative.draft.mparams.path = drafter
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, 0
params.cpuparams.n_threads = 1
prompt = {"prompt": "Hello the user, that", "n_predict": 40, "temperature": 0, "ignore_eos": True}
print("ANSWER " + json.dumps(xllamacpp.Server(params).handle_completions(prompt)))
"""


def _serve(text: Path, drafter: Path | str = "", mmproj: Path | str = "") -> dict[str, Any]:
    """One greedy completion of xllamacpp's server, in a process of its own."""
    command = [sys.executable, "-c", _SERVER, str(text), str(drafter), str(mmproj)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-2000:]
    answer = json.loads(lines[-1].removeprefix("ANSWER "))
    return dict(json.loads(answer) if isinstance(answer, str) else answer)


def test_llama_cpp_takes_a_drafter_with_clusters(save: Save, tmp_path: Path) -> None:
    """It knows nothing of them and reads the whole head."""
    model = save("e2b")
    save("e2b-assistant")
    gemmule.convert(model, tmp_path / "both.gguf", type="F16")
    text, _, drafter = gemmule.split(tmp_path / "both.gguf", tmp_path / "parts")
    assert "gemmule.drafter.clusters" in set(_core.GgufFile(str(drafter)).keys())
    together = _serve(Path(text), Path(drafter))
    assert together["timings"]["draft_n"] > 0
    assert together["choices"][0]["text"] == _serve(Path(text))["choices"][0]["text"]


def test_llama_cpp_serves_the_split_files_together(bundle: Path, tmp_path: Path) -> None:
    """Text, media and drafter at once: the drafter proposes tokens, the text is that of the one file."""
    (tmp_path / "parts").mkdir()
    text, mmproj, drafter = gemmule.split(bundle, tmp_path / "parts")
    alone = _serve(bundle)
    together = _serve(Path(text), Path(drafter), Path(mmproj))
    assert together["timings"]["draft_n"] > 0
    assert together["choices"][0]["text"] == alone["choices"][0]["text"]
