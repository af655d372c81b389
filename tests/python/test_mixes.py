"""The type of every tensor of every mix, against llama.cpp's quantizer and the known sizes of real files."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from gemmule._convert import mixes
from gemmule._convert.image import ArrayRows, Image, Kv, TensorSpec


def _spec(name: str, *shape: int, dtype: str = "BF16", keep: str | None = None) -> TensorSpec:
    n_rows = int(np.prod(shape[1:], dtype=np.int64))
    rows = ArrayRows(name, n_rows, shape[0], lambda: np.zeros(0, np.float32), dtype)
    return TensorSpec(name, shape, rows, keep)


@dataclass(frozen=True)
class _Shape:
    """What decides the tensors of a text model; `wide_from` is the first layer with twice the d_ff."""

    arch: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv: int
    n_kv_global: int = 0
    head_dim: int = 256
    head_dim_global: int = 512
    n_vocab: int = 262144
    every: int = 6
    k_is_v: bool = True
    ple: int = 0
    n_experts: int = 0
    d_expert: int = 0
    untied: bool = False
    wide_from: int = 1000


def _layer(s: _Shape, i: int) -> list[TensorSpec]:
    four = s.arch == "gemma4"
    is_global = four and ((i + 1) % s.every == 0 or i == s.n_layers - 1)
    head = s.head_dim_global if is_global else s.head_dim
    n_kv = s.n_kv_global if is_global else s.n_kv
    d_ff = s.d_ff * (2 if i >= s.wide_from else 1)
    matrices = [
        ("attn_q", s.d_model, s.n_heads * head),
        ("attn_k", s.d_model, n_kv * head),
        ("attn_output", s.n_heads * head, s.d_model),
        ("ffn_gate", s.d_model, d_ff),
        ("ffn_up", s.d_model, d_ff),
        ("ffn_down", d_ff, s.d_model),
    ]
    if not (is_global and s.k_is_v):
        matrices.append(("attn_v", s.d_model, n_kv * head))
    vectors = [("attn_q_norm", head), ("attn_k_norm", head)]
    vectors += [(n, s.d_model) for n in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")]
    if four:
        vectors.append(("layer_output_scale", 1))
    if s.ple:
        matrices += [("inp_gate", s.d_model, s.ple), ("proj", s.ple, s.d_model)]
        vectors.append(("post_norm", s.d_model))
    layer = [_spec(f"blk.{i}.{name}.weight", *shape) for name, *shape in matrices]
    layer += [_spec(f"blk.{i}.{name}.weight", size, dtype="F32") for name, size in vectors]
    if s.n_experts:
        gate_up, down = (s.d_model, 2 * s.d_expert), (s.d_expert, s.d_model)
        layer += [
            _spec(f"blk.{i}.ffn_gate_inp.weight", s.d_model, s.n_experts, dtype="F32"),
            _spec(f"blk.{i}.ffn_gate_inp.scale", s.d_model, dtype="F32"),
            _spec(f"blk.{i}.ffn_gate_up_exps.weight", *gate_up, s.n_experts),
            _spec(f"blk.{i}.ffn_down_exps.weight", *down, s.n_experts),
            _spec(f"blk.{i}.ffn_down_exps.scale", s.n_experts, dtype="F32"),
        ]
        norms = ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        layer += [_spec(f"blk.{i}.{name}.weight", s.d_model, dtype="F32") for name in norms]
    return layer


def _image(s: _Shape) -> Image:
    metadata = [
        Kv("general.architecture", "string", s.arch),
        Kv(f"{s.arch}.block_count", "u32", s.n_layers),
        Kv(f"{s.arch}.attention.head_count", "u32", s.n_heads),
    ]
    key = f"{s.arch}.attention.head_count_kv"
    if s.arch == "gemma4":
        kv = [s.n_kv_global if (i + 1) % s.every == 0 else s.n_kv for i in range(s.n_layers)]
        metadata.append(Kv(key, "array[i32]", kv))
    else:
        metadata.append(Kv(key, "u32", s.n_kv))
    if s.n_experts:
        metadata.append(Kv(f"{s.arch}.expert_count", "u32", s.n_experts))
    tensors = [_spec("token_embd.weight", s.d_model, s.n_vocab), _spec("output_norm.weight", s.d_model)]
    if s.arch == "gemma4":
        tensors.append(_spec("rope_freqs.weight", s.head_dim_global // 2, dtype="F32"))
    if s.untied:
        tensors.append(_spec("output.weight", s.d_model, s.n_vocab))
    if s.ple:
        width = s.ple * s.n_layers
        tensors += [
            _spec("per_layer_token_embd.weight", width, s.n_vocab),
            _spec("per_layer_model_proj.weight", s.d_model, width, keep="BF16"),
            _spec("per_layer_proj_norm.weight", s.ple, dtype="F32"),
        ]
    for i in range(s.n_layers):
        tensors += _layer(s, i)
    return Image(tuple(metadata), tuple(tensors))


_SHAPES = {
    "12b": _Shape("gemma4", 48, 3840, 15360, 16, 8, 1),
    "31b": _Shape("gemma4", 60, 5376, 21504, 32, 16, 4),
    "26b": _Shape("gemma4", 30, 2816, 2112, 16, 8, 2, n_experts=128, d_expert=704),
    "e2b": _Shape("gemma4", 35, 1536, 6144, 8, 1, 1, every=5, k_is_v=False, ple=256, wide_from=15),
    "e4b": _Shape("gemma4", 42, 2560, 10240, 8, 2, 2, k_is_v=False, ple=256),
    "e2b-untied": _Shape(
        "gemma4", 35, 1536, 6144, 8, 1, 1, every=5, k_is_v=False, ple=256, wide_from=15, untied=True
    ),
    "rows-of-32": _Shape("gemma4", 13, 96, 160, 4, 2, 1, 32, 64, 512),
    "rows-of-16": _Shape("gemma4", 9, 80, 48, 4, 2, 1, 16, 48, 512, every=3, k_is_v=False, ple=24),
    "8-experts": _Shape("gemma4", 17, 256, 512, 8, 2, 1, n_vocab=512, n_experts=8, d_expert=256),
    "4-experts": _Shape("gemma4", 11, 288, 96, 8, 2, 1, n_vocab=512, n_experts=4, d_expert=80),
    "270m": _Shape("gemma3", 18, 640, 2048, 4, 1),
    "270m-untied": _Shape("gemma3", 18, 640, 2048, 4, 1, untied=True),
    "1b": _Shape("gemma3", 26, 1152, 6912, 4, 1),
    "4b": _Shape("gemma3", 34, 2560, 10240, 8, 4),
    "27b": _Shape("gemma3", 62, 5376, 21504, 32, 16, head_dim=128),
}

# The first 16 digits of SHA-256 over the lines "mix importance tensor type" that `llama-quantize --dry-run`
# of llama.cpp (October 2026) gives for a file of each shape: all mixes without and with an importance matrix.
_PEER_DIGESTS: dict[str, str] = {
    "12b": "15070215b23670af",
    "31b": "d7c18dae1194dbe1",
    "26b": "7f11cba3af92fdd6",
    "e2b": "481cb700f94acceb",
    "e4b": "26a14915fd1ef6d3",
    "e2b-untied": "73303cf6bb6422c8",
    "rows-of-32": "657cfe65811892c3",
    "rows-of-16": "1308b62354871d70",
    "8-experts": "69ef4e28f08fd171",
    "4-experts": "43d2ccac7cf9cbb0",
    "270m": "16dfbaf0ae1c0247",
    "270m-untied": "63710a04fd4b7bbd",
    "1b": "f6ab36b952957b17",
    "4b": "8a2c0ca8ee0de7de",
    "27b": "7340c270cedd3a21",
}


@pytest.mark.parametrize("name", _SHAPES)
def test_types_equal_llama_quantize(name: str) -> None:
    image = _image(_SHAPES[name])
    digest = hashlib.sha256()
    for mix in mixes.TYPES:
        for has_importance in (False, True):
            types = mixes.assign_types(image, mix, has_importance=has_importance)
            for tensor in sorted(types):
                digest.update(f"{mix} {int(has_importance)} {tensor} {types[tensor]}\n".encode())
    assert digest.hexdigest()[:16] == _PEER_DIGESTS[name]


@pytest.mark.parametrize(
    ("name", "mix", "size"),
    [
        ("12b", "Q4_K_M", 7_365_558_464),
        ("12b", "Q4_0", 6_960_054_464),
        ("12b", "Q8_0", 12_653_822_144),
        ("12b", "BF16", 23_816_241_344),
        ("31b", "BF16", 61_397_354_736),
        ("31b", "Q8_0", 32_619_841_776),
        ("31b", "Q4_K_M", 18_671_229_168),
        ("26b", "BF16", 50_489_312_376),
        ("26b", "Q8_0", 26_844_036_216),
        ("26b", "Q4_K_M", 16_780_192_888),
        ("e2b", "BF16", 9_295_485_068),
        ("e2b", "Q8_0", 4_951_677_068),
        ("e2b", "Q4_K_M", 3_412_060_300),
        ("e4b", "BF16", 15_037_270_184),
        ("e4b", "Q8_0", 8_015_415_464),
        ("e4b", "Q4_K_M", 5_319_465_128),
    ],
)
def test_sizes_of_the_family(name: str, mix: str, size: int) -> None:
    image = _image(_SHAPES[name])
    assert mixes.types_bytes(image, mixes.assign_types(image, mix)) == size


def test_census_of_the_12b() -> None:
    types = mixes.assign_types(_image(_SHAPES["12b"]), "Q4_K_M")
    assert Counter(types.values()) == {"F32": 338, "Q4_K": 284, "Q6_K": 45}


def test_types_of_the_real_270m(demo_model_path: object) -> None:
    from gemmule._core import GgufFile

    real = {name: kind for name, kind, *_ in GgufFile(str(demo_model_path)).tensors()}
    types = mixes.assign_types(_image(_SHAPES["270m"]), "Q4_K_M")
    assert Counter(types.values()) == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}
    assert types == real


def test_counts_follow_the_layers_not_the_file_order() -> None:
    image = _image(_SHAPES["12b"])
    shuffled = Image(image.metadata, tuple(reversed(image.tensors)))
    assert mixes.assign_types(shuffled, "Q4_K_M") == mixes.assign_types(image, "Q4_K_M")


def test_file_types_and_names() -> None:
    numbers = {mix: mixes.file_type(mix) for mix in mixes.TYPES}
    assert numbers == {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11,
        "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
        "BF16": 32,
    }  # fmt: skip
    assert mixes.file_type("q4_k_m") == 15
    for bad in ("Q4_K", "", "IQ2_XS", 4):
        with pytest.raises(ValueError, match="unknown type"):
            mixes.file_type(bad)  # type: ignore[arg-type]


def test_fixed_tensors_keep_their_type() -> None:
    image = _image(_SHAPES["e2b"])
    types = mixes.assign_types(image, "F16")
    assert types["per_layer_model_proj.weight"] == "BF16"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["output_norm.weight"] == "F32"  # a vector of a BF16 source
    assert types["blk.0.ffn_up.weight"] == "F16"


def test_overrides_first_match_wins_and_falls_back() -> None:
    image = _image(_SHAPES["270m"])
    plain = mixes.assign_types(image, "Q4_K_M")
    overrides = [(r"blk\.0\.attn_v", "q6_k"), (r"attn_v", "BF16"), (r"ffn_down", "Q2_K")]
    types = mixes.assign_types(image, "Q4_K_M", overrides=overrides)
    assert types["blk.0.attn_v.weight"] == "Q8_0"  # rows of 640 do not fill Q6_K blocks
    assert types["blk.1.attn_v.weight"] == "BF16"
    assert types["blk.5.ffn_down.weight"] == "Q2_K"
    untouched = {name for name in plain if "attn_v" not in name and "ffn_down" not in name}
    assert all(types[name] == plain[name] for name in untouched)


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        ("attn_(", "Q8_0", "not a regular expression"),
        ("attn_v", "Q4_K_M", "unknown tensor type 'Q4_K_M'"),
        ("attn_v", "", "unknown tensor type ''"),
        ("no_such", "Q8_0", "matches no tensor"),
        ("attn_norm", "Q8_0", "only tensors that always keep their type"),
    ],
)
def test_bad_overrides(pattern: str, kind: str, message: str) -> None:
    image = _image(_SHAPES["270m"])
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        mixes.assign_types(image, "Q4_K_M", overrides=[(pattern, kind)])


def test_bytes_of_unknown_or_misfit_types() -> None:
    spec = _spec("token_embd.weight", 640, 8)
    assert mixes.tensor_bytes(spec, "Q8_0") == 8 * 20 * 34
    assert mixes.tensor_bytes(spec, "I32") == 4 * 640 * 8
    with pytest.raises(ValueError, match="rows of 640 do not fill Q4_K"):
        mixes.tensor_bytes(spec, "Q4_K")
    with pytest.raises(ValueError, match="IQ2_XS are not supported"):
        mixes.tensor_bytes(spec, "IQ2_XS")
