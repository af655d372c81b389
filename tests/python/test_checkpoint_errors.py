"""Damaged and unsupported folders: each fails before anything is written, and names file, key or tensor."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint_helpers import edit_header, edit_json, edit_weights, tiny_folder
from gemmule import Error, FormatError, ModelNotFoundError, UnsupportedError
from gemmule._convert.checkpoint import load_checkpoint
from gemmule._convert.safetensors import open_weights

Change = Callable[[Path], Any]
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder.write_folder(tmp_path / "model", "12b-text")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_folder.write_folder(tmp_path / "model", "12b-text", shards=3)


def expect(folder: Path, kind: type[Error], *parts: str) -> None:
    """Loading fails with `kind`, in one line that holds every part."""
    with pytest.raises(kind) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# -- safetensors ---


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda folder: edit_header(folder / "model.safetensors", change)


def raw(change: Callable[[bytes], bytes]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


NORM = "model.norm.weight"


def duplicate_key(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    entry = json.dumps({NORM: json.loads(text)[NORM]})[1:-1].encode()
    text = text[:-1] + b", " + entry + b"}"
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


DAMAGE: list[tuple[str, Change, type[Error], str]] = [
    ("empty file", raw(lambda d: b""), FormatError, "0 bytes"),
    ("seven bytes", raw(lambda d: d[:7]), FormatError, "7 bytes"),
    ("cut in the header", raw(lambda d: d[:100]), FormatError, "header claims"),
    ("cut in the data", raw(lambda d: d[:-1]), FormatError, "download it again"),
    ("half of the data", raw(lambda d: d[: len(d) // 2]), FormatError, "download it again"),
    ("longer than its tensors", raw(lambda d: d + b"x"), FormatError, "1 bytes follow"),
    ("huge header length", raw(lambda d: b"\xff" * 8 + d[8:]), FormatError, "header claims"),
    ("header is no JSON", raw(lambda d: d[:8] + b"[" + d[9:]), FormatError, "(header)"),
    ("header is no UTF-8", raw(lambda d: d[:9] + b"\xff" + d[10:]), FormatError, "UTF-8"),
    ("name twice", raw(duplicate_key), FormatError, NORM),
    (
        "LFS pointer",
        raw(lambda d: b"version https://git-lfs.github.com/spec/v1\n"),
        FormatError,
        "git lfs pull",
    ),
    ("GGUF with a wrong name", raw(lambda d: b"GGUF\x03\0\0\0" + d), FormatError, "GGUF"),
    ("pickle with a wrong name", raw(lambda d: b"PK\x03\x04\0\0\0\0" + d), UnsupportedError, "pickled"),
    ("entry is a list", header(lambda h: h.update({NORM: []})), FormatError, NORM),
    ("entry without dtype", header(lambda h: h[NORM].pop("dtype")), FormatError, NORM),
    ("dtype of tomorrow", header(lambda h: h[NORM].update(dtype="F1")), UnsupportedError, "F1"),
    ("dtype is a number", header(lambda h: h[NORM].update(dtype=7)), UnsupportedError, NORM),
    ("negative size", header(lambda h: h[NORM].update(shape=[-40])), FormatError, NORM),
    ("shape is text", header(lambda h: h[NORM].update(shape="40")), FormatError, NORM),
    ("size is a float", header(lambda h: h[NORM].update(shape=[40.0])), FormatError, NORM),
    ("size is a bool", header(lambda h: h[NORM].update(shape=[True])), FormatError, NORM),
    ("product overflows", header(lambda h: h[NORM].update(shape=[1 << 40, 1 << 40])), FormatError, NORM),
    ("too many dimensions", header(lambda h: h[NORM].update(shape=[40] + [1] * 9)), FormatError, NORM),
    ("shape and bytes differ", header(lambda h: h[NORM].update(shape=[41])), FormatError, "needs 82 bytes"),
    ("offsets backwards", header(lambda h: h[NORM]["data_offsets"].reverse()), FormatError, NORM),
    ("three offsets", header(lambda h: h[NORM]["data_offsets"].append(1)), FormatError, NORM),
    ("negative offset", header(lambda h: h[NORM].update(data_offsets=[-80, 0])), FormatError, NORM),
    ("offsets overlap", header(lambda h: h[NORM].update(data_offsets=[0, 80])), FormatError, "overlaps"),
    (
        "tensor outside",
        header(lambda h: h[NORM].update(data_offsets=[1 << 50, (1 << 50) + 80])),
        FormatError,
        NORM,
    ),
    ("gap", header(lambda h: h.pop("model.layers.3.mlp.up_proj.weight")), FormatError, "gap"),
    ("no tensors", raw(lambda d: b"\x02" + b"\0" * 7 + b"{}"), FormatError, "no tensors"),
]


@pytest.mark.parametrize(
    ("change", "kind", "part"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE]
)
def test_damaged_safetensors(folder: Path, change: Change, kind: type[Error], part: str) -> None:
    change(folder)
    expect(folder, kind, "model.safetensors", part)


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    expect(sharded, ModelNotFoundError, SHARD)
    (sharded / INDEX).unlink()
    expect(sharded, ModelNotFoundError, SHARD)


def test_truncated_shard_is_named(sharded: Path) -> None:
    with (sharded / SHARD).open("r+b") as file:
        file.truncate((sharded / SHARD).stat().st_size - 100)
    expect(sharded, FormatError, SHARD)


def test_shards_without_an_index_load(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert len(load_checkpoint(sharded).text.tensors) == 85


def test_tensor_of_two_shards_is_refused(sharded: Path) -> None:
    other = tiny_folder.values(NORM, (40,), gemma3=False)
    for shard in (SHARD, "model-00001-of-00003.safetensors"):
        edit_weights(sharded / shard, lambda e: e.update({NORM: ("F32", other)}))
    expect(sharded, FormatError, NORM)
    (sharded / INDEX).unlink()
    expect(sharded, FormatError, NORM, "is also in")


def test_index_and_shards_must_agree(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({"model.extra.weight": SHARD}))
    expect(sharded, FormatError, SHARD, "model.extra.weight", "not in this shard")
    edit_json(sharded / INDEX, lambda i: [i["weight_map"].pop(k) for k in ("model.extra.weight", NORM)])
    expect(sharded, FormatError, NORM, "does not list")
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({NORM: SHARD}))
    expect(sharded, FormatError, NORM, f"places in {SHARD}")


@pytest.mark.parametrize(
    "name",
    [
        "../model/x.safetensors",
        "/etc/passwd",
        "..",
        "a/b.safetensors",
        "a\\b",
        "C:x",
        "",
        "x\0y",
        "\ud800",
        7,
    ],
)
def test_index_cannot_leave_the_folder(sharded: Path, name: object) -> None:
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({NORM: name}))
    expect(sharded, FormatError, INDEX, "not a file name in this folder")


@pytest.mark.parametrize("value", [None, [], {}, "x"])
def test_index_without_a_map(sharded: Path, value: object) -> None:
    edit_json(sharded / INDEX, lambda i: i.update(weight_map=value))
    expect(sharded, FormatError, INDEX, "weight_map")


def test_shards_of_two_checkpoints(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / SHARD).rename(sharded / "model-00002-of-00004.safetensors")
    expect(sharded, FormatError, "two checkpoints")


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("pytorch_model.bin", UnsupportedError, "safe_serialization"),
        ("adapter_model.safetensors", UnsupportedError, "merge it"),
        ("model-q4.gguf", UnsupportedError, "give the GGUF file"),
        ("notes.txt", ModelNotFoundError, "no model.safetensors"),
    ],
)
def test_folder_without_safetensors(folder: Path, name: str, kind: type[Error], part: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    expect(folder, kind, part)


def test_folder_that_is_none(folder: Path) -> None:
    expect(folder / "nowhere", ModelNotFoundError, "no such folder")
    (folder / "config.json").unlink()
    expect(folder, ModelNotFoundError, "config.json")


def test_file_cut_after_it_was_indexed(folder: Path) -> None:
    weights = open_weights(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)
    last = max(weights.values(), key=lambda tensor: tensor.offset)
    with pytest.raises(FormatError, match=rf"ends at byte .* inside {last.name}"):
        last.to_float32()


def test_short_reads_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_weights(folder)
    tensor = weights["model.layers.0.mlp.up_proj.weight"]
    whole = tensor.to_float32()
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:777]], at))
    assert np.array_equal(tensor.to_float32(), whole)


def test_read_error_tells_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    tensor = open_weights(folder)[NORM]
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        tensor.to_float32()
    assert NORM in caught.value.__notes__[0]
    assert "model.safetensors" in caught.value.__notes__[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_are_closed(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    bundles = [load_checkpoint(folder) for _ in range(3)]
    del bundles
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


# -- config ---


CONFIG: list[tuple[str, Any, type[Error], str]] = [
    ("model_type", "llama", UnsupportedError, "model_type is 'llama'"),
    ("model_type", None, UnsupportedError, "model_type"),
    ("architectures", ["Gemma4ForSequenceClassification"], UnsupportedError, "architectures"),
    ("architectures", "x", FormatError, "architectures"),
    ("quantization_config", {"quant_method": "bitsandbytes"}, UnsupportedError, "quantization_config"),
    ("hidden_activation", "relu", UnsupportedError, "hidden_activation is 'relu'"),
    ("attention_bias", True, UnsupportedError, "attention_bias"),
    ("attn_logit_softcapping", 50.0, UnsupportedError, "attn_logit_softcapping"),
    ("use_bidirectional_attention", "all", UnsupportedError, "use_bidirectional_attention"),
    ("num_hidden_layers", 0, FormatError, "num_hidden_layers"),
    ("num_hidden_layers", "6", FormatError, "num_hidden_layers"),
    ("num_hidden_layers", 7, FormatError, "layer_types"),
    ("num_hidden_layers", 10**9, FormatError, "num_hidden_layers"),
    ("hidden_size", -1, FormatError, "hidden_size"),
    ("hidden_size", 40.5, FormatError, "hidden_size"),
    ("hidden_size", True, FormatError, "hidden_size"),
    ("hidden_size", 44, FormatError, "the config asks for"),
    ("vocab_size", None, FormatError, "vocab_size is missing"),
    ("vocab_size", 600, FormatError, "640 tokens"),
    ("num_key_value_heads", 3, FormatError, "3 key heads"),
    ("head_dim", 25, FormatError, "head dim 25"),
    ("rms_norm_eps", 0, FormatError, "rms_norm_eps"),
    ("rms_norm_eps", "1e-6", FormatError, "rms_norm_eps"),
    ("final_logit_softcapping", -30.0, FormatError, "final_logit_softcapping"),
    ("layer_types", ["full_attention"] * 5 + ["linear_attention"], UnsupportedError, "linear_attention"),
    ("layer_types", "sliding", FormatError, "layer_types"),
    ("tie_word_embeddings", "yes", FormatError, "tie_word_embeddings"),
    ("num_kv_shared_layers", 6, UnsupportedError, "num_kv_shared_layers"),
    ("per_layer_config", {"9": {"head_dim": 4}}, FormatError, "per_layer_config.9"),
    ("per_layer_config", {"2": {"hidden_size": 4}}, UnsupportedError, "per_layer_config.2.hidden_size"),
    ("per_layer_config", {"2": {"head_dim": 48}}, FormatError, "head_dim differs between full layers"),
    ("per_layer_config", {"0": {"head_dim": 48}}, FormatError, "head_dim differs between sliding layers"),
    ("per_layer_config", [1], FormatError, "per_layer_config"),
    ("rope_parameters", {"sliding_attention": {"rope_type": "yarn"}}, UnsupportedError, "rope_type"),
    ("rope_parameters", {"full_attention": {"rope_type": "default"}}, UnsupportedError, "rope_type"),
    (
        "rope_parameters",
        {"full_attention": {"rope_type": "proportional", "factor": 2.0}},
        UnsupportedError,
        "full_attention.factor",
    ),
    (
        "rope_parameters",
        {"sliding_attention": {}, "full_attention": {"rope_type": "proportional", "mscale": 2.0}},
        UnsupportedError,
        "full_attention.mscale",
    ),
    ("rope_parameters", {"sliding_attention": {}}, FormatError, "full_attention is missing"),
    ("rope_parameters", {"rope_theta": 1e4}, UnsupportedError, "rope_parameters.rope_theta"),
    ("altup_num_inputs", 4, UnsupportedError, "altup_num_inputs"),
    ("boi_token_id", -5, FormatError, "boi_token_id"),
]


@pytest.mark.parametrize(("key", "value", "kind", "part"), CONFIG)
def test_unsupported_config_values(folder: Path, key: str, value: Any, kind: type[Error], part: str) -> None:
    edit_json(folder / "config.json", lambda c: c.update({key: value}))
    expect(folder, kind, part)


@pytest.mark.parametrize(
    ("variant", "path", "value", "kind", "part"),
    [
        ("12b", "text_config", None, FormatError, "text_config is missing"),
        ("12b", "text_config", [], FormatError, "text_config"),
        ("12b", "text_config.model_type", "gemma3_text", UnsupportedError, "text_config.model_type"),
        ("12b", "text_config.tie_word_embeddings", False, FormatError, "tie_word_embeddings differs"),
        ("12b", "text_config.quantization_config", {"a": 1}, UnsupportedError, "text_config.quantization"),
        ("12b", "vision_config.rms_norm_eps", 1e-5, UnsupportedError, "vision_config.rms_norm_eps"),
        ("12b", "vision_config.model_patch_size", 16, UnsupportedError, "model_patch_size"),
        ("12b", "vision_config.mm_posemb_size", 21, FormatError, "pos_embedding"),
        ("12b", "audio_config.hidden_size", 65, UnsupportedError, "audio_config.hidden_size"),
        ("12b", "eoa_token_id", 3, FormatError, "eoa_token_id and eoa_token_index"),
        ("e2b", "vision_config.num_key_value_heads", 1, UnsupportedError, "num_key_value_heads"),
        ("e2b", "vision_config.head_dim", 8, UnsupportedError, "head_dim"),
        ("e2b", "vision_config.rope_parameters.rope_theta", 50.0, UnsupportedError, "rope_theta"),
        ("e2b", "audio_config.attention_logit_cap", 20.0, UnsupportedError, "attention_logit_cap"),
        ("e2b", "audio_config.subsampling_conv_channels", [1], FormatError, "subsampling_conv_channels"),
        ("e2b", "text_config.vocab_size_per_layer_input", 4, UnsupportedError, "vocab_size_per_layer_input"),
        ("e2b", "text_config.num_kv_shared_layers", 5, UnsupportedError, "num_kv_shared_layers"),
        ("26b", "text_config.top_k_experts", 9, FormatError, "top_k_experts"),
        ("26b", "text_config.num_experts", None, FormatError, "num_experts is missing"),
        ("gemma3", "text_config.query_pre_attn_scalar", 168, UnsupportedError, "query_pre_attn_scalar"),
        ("gemma3", "text_config.sliding_window_pattern", 5, None, ""),
        ("gemma3-text", "layer_types", ["full_attention"] * 7, UnsupportedError, "layer_types"),
        ("gemma3-text", "use_bidirectional_attention", True, UnsupportedError, "embedding models"),
        ("gemma3-text", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}, UnsupportedError, "rope_type"),
    ],
)
def test_unsupported_values_of_other_variants(
    variant: str, path: str, value: Any, kind: type[Error] | None, part: str, tmp_path: Path
) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", variant)

    def change(config: dict[str, Any]) -> None:
        *parents, key = path.split(".")
        for parent in parents:
            config = config[parent]
        config[key] = value

    edit_json(folder / "config.json", change)
    if kind is None:
        load_checkpoint(folder)
    else:
        expect(folder, kind, part)


def test_unknown_keys_warn_outside_the_text_config(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", "12b")
    edit_json(folder / "config.json", lambda c: c.update(new_idea=3))
    edit_json(folder / "config.json", lambda c: c["vision_config"].update(new_vision_idea=1))
    edit_json(folder / "config.json", lambda c: c["text_config"].update(new_text_idea=0, other=None))
    warnings = " ".join(load_checkpoint(folder).warnings)
    for name in ("new_idea", "vision_config.new_vision_idea", "text_config.new_text_idea"):
        assert name in warnings
    assert "other" not in warnings


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, "null", '{"a": 1}'],
)
def test_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    expect(folder, Error, "config.json")


def test_config_of_bad_bytes_and_size(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b'{"model_type": "\xff"}')
    expect(folder, FormatError, "config.json", "UTF-8")
    path.write_bytes(b" " * (17 << 20))
    expect(folder, FormatError, "config.json", "larger than 16 MB")


# -- tensors ---


def weights(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda folder: edit_weights(folder / "model.safetensors", change)


@pytest.mark.parametrize(
    ("change", "kind", "part"),
    [
        (lambda e: e.pop(NORM), FormatError, f"the tensor {NORM} is missing"),
        (
            lambda e: [e.pop(k) for k in list(e) if ".mlp." in k],
            FormatError,
            "mlp.gate_proj.weight is missing (and 17",
        ),
        (lambda e: e.pop("model.embed_tokens.weight"), FormatError, "embed_tokens"),
        (lambda e: e.update({"model.extra.weight": e[NORM]}), UnsupportedError, "model.extra.weight"),
        (lambda e: e.update({"model.layers.6.mlp.up_proj.weight": e[NORM]}), UnsupportedError, "layers.6"),
        (
            lambda e: e.update({"model.layers.0.self_attn.q_proj.bias": e[NORM]}),
            UnsupportedError,
            "q_proj.bias",
        ),
        (lambda e: e.update({"model.layers.2.self_attn.v_proj.weight": e[NORM]}), UnsupportedError, "v_proj"),
        (
            lambda e: e.update({NORM: ("F32", np.zeros(41, np.float32))}),
            FormatError,
            f"{NORM}: the shape is [41]",
        ),
        (lambda e: e.update({NORM: ("F32", np.zeros((1, 40), np.float32))}), FormatError, "[1, 40]"),
        (lambda e: e.update({NORM: ("I64", np.zeros(40, np.int64))}), UnsupportedError, "the dtype is I64"),
    ],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, Any]], Any], kind: type[Error], part: str
) -> None:
    weights(change)(folder)
    expect(folder, kind, "model", part)


def test_float8_weights_are_refused_by_name(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def change(head: dict[str, Any]) -> None:
        head[name].update(dtype="F8_E4M3", shape=[80, 80])

    edit_header(folder / "model.safetensors", change)
    expect(folder, UnsupportedError, name, "F8_E4M3")
