"""Write a tiny random Gemma 3 or Gemma 4 text model as a Hugging Face folder and as a GGUF file.

Every weight is random and no two important sizes are equal, so a swapped axis, a forgotten norm, a wrong
window or a wrong head dimension changes the logits. The same seed always gives the same file.
Layout: GGUF v3; linear weights keep the bytes of the Hugging Face [out, in] arrays; Gemma 3 norms are
stored as 1 + w, Gemma 4 norms as w. Needs torch, transformers >= 5.17 and gguf.

Usage: python tools/make_tiny_model.py --arch gemma4 --gguf tests/golden/tiny-gemma4-f32.gguf
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

__all__ = ["GEMMA3", "GEMMA4", "Shape", "build_model", "build_vocabulary", "write_gguf", "write_header"]


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
    theta: dict[str, float] = field(default_factory=lambda: {"sliding": 1e4, "global": 1e6})

    @property
    def layer_types(self) -> list[str]:
        return ["sliding_attention" if s else "full_attention" for s in self.sliding_layers]


# Seven layers: the global layer 5 (every sixth in Gemma 3) is followed by one more sliding layer.
GEMMA3 = Shape("gemma3", 40, 80, 4, 2, 2, 24, 24, 16, tuple(i % 6 != 5 for i in range(7)))
GEMMA4 = Shape("gemma4", 40, 80, 4, 2, 1, 24, 48, 16, (True, True, False, True, True, False))

GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def _config(shape: Shape) -> Any:
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
        "num_global_key_value_heads": shape.n_kv_heads_global,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
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
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=shape.n_vocab,
        enable_moe_block=False,
    )


def build_model(shape: Shape, seed: int) -> Any:
    """Return the float32 Hugging Face model with every parameter and buffer of the text path random."""
    import torch
    import transformers

    if shape.arch == "gemma3":
        cls = transformers.Gemma3ForCausalLM
    else:
        cls = transformers.Gemma4UnifiedForCausalLM if shape.unified else transformers.Gemma4ForCausalLM
    config = _config(shape)
    config._attn_implementation = "eager"
    model = cls(config).to(torch.float32).eval()
    rng = np.random.default_rng(seed)
    centre = 0.0 if shape.arch == "gemma3" else 1.0
    state = model.state_dict()
    new: dict[str, torch.Tensor] = {}
    for name in sorted(state):
        size = tuple(state[name].shape)
        if name == "lm_head.weight":
            continue
        if name.endswith("layer_scalar"):
            value = rng.uniform(0.6, 1.3, size)
        elif len(size) == 1:
            value = centre + 0.3 * rng.standard_normal(size)
        elif "embed_tokens" in name:
            value = 0.5 * rng.standard_normal(size)
        else:
            value = rng.standard_normal(size) / np.sqrt(size[1])
        new[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    missing, unexpected = model.load_state_dict(new, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"parameters without a value: {missing}, unknown: {unexpected}")
    model.tie_weights()
    return model


def build_vocabulary(arch: str, n_vocab: int) -> tuple[list[str], list[int], list[tuple[int, int]]]:
    """Return (tokens, GGUF token types, merges): each learned token is the join of two earlier ones."""
    turn = ["<start_of_turn>", "<end_of_turn>"] if arch == "gemma3" else ["<|turn>", "<turn|>", "<|think|>"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turn]
    types = [3] * len(tokens)
    if arch == "gemma4":
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
    writer.add_feed_forward_length(shape.d_ff)
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
    writer.add_head_count_kv(per_layer)
    for key, value in (
        ("attention.key_length", shape.head_dim_global),
        ("attention.value_length", shape.head_dim_global),
        ("attention.key_length_swa", shape.head_dim),
        ("attention.value_length_swa", shape.head_dim),
        ("attention.shared_kv_layers", 0),
        ("rope.dimension_count", shape.head_dim_global),
        ("rope.dimension_count_swa", shape.head_dim),
        ("embedding_length_per_layer_input", 0),
    ):
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_array(f"{arch}.attention.sliding_window_pattern", list(shape.sliding_layers))
    writer.add_float32(f"{arch}.rope.freq_base_swa", shape.theta["sliding"])
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
}


def _gguf_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}"


def write_header(writer: gguf.GGUFWriter, shape: Shape, *, seed: int, type_name: str) -> None:
    """Write the metadata and the vocabulary, and the rotary factors of Gemma 4."""
    _write_keys(writer, shape, seed, type_name)
    _write_tokenizer(writer, shape)
    if shape.arch == "gemma4":
        n_pairs = shape.head_dim_global // 2
        factors = np.full(n_pairs, 1e30, np.float32)
        factors[: n_pairs // 4] = 1.0
        writer.add_tensor("rope_freqs.weight", factors)


def write_gguf(model: Any, shape: Shape, path: Path, *, seed: int, type_name: str = "F32") -> None:
    """Write the text model; matrices in `type_name` where the row length allows it, the rest in F32."""
    writer = gguf.GGUFWriter(str(path), shape.arch)
    write_header(writer, shape, seed=seed, type_name=type_name)
    kind = gguf.GGMLQuantizationType[type_name]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = tensor.detach().numpy().astype(np.float32)
        if shape.arch == "gemma3" and value.ndim == 1:
            value = value + np.float32(1.0)
        if type_name == "F32" or value.ndim == 1 or value.shape[-1] % block:
            writer.add_tensor(_gguf_name(name), value)
        elif type_name == "F16":
            writer.add_tensor(_gguf_name(name), value.astype(np.float16))
        else:
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", choices=["gemma3", "gemma4", "gemma4_unified"], required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", default="F32", help="F32, F16, BF16, Q8_0, Q4_0, Q5_0, ...")
    parser.add_argument("--d-model", type=int, default=0, help="width, a multiple of 32 for quantized types")
    parser.add_argument("--d-ff", type=int, default=0)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--hf", type=Path, help="folder for config.json and model.safetensors")
    args = parser.parse_args()
    shape = GEMMA3 if args.arch == "gemma3" else GEMMA4
    changes = {"d_model": args.d_model, "d_ff": args.d_ff, "unified": args.arch == "gemma4_unified"}
    shape = replace(shape, **{k: v for k, v in changes.items() if v})
    model = build_model(shape, args.seed)
    if args.hf:
        model.save_pretrained(args.hf)
    if args.gguf:
        write_gguf(model, shape, args.gguf, seed=args.seed, type_name=args.type)
        print(f"{args.gguf}: {args.gguf.stat().st_size} bytes, {asdict(shape)}")


if __name__ == "__main__":
    main()
