"""A Hugging Face folder becomes a Bundle: names, shapes, numbers, metadata, drafter, and what is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint_helpers import edit_json, edit_weights, read_tensor, tensor, tiny_folder
from gemmule import FormatError, UnsupportedError
from gemmule._convert.checkpoint import load_checkpoint
from gemmule._convert.hf_config import parse_config, read_config
from gemmule._convert.image import Image
from gemmule._convert.names import audio_entries, text_entries, vision_entries
from gemmule._convert.safetensors import open_weights

MODELS = [name for name in tiny_folder.VARIANTS if not name.endswith("assistant")]


def source_values(name: str, variant: str) -> np.ndarray:
    """The numbers a BF16 folder holds for one tensor, as float32."""
    shape = dict(tiny_folder.tensors(variant))[name]
    gemma3 = tiny_folder.VARIANTS[variant].is_gemma3
    stored = tiny_folder.round_to(tiny_folder.values(name, shape, gemma3=gemma3), "BF16")
    return (stored.astype(np.uint32) << 16).view(np.float32)


def keys(image: Image) -> dict[str, Any]:
    return {kv.key: kv.value for kv in image.metadata}


@pytest.mark.parametrize("variant", MODELS)
def test_every_variant_loads(variant: str, tmp_path: Path) -> None:
    bundle = load_checkpoint(tiny_folder.write_folder(tmp_path / variant, variant))
    assert bundle.source_dtype == "BF16"
    names = [spec.name for spec in bundle.text.tensors]
    assert len(set(names)) == len(names)
    for image in (bundle.text, *bundle.sections.values()):
        assert len({kv.key for kv in image.metadata}) == len(image.metadata)
        for spec in image.tensors:
            assert spec.rows.n_cols == spec.shape[0]
            assert spec.rows.n_rows * spec.rows.n_cols == spec.n_elements
            assert np.isfinite(read_tensor(spec)).all()


@pytest.mark.parametrize("variant", ["12b", "e2b", "26b", "31b", "12b-text"])
def test_both_config_dialects_say_the_same(variant: str, tmp_path: Path) -> None:
    new = read_config(tiny_folder.write_folder(tmp_path / "new", variant))
    old = read_config(tiny_folder.write_folder(tmp_path / "old", variant, old_dialect=True))
    assert new.text == old.text
    assert "per_layer_config" in str(new.raw)
    assert "per_layer_config" not in str(old.raw)


def test_numbers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    text = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "26b")).text
    at = "model.language_model.layers.1."
    for gguf, hf in (
        ("token_embd.weight", "model.language_model.embed_tokens.weight"),
        ("blk.1.attn_q.weight", at + "self_attn.q_proj.weight"),
        ("blk.1.ffn_gate_up_exps.weight", at + "experts.gate_up_proj"),
        ("blk.1.ffn_down_exps.weight", at + "experts.down_proj"),
        ("blk.1.ffn_down_exps.scale", at + "router.per_expert_scale"),
        ("blk.1.layer_output_scale.weight", at + "layer_scalar"),
        ("output_norm.weight", "model.language_model.norm.weight"),
    ):
        expected = source_values(hf, "26b")
        spec = tensor(text, gguf)
        assert spec.shape == tuple(reversed(expected.shape))
        assert np.array_equal(read_tensor(spec), expected.reshape(-1))


def test_gemma3_norms_are_stored_plus_one(tmp_path: Path) -> None:
    text = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "gemma3-text")).text
    for gguf, hf in (("blk.2.attn_k_norm", "layers.2.self_attn.k_norm"), ("output_norm", "norm")):
        expected = source_values(f"model.{hf}.weight", "gemma3-text") + np.float32(1)
        assert np.array_equal(read_tensor(tensor(text, gguf + ".weight")), expected)


def test_rope_factors_stop_the_unrotated_pairs(tmp_path: Path) -> None:
    text = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "12b-text")).text
    factors = read_tensor(tensor(text, "rope_freqs.weight"))
    assert factors.tolist() == [1.0] * 6 + [np.float32(1e30)] * 18


def test_values_are_keys_only_where_the_config_says_so(tmp_path: Path) -> None:
    text = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "12b-text")).text
    names = {spec.name for spec in text.tensors}
    assert [i for i in range(6) if f"blk.{i}.attn_v.weight" not in names] == [2, 5]


def test_text_metadata_of_the_12b(tmp_path: Path) -> None:
    text = load_checkpoint(tiny_folder.write_folder(tmp_path / "tiny-it", "12b")).text
    got = keys(text)
    assert text.architecture == "gemma4"
    assert got["general.name"] == "tiny-it"
    assert got["general.license"] == "apache-2.0"
    assert got["general.base_model.0.repo_url"] == "https://huggingface.co/tiny/base-model"
    assert got["general.tags"] == ["tiny", "random", "image-text-to-text"]
    assert got["general.languages"] == ["en", "de"]
    assert (got["general.sampling.top_k"], got["general.sampling.temp"]) == (64, 1.0)
    assert got["gemma4.attention.head_count_kv"].tolist() == [2, 2, 1, 2, 2, 1]
    assert got["gemma4.attention.sliding_window_pattern"] == [True, True, False, True, True, False]
    assert (got["gemma4.attention.key_length"], got["gemma4.attention.key_length_swa"]) == (48, 24)
    assert got["gemma4.final_logit_softcapping"] == 30.0
    assert got["gemma4.attention.shared_kv_layers"] == 0
    assert got["gemma4.embedding_length_per_layer_input"] == 0


def test_e2b_has_wide_shared_layers_without_keys(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", "e2b")
    got = keys(load_checkpoint(folder).text)
    assert got["gemma4.feed_forward_length"].tolist() == [80] * 3 + [160] * 4
    assert got["gemma4.attention.shared_kv_layers"] == 4
    assert got["gemma4.embedding_length_per_layer_input"] == 8


def test_unused_keys_of_shared_layers_are_kept(tmp_path: Path) -> None:
    """Official checkpoints hold them, and llama.cpp's files too."""
    folder = tiny_folder.write_folder(tmp_path / "m", "e2b")

    def add(entries: dict[str, Any]) -> None:
        for part in ("k_proj", "v_proj"):
            zeros = np.zeros((24, 40), np.uint16)
            entries[f"model.language_model.layers.4.self_attn.{part}.weight"] = ("BF16", zeros)
        entries["model.language_model.layers.4.self_attn.k_norm.weight"] = ("BF16", np.zeros(24, np.uint16))

    edit_weights(folder / "model.safetensors", add)
    names = {spec.name for spec in load_checkpoint(folder).text.tensors}
    assert {"blk.4.attn_k.weight", "blk.4.attn_v.weight", "blk.4.attn_k_norm.weight"} <= names
    assert "blk.5.attn_k.weight" not in names


def test_mmproj_of_the_12b_has_planes_and_split_positions(tmp_path: Path) -> None:
    image = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "12b")).sections["mmproj"]
    side = 12
    dense = source_values("model.vision_embedder.patch_dense.weight", "12b")
    planes = dense.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    assert np.array_equal(read_tensor(tensor(image, "v.patch_embd.weight")), planes.reshape(-1))
    norm = source_values("model.vision_embedder.patch_ln1.bias", "12b")
    expected = norm.reshape(side, side, 3).transpose(2, 0, 1)
    assert np.array_equal(read_tensor(tensor(image, "v.patch_norm.1.bias")), expected.reshape(-1))
    table = source_values("model.vision_embedder.pos_embedding", "12b")
    spec = tensor(image, "v.position_embd.weight")
    assert spec.shape == (40, 20, 2)
    assert np.array_equal(read_tensor(spec), table.transpose(1, 0, 2).reshape(-1))
    assert spec.keep == "F32"
    got = keys(image)
    assert got["clip.vision.projector_type"] == "gemma4uv"
    assert got["clip.audio.projector_type"] == "gemma4ua"
    assert got["gemmule.media.image.attention"] == "bidirectional"
    assert got["gemmule.media.audio.samples_per_token"] == 64
    assert got["gemmule.media.token.image_end"] == 11


def test_towers_of_the_e2b(tmp_path: Path) -> None:
    image = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "e2b")).sections["mmproj"]
    patch = source_values("model.vision_tower.patch_embedder.input_proj.weight", "e2b")
    spec = tensor(image, "v.patch_embd.weight")
    assert spec.shape == (4, 4, 3, 32)
    expected = patch.reshape(32, 4, 4, 3).transpose(0, 3, 1, 2)
    assert np.array_equal(read_tensor(spec), expected.reshape(-1))
    scale = source_values("model.audio_tower.layers.0.self_attn.per_dim_scale", "e2b").astype(np.float64)
    got = read_tensor(tensor(image, "a.blk.0.per_dim_scale.weight"))
    np.testing.assert_allclose(got, np.log1p(np.exp(scale)), rtol=1e-6)
    assert tensor(image, "a.blk.1.conv_dw.weight").shape == (5, 64)
    assert tensor(image, "v.blk.0.attn_q.input_min").shape == (1,)


def test_infinite_clip_limits_become_the_largest_number(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", "e4b", dtype="F32")
    name = "model.vision_tower.encoder.layers.0.mlp.up_proj.output_max"
    edit_weights(
        folder / "model.safetensors", lambda e: e.update({name: ("F32", np.full((), np.inf, np.float32))})
    )
    image = load_checkpoint(folder).sections["mmproj"]
    assert read_tensor(tensor(image, "v.blk.0.ffn_up.output_max")) == [np.finfo(np.float32).max]


@pytest.mark.parametrize(
    ("vision", "audio", "count"), [(True, False, 10), (False, True, 1), (False, False, 0)]
)
def test_parts_can_be_left_out(vision: bool, audio: bool, count: int, tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", "12b")
    sections = load_checkpoint(folder, vision=vision, audio=audio).sections
    assert ("mmproj" in sections) == (count > 0)
    if count:
        got = keys(sections["mmproj"])
        assert len(sections["mmproj"].tensors) == count
        assert got.get("clip.has_vision_encoder", False) is vision
        assert got.get("clip.has_audio_encoder", False) is audio


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_sharded_and_single_folders_are_the_same(dtype: str, tmp_path: Path) -> None:
    one = load_checkpoint(tiny_folder.write_folder(tmp_path / "one", "12b-text", dtype=dtype))
    many = load_checkpoint(tiny_folder.write_folder(tmp_path / "many", "12b-text", dtype=dtype, shards=3))
    assert one.source_dtype == many.source_dtype == dtype
    for a, b in zip(one.text.tensors, many.text.tensors, strict=True):
        assert (a.name, a.shape, a.keep) == (b.name, b.shape, b.keep)
        assert np.array_equal(read_tensor(a), read_tensor(b))


@pytest.mark.parametrize("variant", [*tiny_folder.VARIANTS])
def test_rows_fill_k_blocks_in_the_wide_option(variant: str, tmp_path: Path) -> None:
    config = parse_config(tiny_folder.config(variant, wide=True), tmp_path / "config.json")
    matrices = [entry for entry in text_entries(config.text, "", "") if not entry.keep]
    assert matrices
    assert all(entry.shape[-1] % 256 == 0 for entry in matrices)


# -- real sizes ---

# Layers, width, feed-forward, heads, key heads, global key heads, window, period of global layers.
SIZES = {
    "E2B": (35, 1536, 6144, 8, 1, None, 512, 5),
    "E4B": (42, 2560, 10240, 8, 2, None, 512, 6),
    "12B": (48, 3840, 15360, 16, 8, 1, 1024, 6),
    "26B": (30, 2816, 2112, 16, 8, 2, 1024, 6),
    "31B": (60, 5376, 21504, 32, 16, 4, 1024, 6),
}
EXTRAS: dict[str, dict[str, Any]] = {
    "E2B": {"num_kv_shared_layers": 20, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256},
    "E4B": {"num_kv_shared_layers": 18, "hidden_size_per_layer_input": 256},
    "26B": {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704},
}


def official_config(name: str) -> dict[str, Any]:
    n, width, d_ff, heads, kv, global_kv, window, period = SIZES[name]
    kinds = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n)]
    unified, small = name == "12B", name.startswith("E")
    text = {
        "model_type": "gemma4_unified_text" if unified else "gemma4_text",
        "vocab_size": 262144,
        "hidden_size": width,
        "intermediate_size": d_ff,
        "num_hidden_layers": n,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_global_key_value_heads": global_kv,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": window,
        "layer_types": kinds,
        "attention_k_eq_v": not small,
        "hidden_size_per_layer_input": 0,
        **EXTRAS.get(name, {}),
    }
    large = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    large |= {"num_key_value_heads": 16, "head_dim": 72, "standardize": True}
    vision = {"patch_size": 16} if unified else {"use_clipped_linears": True} if small else large
    audio = {"audio_embed_dim": 640} if unified else {"hidden_size": 1024} if small else None
    model_type = "gemma4_unified" if unified else "gemma4"
    return {"model_type": model_type, "text_config": text, "vision_config": vision, "audio_config": audio}


@pytest.mark.parametrize(
    ("name", "n_tensors", "n_text", "n_all"),
    [
        ("E2B", 601, 4_647_449_891, 5_123_178_051),
        ("E4B", 720, 7_518_069_034, 7_996_156_490),
        ("12B", 667, 11_907_350_320, 11_959_730_224),
        ("26B", 658, 25_233_141_790, None),
        ("31B", 833, 30_697_345_340, 31_273_088_876),
    ],
)
def test_official_sizes_add_up(name: str, n_tensors: int, n_text: int, n_all: int | None) -> None:
    """The sums the model pages state: parameters of the whole, and tensors of the text files."""
    config = parse_config(official_config(name), Path("config.json"))
    assert config.warnings == ()
    text = list(text_entries(config.text, "", ""))
    assert len(text) + 1 == n_tensors  # and the rotary factors
    assert sum(math.prod(entry.shape) for entry in text) == n_text
    assert config.vision is not None
    media = list(vision_entries(config.vision, config.text.d_model, ""))
    if config.audio is not None:
        media += audio_entries(config.audio, config.text.d_model, "")
    if n_all is not None:  # clip limits are not counted as parameters
        assert sum(math.prod(entry.shape) for entry in [*text, *media] if entry.shape) == n_all


# -- head ---


def test_untied_head_becomes_the_output_matrix(tmp_path: Path) -> None:
    text = load_checkpoint(tiny_folder.write_folder(tmp_path / "m", "12b-text", tied=False)).text
    spec = tensor(text, "output.weight")
    assert spec.shape == (40, 640)
    assert not np.array_equal(read_tensor(spec), read_tensor(tensor(text, "token_embd.weight")))


def test_untied_head_must_be_there(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", "12b-text", tied=False)
    edit_weights(folder / "model.safetensors", lambda e: e.pop("lm_head.weight"))
    with pytest.raises(FormatError, match=r"lm_head\.weight is missing"):
        load_checkpoint(folder)


def test_equal_copy_of_a_tied_head_is_dropped_and_another_refused(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "m", "12b-text")
    edit_weights(
        folder / "model.safetensors", lambda e: e.update({"lm_head.weight": e["model.embed_tokens.weight"]})
    )
    assert all(spec.name != "output.weight" for spec in load_checkpoint(folder).text.tensors)

    def change(entries: dict[str, Any]) -> None:
        other = entries["model.embed_tokens.weight"][1].copy()
        other[-1, -1] ^= 1
        entries["lm_head.weight"] = ("BF16", other)

    edit_weights(folder / "model.safetensors", change)
    with pytest.raises(FormatError, match=r"lm_head\.weight: differs from the embedding"):
        load_checkpoint(folder)


# -- drafter ---


def test_drafter_beside_the_model_is_found(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "12b")
    tiny_folder.write_folder(tmp_path / "model-assistant", "12b-assistant")
    image = load_checkpoint(folder).sections["drafter"]
    got = keys(image)
    assert image.architecture == "gemma4-assistant"
    assert got["gemma4-assistant.embedding_length_out"] == 40
    assert got["gemma4-assistant.nextn_predict_layers"] == 3
    assert got["gemma4-assistant.attention.shared_kv_layers"] == 3
    assert "gemma4-assistant.final_logit_softcapping" not in got
    assert tensor(image, "nextn.pre_projection.weight").shape == (80, 24)
    assert tensor(image, "nextn.post_projection.weight").shape == (24, 40)
    assert "drafter" not in load_checkpoint(folder, drafter=None).sections


def test_drafter_without_a_tokenizer_takes_that_of_its_target(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "e2b")
    drafter = tiny_folder.write_folder(tmp_path / "other", "e2b-assistant")
    (drafter / "tokenizer.json").unlink()
    image = load_checkpoint(folder, drafter=drafter).sections["drafter"]
    assert len(keys(image)["tokenizer.ggml.tokens"]) == 640


def test_clusters_of_a_drafter_become_keys(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "e2b")
    drafter = tiny_folder.write_folder(tmp_path / "model-assistant", "e2b-assistant", dtype="F32")
    image = load_checkpoint(folder).sections["drafter"]
    assert not any("masked" in spec.name or "centroid" in spec.name for spec in image.tensors)
    got, stored = keys(image), open_weights(drafter)
    centroids = stored["masked_embedding.centroids.weight"].to_float32()
    assert np.array_equal(got["gemmule.drafter.centroids"], centroids.reshape(-1))
    assert sorted(got["gemmule.drafter.clusters"].tolist()) == list(range(640))
    assert got["gemmule.drafter.n_clusters_used"] == 4
    edit_weights(drafter / "model.safetensors", _twice)
    with pytest.raises(FormatError, match=r"token_ordering: it must hold each of 640 tokens once"):
        load_checkpoint(folder)


def _twice(entries: dict[str, tuple[str, np.ndarray]]) -> None:
    kind, tokens = entries["masked_embedding.token_ordering"]
    entries["masked_embedding.token_ordering"] = (kind, np.array([tokens[1], *tokens[1:]], np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_centroids": 33}, "divisor of vocab_size 640"),
        ({"centroid_intermediate_top_k": 33}, "at most num_centroids 32"),
    ],
)
def test_clusters_that_do_not_add_up_are_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "e2b")
    drafter = tiny_folder.write_folder(tmp_path / "other", "e2b-assistant")
    edit_json(drafter / "config.json", lambda config: config.update(change))
    with pytest.raises(FormatError, match=message):
        load_checkpoint(folder, drafter=drafter)


def test_two_fitting_drafters_are_not_guessed_between(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "12b")
    for name in ("a-assistant", "b-assistant"):
        tiny_folder.write_folder(tmp_path / name, "12b-assistant")
    bundle = load_checkpoint(folder)
    assert "drafter" not in bundle.sections
    assert "a-assistant and b-assistant both fit" in bundle.warnings[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c.update(backbone_hidden_size=48), "backbone_hidden_size is 48, the target has 40"),
        (lambda c: c["text_config"].update(head_dim=32), "head_dim of sliding layers is 32"),
        (
            lambda c: c["text_config"].update(num_key_value_heads=4),
            "num_key_value_heads of sliding layers is 4",
        ),
        (lambda c: c["text_config"].update(vocab_size=641), "vocab_size is 641"),
        (lambda c: c["text_config"].update(sliding_window=8), "sliding_window is 8"),
        (
            lambda c: c["text_config"]["per_layer_config"]["2"].update(head_dim=64),
            "head_dim of full layers is 64",
        ),
    ],
)
def test_drafter_that_does_not_fit_is_refused(change: Any, what: str, tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "12b")
    drafter = tiny_folder.write_folder(tmp_path / "model-assistant", "12b-assistant")
    edit_json(drafter / "config.json", change)
    with pytest.raises(FormatError, match=what):
        load_checkpoint(folder, drafter=drafter)
    bundle = load_checkpoint(folder)
    assert "drafter" not in bundle.sections
    assert what in bundle.warnings[0]


def test_drafter_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "12b")
    drafter = tiny_folder.write_folder(tmp_path / "d", "12b-assistant")

    def swap(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        vocab["é"], vocab["ü"] = vocab["ü"], vocab["é"]

    edit_json(drafter / "tokenizer.json", swap)
    with pytest.raises(FormatError, match="in the drafter and"):
        load_checkpoint(folder, drafter=drafter)


def test_drafter_alone_and_model_as_drafter_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder.write_folder(tmp_path / "model", "12b")
    drafter = tiny_folder.write_folder(tmp_path / "d", "12b-assistant")
    with pytest.raises(UnsupportedError, match="this is a drafter"):
        load_checkpoint(drafter)
    with pytest.raises(UnsupportedError, match="not a drafter"):
        load_checkpoint(folder, drafter=folder)
    with pytest.raises(FileNotFoundError, match="given as the drafter"):
        load_checkpoint(folder, drafter=tmp_path / "nowhere")


def test_hub_cache_names_the_model(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--tiny-4" / "blobs"
    snapshot = tmp_path / "models--org--tiny-4" / "snapshots" / ("0a" * 20)
    shutil.move(tiny_folder.write_folder(tmp_path / "m", "12b-text", shards=2), blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    got = keys(load_checkpoint(snapshot).text)
    assert (got["general.name"], got["general.organization"]) == ("tiny-4", "org")
