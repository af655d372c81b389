"""The float32 reference for a GGUF file: transformers with the dequantized weights of that very file.

So a comparison shows the error of an engine's arithmetic, not that of the quantization of the weights.
Gemma 3 norms are stored as 1 + w in GGUF and applied as (1 + w) by transformers, so 1 is taken off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

__all__ = ["load_reference"]

_TO_HF = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _hf_name(name: str) -> str | None:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    if not name.startswith("blk."):
        return None
    _, layer, kind, _ = name.split(".")
    if kind == "layer_output_scale":
        return f"model.layers.{layer}.layer_scalar"
    return f"model.layers.{layer}.{_TO_HF[kind]}.weight"


def _config(reader: gguf.GGUFReader) -> Any:
    arch = str(reader.fields["general.architecture"].contents())

    def key(name: str) -> Any:
        return reader.fields[f"{arch}.{name}"].contents()

    n_layers = key("block_count")
    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    common: dict[str, Any] = {
        "vocab_size": n_vocab,
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": n_layers,
        "num_attention_heads": key("attention.head_count"),
        "sliding_window": key("attention.sliding_window"),
        "max_position_embeddings": key("context_length"),
    }
    if arch == "gemma3":
        sliding = [i % 6 != 5 for i in range(n_layers)]
        types = ["sliding_attention" if s else "full_attention" for s in sliding]
        rope = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": float(key("rope.freq_base"))},
        }
        return transformers.Gemma3TextConfig(
            **common,
            head_dim=key("attention.key_length"),
            num_key_value_heads=key("attention.head_count_kv"),
            query_pre_attn_scalar=key("attention.key_length"),
            layer_types=types,
            rope_parameters=rope,
        )
    if arch != "gemma4":
        raise ValueError(f"no reference for the architecture {arch}")
    sliding = [bool(s) for s in key("attention.sliding_window_pattern")]
    n_kv = list(key("attention.head_count_kv"))
    return transformers.Gemma4TextConfig(
        **common,
        head_dim=key("attention.key_length_swa"),
        global_head_dim=key("attention.key_length"),
        num_key_value_heads=n_kv[sliding.index(True)],
        num_global_key_value_heads=n_kv[sliding.index(False)],
        layer_types=["sliding_attention" if s else "full_attention" for s in sliding],
        final_logit_softcapping=float(key("final_logit_softcapping")),
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=n_vocab,
        num_kv_shared_layers=0,
        enable_moe_block=False,
    )


def load_reference(path: str | Path) -> Any:
    """Return the float32 Gemma3ForCausalLM or Gemma4ForCausalLM with the weights of the GGUF file."""
    reader = gguf.GGUFReader(str(path))
    config = _config(reader)
    config._attn_implementation = "eager"
    gemma3 = isinstance(config, transformers.Gemma3TextConfig)
    cls = transformers.Gemma3ForCausalLM if gemma3 else transformers.Gemma4ForCausalLM
    model = cls(config).to(torch.float32).eval()
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        name = _hf_name(tensor.name)
        if name is None:
            continue
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if gemma3 and value.ndim == 1:
            value = value - np.float32(1.0)
        weights[name] = torch.from_numpy(np.ascontiguousarray(value))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"{path}: missing {missing}, unknown {unexpected}")
    model.tie_weights()
    return model
