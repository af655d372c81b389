"""Write a tiny random Gemma 3 or Gemma 4 text model as a Hugging Face folder and as a GGUF file.

Every weight is random and no two important sizes are equal, so a swapped axis, a forgotten norm, a wrong
window or a wrong head dimension changes the logits. The same seed always gives the same file. The shapes
have the parts of the real members: E2B and E4B per-layer embeddings and shared keys and values, 26B experts.
Layout: GGUF v3; linear weights keep the bytes of the Hugging Face [out, in] arrays; Gemma 3 norms are
stored as 1 + w, Gemma 4 norms as w. Needs torch, transformers >= 5.17 and gguf.

Usage: python tools/make_tiny_model.py --arch gemma4 --gguf tests/golden/tiny-gemma4-f32.gguf
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

__all__ = [
    "GEMMA3",
    "GEMMA4",
    "SHAPES",
    "Shape",
    "add_tensors",
    "build_model",
    "build_vocabulary",
    "fill",
    "gguf_name",
    "load_weights",
    "text_config",
    "write_gguf",
    "write_header",
]


@dataclass(frozen=True)
class Shape:
    """Sizes of one tiny model; sliding_layers[i] is True where layer i sees only `window` keys."""

    arch: str
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    n_kv_heads_global: int
    head_dim: int
    head_dim_global: int
    window: int
    sliding_layers: tuple[bool, ...]
    n_vocab: int = 512
    n_ctx: int = 1024
    unified: bool = False
    v_is_k: bool = True  # on global layers of Gemma 4
    n_shared: int = 0  # last layers that read the keys and values of earlier ones
    unread_kv: bool = True  # write tensors for those layers all the same, as real files do
    double_wide: bool = False  # d_ff doubles in those layers
    d_ple: int = 0  # numbers of the per-layer embedding
    n_experts: int = 0
    n_experts_used: int = 0
    d_ff_expert: int = 0
    split_experts: bool = False  # gate and up matrices of the experts in two tensors
    theta: dict[str, float] = field(default_factory=lambda: {"sliding": 1e4, "global": 1e6})

    @property
    def layer_types(self) -> list[str]:
        return ["sliding_attention" if s else "full_attention" for s in self.sliding_layers]

    @property
    def first_shared(self) -> int:
        return len(self.sliding_layers) - self.n_shared


# Seven layers: the global layer 5 (every sixth in Gemma 3) is followed by one more sliding layer.
GEMMA3 = Shape("gemma3", 40, 80, 4, 2, 2, 24, 24, 16, tuple(i % 6 != 5 for i in range(7)))
GEMMA4 = Shape("gemma4", 40, 80, 4, 2, 1, 24, 48, 16, (True, True, False, True, True, False))
_FIVE_TO_ONE = (*[True] * 5, False) * 2
_SMALL = Shape("gemma4", 32, 40, 4, 2, 1, 8, 16, 8, (True, True, False) * 2, n_vocab=384)
SHAPES = {
    "gemma3": GEMMA3,
    "gemma4": GEMMA4,
    "gemma4_unified": replace(GEMMA4, unified=True),
    "gemma4-e2b": replace(_SMALL, n_kv_heads=1, v_is_k=False, n_shared=3, double_wide=True, d_ple=8),
    "gemma4-e4b": replace(
        Shape("gemma4", 64, 96, 6, 2, 2, 16, 32, 11, _FIVE_TO_ONE), v_is_k=False, n_shared=6, d_ple=24
    ),
    "gemma4-26b": replace(
        _SMALL,
        d_ff=24,
        sliding_layers=(True, True, False, True, False),
        n_experts=7,
        n_experts_used=3,
        d_ff_expert=12,
    ),
    "gemma4-31b": Shape("gemma4", 80, 112, 8, 4, 2, 16, 40, 13, _FIVE_TO_ONE),
}

GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def text_config(shape: Shape) -> Any:
    """The transformers configuration of a shape."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": len(shape.sliding_layers),
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "sliding_window": shape.window,
        "layer_types": shape.layer_types,
        "max_position_embeddings": shape.n_ctx,
        "tie_word_embeddings": True,
    }
    if shape.arch == "gemma3":
        rope = {
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.theta["sliding"]},
            "full_attention": {"rope_type": "default", "rope_theta": shape.theta["global"]},
        }
        return transformers.Gemma3TextConfig(
            **common, query_pre_attn_scalar=shape.head_dim, rope_parameters=rope, final_logit_softcapping=None
        )
    common |= {
        "global_head_dim": shape.head_dim_global,
        "num_global_key_value_heads": shape.n_kv_heads_global if shape.v_is_k else None,
        "attention_k_eq_v": shape.v_is_k,
        "num_kv_shared_layers": shape.n_shared,
        "final_logit_softcapping": 30.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.theta["sliding"]},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": shape.theta["global"],
            },
        },
    }
    if shape.unified:
        return transformers.Gemma4UnifiedTextConfig(**common)
    return transformers.Gemma4TextConfig(
        **common,
        hidden_size_per_layer_input=shape.d_ple,
        vocab_size_per_layer_input=shape.n_vocab,
        use_double_wide_mlp=shape.double_wide,
        enable_moe_block=shape.n_experts > 0,
        num_experts=shape.n_experts or None,
        top_k_experts=shape.n_experts_used or None,
        moe_intermediate_size=shape.d_ff_expert or None,
    )


def build_model(shape: Shape, seed: int) -> Any:
    """Return the float32 Hugging Face model with every parameter and buffer of the text path random."""
    import torch
    import transformers

    if shape.arch == "gemma3":
        cls = transformers.Gemma3ForCausalLM
    else:
        cls = transformers.Gemma4UnifiedForCausalLM if shape.unified else transformers.Gemma4ForCausalLM
    config = text_config(shape)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = cls(config).to(torch.float32).eval()
    rng = np.random.default_rng(seed)
    centre = 0.0 if shape.arch == "gemma3" else 1.0
    fill(model, rng, centre)
    return model


def fill(model: Any, rng: np.random.Generator, centre: float = 1.0) -> None:
    """Give every parameter and buffer of a model a random value; norms are spread around `centre`."""
    import torch

    state = model.state_dict()
    new: dict[str, torch.Tensor] = {}
    for name in sorted(state):
        size = tuple(state[name].shape)
        if name == "lm_head.weight":
            continue
        if name.endswith("layer_scalar"):
            value = rng.uniform(0.6, 1.3, size)
        elif name.endswith("token_ordering"):
            new[name] = torch.from_numpy(rng.permutation(size[0]).astype(np.int64))
            continue
        elif len(size) == 1:
            value = centre + 0.3 * rng.standard_normal(size)
        elif "embed_tokens" in name:
            value = 0.5 * rng.standard_normal(size)
        elif name.endswith("router.proj.weight"):
            value = 2 * rng.standard_normal(size)  # so that the weights of the chosen experts differ
        else:
            value = rng.standard_normal(size) / np.sqrt(size[-1])
        new[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    missing, unexpected = model.load_state_dict(new, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"parameters without a value: {missing}, unknown: {unexpected}")
    model.tie_weights()


def build_vocabulary(arch: str, n_vocab: int) -> tuple[list[str], list[int], list[tuple[int, int]]]:
    """Return (tokens, GGUF token types, merges): each learned token is the join of two earlier ones."""
    turn = ["<start_of_turn>", "<end_of_turn>"] if arch == "gemma3" else ["<|turn>", "<turn|>", "<|think|>"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turn]
    types = [3] * len(tokens)
    if arch != "gemma3":
        user = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", '<|"|>']
        tokens += user
        types += [4] * len(user)
    first_byte = len(tokens)
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    types += [6] * 256
    singles = ["\n", "\u2581", *(chr(c) for c in range(33, 127)), "é", "ü", "日", "本"]
    tokens += singles
    types += [1] * len(singles)
    index = {t: i for i, t in enumerate(tokens)}
    merges: list[tuple[int, int]] = []
    text = (
        "_the _and _user _model user model _hello Hello _world ing tion er re on at en in or es is it ed "
        "al ar _a _s _t _of _to _in _w _c _b _p _f _h _m ou le st nt ion ent ate _that _was _for _with "
        "ment system _you _are _help ful ly est ver ight _I _it _be _as _on"
    )
    words = text.replace("_", "\u2581").split()
    for word in [*words, *(a + b for a in "bcdfghlmnprst" for b in "aeiouy")]:
        left = word[0]
        for char in word[1:]:
            joined = left + char
            if joined not in index and len(tokens) < n_vocab:
                merges.append((index[left], index[char]))
                index[joined] = len(tokens)
                tokens.append(joined)
                types.append(1)
            if joined not in index:
                break
            left = joined
    while len(tokens) < n_vocab:
        tokens.append(f"<unused{len(tokens)}>")
        types.append(3)
    if len(set(tokens)) != n_vocab or tokens[first_byte] != "<0x00>":
        raise RuntimeError(f"the vocabulary has {len(set(tokens))} different tokens instead of {n_vocab}")
    return tokens, types, merges


def _write_tokenizer(writer: gguf.GGUFWriter, shape: Shape) -> None:
    tokens, types, merges = build_vocabulary(shape.arch, shape.n_vocab)
    if shape.arch == "gemma3":
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        rank = 0
        scores: list[float] = []
        for t in types:
            scores.append(-1000.0 if t in (3, 4) else 0.0 if t == 6 else float(-rank))
            rank += t == 1
    else:
        writer.add_tokenizer_model("gemma4")
        scores = [-1000.0] * len(tokens)
        writer.add_token_merges([f"{tokens[a]} {tokens[b]}" for a, b in merges])
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    for add, value in (
        (writer.add_pad_token_id, 0),
        (writer.add_eos_token_id, 1),
        (writer.add_bos_token_id, 2),
        (writer.add_unk_token_id, 3),
        (writer.add_mask_token_id, 4),
    ):
        add(value)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(GEMMA3_TEMPLATE if shape.arch == "gemma3" else GEMMA4_TEMPLATE)


def _write_keys(writer: gguf.GGUFWriter, shape: Shape, seed: int, type_name: str) -> None:
    n_layers = len(shape.sliding_layers)
    arch = shape.arch
    writer.add_type("model")
    writer.add_name(f"tiny-{arch}-seed{seed}")
    writer.add_file_type({"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "BF16": 32}.get(type_name, 0))
    writer.add_quantization_version(2)
    writer.add_block_count(n_layers)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.d_model)
    widths = [shape.d_ff] * shape.first_shared + [2 * shape.d_ff] * shape.n_shared
    writer.add_feed_forward_length(widths if shape.double_wide else shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(shape.window)
    writer.add_rope_freq_base(shape.theta["global"])
    if arch == "gemma3":
        writer.add_head_count_kv(shape.n_kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        return
    per_layer = [shape.n_kv_heads if s else shape.n_kv_heads_global for s in shape.sliding_layers]
    writer.add_head_count_kv(per_layer if len(set(per_layer)) > 1 else per_layer[0])
    for key, value in (
        ("attention.key_length", shape.head_dim_global),
        ("attention.value_length", shape.head_dim_global),
        ("attention.key_length_swa", shape.head_dim),
        ("attention.value_length_swa", shape.head_dim),
        ("attention.shared_kv_layers", shape.n_shared),
        ("rope.dimension_count", shape.head_dim_global),
        ("rope.dimension_count_swa", shape.head_dim),
        ("embedding_length_per_layer_input", shape.d_ple),
        ("expert_count", shape.n_experts),
        ("expert_used_count", shape.n_experts_used),
        ("expert_feed_forward_length", shape.d_ff_expert),
    ):
        if value > 0 or not key.startswith("expert"):
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_array(f"{arch}.attention.sliding_window_pattern", list(shape.sliding_layers))
    writer.add_float32(f"{arch}.rope.freq_base_swa", shape.theta["sliding"])
    if arch == "gemma4":  # drafters have none
        writer.add_float32(f"{arch}.final_logit_softcapping", 30.0)


_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
_OTHER_NAMES = {
    "pre_projection.weight": "nextn.pre_projection.weight",
    "post_projection.weight": "nextn.post_projection.weight",
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}


def gguf_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}"


def write_header(writer: gguf.GGUFWriter, shape: Shape, *, seed: int, type_name: str) -> None:
    """Write the metadata and the vocabulary, and the rotary factors of Gemma 4."""
    _write_keys(writer, shape, seed, type_name)
    _write_tokenizer(writer, shape)
    if shape.arch != "gemma3":
        n_pairs = shape.head_dim_global // 2
        factors = np.full(n_pairs, 1e30, np.float32)
        factors[: n_pairs // 4] = 1.0
        writer.add_tensor("rope_freqs.weight", factors)


def _tensors(model: Any, shape: Shape, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 values) of every tensor of the file."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = tensor.detach().numpy().astype(np.float32)
        if shape.arch == "gemma3" and value.ndim == 1:
            value = value + np.float32(1.0)
        stored_name = gguf_name(name)
        if shape.split_experts and "gate_up_exps" in stored_name:
            for part, half in zip(("gate", "up"), np.split(value, 2, axis=1), strict=True):
                yield stored_name.replace("gate_up", part), np.ascontiguousarray(half)
        else:
            yield stored_name, value
    if not shape.unread_kv:
        return
    rng = np.random.default_rng(seed)
    for i in range(shape.first_shared, len(shape.sliding_layers)):
        head_dim = shape.head_dim if shape.sliding_layers[i] else shape.head_dim_global
        for part in ("k", "v"):
            value = rng.standard_normal((shape.n_kv_heads * head_dim, shape.d_model), np.float32)
            yield f"blk.{i}.attn_{part}.weight", value
        yield f"blk.{i}.attn_k_norm.weight", rng.standard_normal(head_dim, np.float32)


def _stored_type(name: str, value: np.ndarray, type_name: str) -> str:
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    if value.ndim == 1 or value.shape[-1] % block or "ffn_gate_inp" in name:
        return "F32"
    return "BF16" if name == "per_layer_model_proj.weight" and block > 1 else type_name


def write_gguf(model: Any, shape: Shape, path: Path, *, seed: int, type_name: str = "F32") -> None:
    """Write the text model; matrices in `type_name` where files do and the row length allows it."""
    writer = gguf.GGUFWriter(str(path), shape.arch)
    write_header(writer, shape, seed=seed, type_name=type_name)
    add_tensors(writer, _tensors(model, shape, seed), type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensors(writer: gguf.GGUFWriter, tensors: Iterable[tuple[str, np.ndarray]], type_name: str) -> None:
    """Add float32 tensors in the types they have in files."""
    for name, value in tensors:
        stored = _stored_type(name, value, type_name)
        if stored == "F32":
            writer.add_tensor(name, value)
        elif stored == "F16":
            writer.add_tensor(name, value.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType[stored]
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)


def load_weights(model: Any, shape: Shape, path: Path) -> None:
    """Give the model the values that the file's tensors stand for: the reference of a quantized file."""
    import torch

    tensors = gguf.GGUFReader(str(path)).tensors
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}
    if shape.split_experts:
        for name in [n for n in stored if "ffn_gate_exps" in n]:
            halves = [stored[name], stored[name.replace("gate", "up")]]
            stored[name.replace("gate", "gate_up")] = np.concatenate(halves, axis=1)
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if name == "lm_head.weight":
                continue
            value = stored[gguf_name(name)].astype(np.float32)
            if shape.arch == "gemma3" and value.ndim == 1:
                value = value - np.float32(1.0)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", choices=list(SHAPES), required=True, help="the shape, after a real model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", default="F32", help="F32, F16, BF16, Q8_0, Q4_0, Q5_0, ...")
    parser.add_argument("--d-model", type=int, default=0, help="width, a multiple of 32 for quantized types")
    parser.add_argument("--d-ff", type=int, default=0)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--hf", type=Path, help="folder for config.json and model.safetensors")
    args = parser.parse_args()
    changes = {"d_model": args.d_model, "d_ff": args.d_ff}
    shape = replace(SHAPES[args.arch], **{k: v for k, v in changes.items() if v})
    model = build_model(shape, args.seed)
    if args.hf:
        model.save_pretrained(args.hf)
    if args.gguf:
        write_gguf(model, shape, args.gguf, seed=args.seed, type_name=args.type)
        print(f"{args.gguf}: {args.gguf.stat().st_size} bytes, {asdict(shape)}")


if __name__ == "__main__":
    main()
