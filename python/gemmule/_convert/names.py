"""The one table of tensor names: Hugging Face name, GGUF name, shape, and what happens to the numbers.

Shapes in the table are in checkpoint order (contiguous dimension last) and made of symbols; a GGUF shape is
the same numbers reversed. `{n}` is the layer. Sources: transformers 5 module names, llama.cpp's loaders.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gemmule._convert.hf_config import Drafter, TextConfig
from gemmule._convert.media_config import AudioTower, FrameEmbedder, PatchEmbedder, VisionTower

__all__ = ["Entry", "audio_entries", "drafter_entries", "droppable", "text_entries", "vision_entries"]


@dataclass(frozen=True)
class Entry:
    """One tensor that goes into an image."""

    hf: str
    gguf: str
    shape: tuple[int, ...]  # in the checkpoint
    optional: bool = False
    how: str = ""  # a key of checkpoint.TRANSFORMS, "": the bytes as they are
    keep: str = ""  # the type it is always stored as; "source": that of the checkpoint; "": the mix decides
    gguf_shape: tuple[int, ...] = ()  # where it is not the reversed shape


@dataclass(frozen=True)
class _Row:
    hf: str
    gguf: str
    dims: str
    when: str = ""  # part of the model that has it
    how: str = ""
    keep: str = ""


# H width, V tokens, F feed-forward, Q query rows, K key rows, D head dim, P per-layer embedding, PL = P *
# layers, X experts, W expert width, 2W gate and up together. Norms of Gemma 3 are stored minus one ("norm").
_TEXT_HEAD = (
    _Row("embed_tokens.weight", "token_embd.weight", "V H"),
    _Row("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", "VP PL", "ple"),
    _Row("per_layer_model_projection.weight", "per_layer_model_proj.weight", "PL H", "ple"),
    _Row("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", "P", "ple", keep="F32"),
)
_TEXT_LAYER = (
    _Row("input_layernorm.weight", "attn_norm.weight", "H", how="norm", keep="F32"),
    _Row("self_attn.q_proj.weight", "attn_q.weight", "Q H"),
    _Row("self_attn.q_norm.weight", "attn_q_norm.weight", "D", how="norm", keep="F32"),
    _Row("self_attn.k_proj.weight", "attn_k.weight", "K H", "kv"),
    _Row("self_attn.k_norm.weight", "attn_k_norm.weight", "D", "kv", how="norm", keep="F32"),
    _Row("self_attn.v_proj.weight", "attn_v.weight", "K H", "v"),
    _Row("self_attn.o_proj.weight", "attn_output.weight", "H Q"),
    _Row("post_attention_layernorm.weight", "post_attention_norm.weight", "H", how="norm", keep="F32"),
    _Row("pre_feedforward_layernorm.weight", "ffn_norm.weight", "H", how="norm", keep="F32"),
    _Row("mlp.gate_proj.weight", "ffn_gate.weight", "F H"),
    _Row("mlp.up_proj.weight", "ffn_up.weight", "F H"),
    _Row("mlp.down_proj.weight", "ffn_down.weight", "H F"),
    _Row("post_feedforward_layernorm.weight", "post_ffw_norm.weight", "H", how="norm", keep="F32"),
    _Row("router.proj.weight", "ffn_gate_inp.weight", "X H", "moe", keep="F32"),
    _Row("router.scale", "ffn_gate_inp.scale", "H", "moe", keep="F32"),
    _Row("pre_feedforward_layernorm_2.weight", "pre_ffw_norm_2.weight", "H", "moe", keep="F32"),
    _Row("experts.gate_up_proj", "ffn_gate_up_exps.weight", "X 2W H", "moe"),
    _Row("experts.down_proj", "ffn_down_exps.weight", "X H W", "moe"),
    _Row("router.per_expert_scale", "ffn_down_exps.scale", "X", "moe", keep="F32"),
    _Row("post_feedforward_layernorm_1.weight", "post_ffw_norm_1.weight", "H", "moe", keep="F32"),
    _Row("post_feedforward_layernorm_2.weight", "post_ffw_norm_2.weight", "H", "moe", keep="F32"),
    _Row("per_layer_input_gate.weight", "inp_gate.weight", "P H", "ple"),
    _Row("per_layer_projection.weight", "proj.weight", "H P", "ple"),
    _Row("post_per_layer_input_norm.weight", "post_norm.weight", "H", "ple", keep="F32"),
    _Row("layer_scalar", "layer_output_scale.weight", "1", "gemma4", keep="F32"),
)
_TEXT_TAIL = (_Row("norm.weight", "output_norm.weight", "H", how="norm", keep="F32"),)

# B width of the target model; the projections stand beside the text stack.
_DRAFTER = (
    _Row("pre_projection.weight", "nextn.pre_projection.weight", "H 2B"),
    _Row("post_projection.weight", "nextn.post_projection.weight", "B H"),
)

# Vision without an encoder. X = 3 * side^2 pixel values in the order row, column, colour; files keep planes.
_PATCH = (
    _Row("vision_embedder.patch_ln1.weight", "v.patch_norm.1.weight", "X", how="planes", keep="F32"),
    _Row("vision_embedder.patch_ln1.bias", "v.patch_norm.1.bias", "X", how="planes", keep="F32"),
    _Row("vision_embedder.patch_dense.weight", "v.patch_embd.weight", "C X", how="planes", keep="F32"),
    _Row("vision_embedder.patch_dense.bias", "v.patch_embd.bias", "C", keep="F32"),
    _Row("vision_embedder.patch_ln2.weight", "v.patch_norm.2.weight", "C", keep="F32"),
    _Row("vision_embedder.patch_ln2.bias", "v.patch_norm.2.bias", "C", keep="F32"),
    _Row("vision_embedder.pos_norm.weight", "v.patch_norm.3.weight", "C", keep="F32"),
    _Row("vision_embedder.pos_norm.bias", "v.patch_norm.3.bias", "C", keep="F32"),
    _Row("vision_embedder.pos_embedding", "v.position_embd.weight", "N 2 C", how="axes", keep="F32"),
)
_VISION_OUT = (
    _Row("embed_vision.embedding_projection.weight", "mm.input_projection.weight", "H C", keep="source"),
)
_AUDIO_OUT = (
    _Row("embed_audio.embedding_projection.weight", "mm.a.input_projection.weight", "H C", keep="source"),
)

_TOWER = "vision_tower."
_VISION_HEAD = (
    _Row("patch_embedder.input_proj.weight", "v.patch_embd.weight", "C X", how="kernel", keep="F32"),
    _Row("patch_embedder.position_embedding_table", "v.position_embd.weight", "2 N C", keep="F32"),
)
_VISION_LAYER = (
    _Row("input_layernorm.weight", "ln1.weight", "C", keep="F32"),
    _Row("self_attn.q_proj", "attn_q", "C C", "linear"),
    _Row("self_attn.k_proj", "attn_k", "C C", "linear"),
    _Row("self_attn.v_proj", "attn_v", "C C", "linear"),
    _Row("self_attn.o_proj", "attn_out", "C C", "linear"),
    _Row("self_attn.q_norm.weight", "attn_q_norm.weight", "D", keep="F32"),
    _Row("self_attn.k_norm.weight", "attn_k_norm.weight", "D", keep="F32"),
    _Row("post_attention_layernorm.weight", "attn_post_norm.weight", "C", keep="F32"),
    _Row("pre_feedforward_layernorm.weight", "ln2.weight", "C", keep="F32"),
    _Row("mlp.gate_proj", "ffn_gate", "F C", "linear"),
    _Row("mlp.up_proj", "ffn_up", "F C", "linear"),
    _Row("mlp.down_proj", "ffn_down", "C F", "linear"),
    _Row("post_feedforward_layernorm.weight", "ffn_post_norm.weight", "C", keep="F32"),
)
_VISION_TAIL = (
    _Row("std_bias", "v.std_bias", "C", "standardized", keep="F32"),
    _Row("std_scale", "v.std_scale", "C", "standardized", keep="F32"),
)

_CONFORMER = "audio_tower."
_SUBSAMPLE = "subsample_conv_projection."
_AUDIO_HEAD = (
    _Row(_SUBSAMPLE + "layer0.conv.weight", "a.conv1d.0.weight", "A 1 3 3", keep="F32"),
    _Row(_SUBSAMPLE + "layer0.norm.weight", "a.conv1d.0.norm.weight", "A", keep="F32"),
    _Row(_SUBSAMPLE + "layer1.conv.weight", "a.conv1d.1.weight", "B A 3 3", keep="F32"),
    _Row(_SUBSAMPLE + "layer1.norm.weight", "a.conv1d.1.norm.weight", "B", keep="F32"),
    _Row(_SUBSAMPLE + "input_proj_linear.weight", "a.input_projection.weight", "C AB", keep="F32"),
)
# llama.cpp's conv_norm is the norm before the light convolution and norm_conv the one inside it.
_AUDIO_LAYER = (
    _Row("feed_forward1.pre_layer_norm.weight", "ffn_norm.weight", "C", keep="F32"),
    _Row("feed_forward1.ffw_layer_1", "ffn_up", "4C C", "linear"),
    _Row("feed_forward1.ffw_layer_2", "ffn_down", "C 4C", "linear"),
    _Row("feed_forward1.post_layer_norm.weight", "ffn_post_norm.weight", "C", keep="F32"),
    _Row("norm_pre_attn.weight", "attn_pre_norm.weight", "C", keep="F32"),
    _Row("self_attn.q_proj", "attn_q", "C C", "linear"),
    _Row("self_attn.k_proj", "attn_k", "C C", "linear"),
    _Row("self_attn.v_proj", "attn_v", "C C", "linear"),
    _Row("self_attn.per_dim_scale", "per_dim_scale.weight", "D", how="softplus", keep="F32"),
    _Row("self_attn.relative_k_proj.weight", "attn_k_rel.weight", "C C", keep="source"),
    _Row("self_attn.post", "attn_out", "C C", "linear"),
    _Row("norm_post_attn.weight", "attn_post_norm.weight", "C", keep="F32"),
    _Row("lconv1d.pre_layer_norm.weight", "conv_norm.weight", "C", keep="F32"),
    _Row("lconv1d.linear_start", "conv_pw1", "2C C", "linear"),
    _Row("lconv1d.depthwise_conv1d.weight", "conv_dw.weight", "C 1 T", how="squeeze", keep="F32"),
    _Row("lconv1d.conv_norm.weight", "norm_conv.weight", "C", keep="F32"),
    _Row("lconv1d.linear_end", "conv_pw2", "C C", "linear"),
    _Row("feed_forward2.pre_layer_norm.weight", "ffn_norm_1.weight", "C", keep="F32"),
    _Row("feed_forward2.ffw_layer_1", "ffn_up_1", "4C C", "linear"),
    _Row("feed_forward2.ffw_layer_2", "ffn_down_1", "C 4C", "linear"),
    _Row("feed_forward2.post_layer_norm.weight", "ffn_post_norm_1.weight", "C", keep="F32"),
    _Row("norm_out.weight", "ln2.weight", "C", keep="F32"),
)
_AUDIO_TAIL = (
    _Row("output_proj.weight", "a.pre_encode.out.weight", "O C", keep="source"),
    _Row("output_proj.bias", "a.pre_encode.out.bias", "O", keep="F32"),
)
_CLIPS = ("input_max", "input_min", "output_max", "output_min")

# Parts of a checkpoint that no image has, by family and the beginning of their name without "model.".
_DROPPED = {
    # The image tower of Gemma 3 is another model with its own converter.
    "gemma3": ("multi_modal_projector.", "vision_tower."),
    # The clusters of the small drafters, which become keys where the config uses them.
    "gemma4": ("masked_embedding.",),
}
_DROPPED_ENDS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


def droppable(name: str, family: str) -> bool:
    """Whether a tensor of the checkpoint is known to have no place in any image."""
    return name.removeprefix("model.").startswith(_DROPPED[family]) or name.endswith(_DROPPED_ENDS)


def text_entries(config: TextConfig, prefix: str, head: str) -> Iterator[Entry]:
    """The tensors of a text stack. `prefix` goes before "layers."; `head` names the output matrix."""
    symbols = {
        "V": config.n_vocab,
        "VP": config.n_vocab_ple,
        "H": config.d_model,
        "P": config.d_ple,
        "PL": config.d_ple * config.n_layers,
        "X": config.n_experts,
        "W": config.d_expert,
        "2W": 2 * config.d_expert,
    }
    parts = {config.family, *(["ple"] if config.d_ple else []), *(["moe"] if config.n_experts else [])}
    plain = config.family != "gemma3"
    yield from _expand(_TEXT_HEAD, prefix, "", symbols, parts, plain=plain)
    for n, layer in enumerate(config.layers):
        sizes = symbols | {
            "D": layer.head_dim,
            "Q": layer.head_dim * config.n_heads,
            "K": layer.head_dim * layer.n_kv_heads,
            "F": layer.d_ff,
        }
        has = parts | ({"kv"} | ({"v"} if layer.has_v else set()))
        rows = (row for row in _TEXT_LAYER if layer.owns_kv or row.when not in ("kv", "v"))
        spare = (row for row in _TEXT_LAYER if not layer.owns_kv and row.when in ("kv", "v"))
        yield from _expand(rows, f"{prefix}layers.{n}.", f"blk.{n}.", sizes, has, plain=plain)
        # Readers ignore these; official checkpoints hold them, ones saved again may not.
        yield from _expand(spare, f"{prefix}layers.{n}.", f"blk.{n}.", sizes, has, plain=plain, optional=True)
    yield from _expand(_TEXT_TAIL, prefix, "", symbols, parts, plain=plain)
    if not config.tied:
        yield Entry(head, "output.weight", (config.n_vocab, config.d_model))


def drafter_entries(config: TextConfig, drafter: Drafter, prefix: str) -> Iterator[Entry]:
    """The tensors of an assistant. Its layers have no keys and values at all."""
    for entry in text_entries(config, prefix, ""):
        if not entry.optional:
            yield entry
    symbols = {"H": config.d_model, "B": drafter.d_backbone, "2B": 2 * drafter.d_backbone}
    yield from _expand(_DRAFTER, "", "", symbols, set())


def vision_entries(config: PatchEmbedder | VisionTower, d_model: int, prefix: str) -> Iterator[Entry]:
    """The tensors that turn pixels into text-width vectors."""
    if isinstance(config, PatchEmbedder):
        side = config.patch * config.pool
        symbols = {"C": config.width, "X": 3 * side * side, "N": config.n_positions, "H": d_model}
        yield from _expand(_PATCH, prefix, "", symbols, set())
        yield from _expand(_VISION_OUT, prefix, "", symbols, set())
        return
    symbols = {
        "C": config.width,
        "X": 3 * config.patch * config.patch,
        "N": config.n_positions,
        "D": config.width // config.n_heads,
        "F": config.d_ff,
        "H": d_model,
    }
    has = {
        "linear",
        *(["clipped"] if config.clipped else []),
        *(["standardized"] if config.standardized else []),
    }
    tower = prefix + _TOWER
    for entry in _expand(_VISION_HEAD, tower, "", symbols, has):
        if entry.how == "kernel":
            entry = replace(entry, gguf_shape=(config.patch, config.patch, 3, config.width))
        yield entry
    for n in range(config.n_layers):
        yield from _expand(_VISION_LAYER, f"{tower}encoder.layers.{n}.", f"v.blk.{n}.", symbols, has)
    yield from _expand(_VISION_TAIL, tower, "", symbols, has)
    yield from _expand(_VISION_OUT, prefix, "", symbols, set())


def audio_entries(config: FrameEmbedder | AudioTower, d_model: int, prefix: str) -> Iterator[Entry]:
    """The tensors that turn sound into text-width vectors."""
    if isinstance(config, FrameEmbedder):
        yield from _expand(_AUDIO_OUT, prefix, "", {"C": config.width, "H": d_model}, set())
        return
    first, second = config.channels
    symbols = {
        "A": first,
        "B": second,
        "AB": first // 4 * second,
        "C": config.width,
        "2C": 2 * config.width,
        "4C": 4 * config.width,
        "D": config.width // config.n_heads,
        "T": config.kernel,
        "O": config.d_out,
    }
    has = {"linear", *(["clipped"] if config.clipped else [])}
    tower = prefix + _CONFORMER
    yield from _expand(_AUDIO_HEAD, tower, "", symbols, has)
    for n in range(config.n_layers):
        for entry in _expand(_AUDIO_LAYER, f"{tower}layers.{n}.", f"a.blk.{n}.", symbols, has):
            if entry.how == "squeeze":
                entry = replace(entry, how="", gguf_shape=(config.kernel, config.width))
            yield entry
    yield from _expand(_AUDIO_TAIL, tower, "", symbols, has)
    yield from _expand(_AUDIO_OUT, prefix, "", {"C": config.d_out, "H": d_model}, set())


def _expand(
    rows: Iterable[_Row],
    hf: str,
    gguf: str,
    symbols: dict[str, int],
    parts: set[str],
    *,
    plain: bool = True,
    optional: bool = False,
) -> Iterator[Entry]:
    """Table rows with their prefixes and numbers. `plain`: norms are stored as they are."""
    for row in rows:
        if row.when and row.when not in parts:
            continue
        shape = tuple(int(dim) if dim.isdecimal() else symbols[dim] for dim in row.dims.split())
        if row.when == "linear":
            yield Entry(f"{hf}{row.hf}.linear.weight", f"{gguf}{row.gguf}.weight", shape, keep="source")
            if "clipped" in parts:
                for clip in _CLIPS:
                    yield Entry(
                        f"{hf}{row.hf}.{clip}", f"{gguf}{row.gguf}.{clip}", (), keep="F32", gguf_shape=(1,)
                    )
            continue
        how = "" if row.how == "norm" and plain else row.how
        yield Entry(hf + row.hf, gguf + row.gguf, shape, optional, how, row.keep)
