#include "model/weights.h"

#include <string>
#include <vector>

#include "core/error.h"
#include "quant/packed.h"

namespace gemmule {
namespace {

// The weight of the query norm, where the cache keeps values in the place of keys: the numbers that meet
// values carry the weight of the key norm, w_q q . w_k v = (w_q w_k) q . v.
Tensor join_norms(Binder& bind, Binder& keys, const LayerConfig& layer, const std::string& block,
                  const std::string& owner, Backend& backend) {
  const int64_t half = layer.head_dim / 2;
  const Tensor q = bind.host_vector(block + "attn_q_norm.weight", layer.head_dim);
  const Tensor k = keys.host_vector(owner + "attn_k_norm.weight", layer.head_dim);
  std::vector<float> both(q.f32(), q.f32() + layer.head_dim);
  for (int64_t i = 0; i < layer.head_dim; ++i)
    if (i % half >= layer.n_turned) both[static_cast<size_t>(i)] *= k.f32()[i];
  const Rows placed = backend.alloc(1, layer.head_dim);
  backend.write(placed, both.data());
  return {DType::F32, 1, layer.head_dim, reinterpret_cast<const uint8_t*>(placed.data)};
}

void bind_attention(LayerWeights& l, Binder& bind, Binder& keys, const Config& c, const LayerConfig& layer,
                    const std::string& block, Backend& backend) {
  const int64_t q_width = layer.q_width(), kv_width = layer.kv_width();
  bind.refuse(block + "attn_qkv.weight",
              "joins query, key and value, which this version cannot run; convert the model without joining");
  l.attn_norm = bind.vector(block + "attn_norm.weight", c.d_model);
  l.wq = bind.matrix(block + "attn_q.weight", q_width, c.d_model);
  const std::string owner = layer.owns_kv() ? block : cat("blk.", layer.kv_from, ".");
  l.q_norm = layer.n_turned > 0 ? join_norms(bind, keys, layer, block, owner, backend)
                                : bind.vector(block + "attn_q_norm.weight", layer.head_dim);
  l.wo = bind.matrix(block + "attn_output.weight", c.d_model, q_width);
  l.attn_post_norm = bind.vector(block + "post_attention_norm.weight", c.d_model);
  if (!layer.owns_kv()) {  // files hold tensors for them all the same, which nobody reads
    bind.ignore(block + "attn_k.weight", kv_width, c.d_model);
    bind.ignore(block + "attn_v.weight", kv_width, c.d_model);
    bind.ignore(block + "attn_k_norm.weight", 1, layer.head_dim);
    return;
  }
  const bool v_is_k = c.v_norm && !layer.is_sliding && !bind.has(block + "attn_v.weight");
  l.wk = bind.matrix(block + "attn_k.weight", kv_width, c.d_model);
  if (!v_is_k) l.wv = bind.matrix(block + "attn_v.weight", kv_width, c.d_model);
  l.k_norm = bind.vector(block + "attn_k_norm.weight", layer.head_dim);
}

void bind_feed_forward(LayerWeights& l, Binder& bind, const Config& c, const LayerConfig& layer,
                       const std::string& block) {
  l.ffn_norm = bind.vector(block + "ffn_norm.weight", c.d_model);
  l.gate = bind.matrix(block + "ffn_gate.weight", layer.d_ff, c.d_model);
  l.up = bind.matrix(block + "ffn_up.weight", layer.d_ff, c.d_model);
  l.down = bind.matrix(block + "ffn_down.weight", c.d_model, layer.d_ff);
  l.ffn_post_norm = bind.vector(block + "post_ffw_norm.weight", c.d_model);
}

// Rows [first, first + n_rows) of every matrix.
Experts rows_of(Experts experts, int64_t first, int64_t n_rows) {
  experts.first.data += first * experts.first.row_size();
  experts.first.rows = n_rows;
  return experts;
}

// Gate and up matrices of the experts lie in one tensor, an expert's gate before its up, or in two.
void bind_experts(LayerWeights& l, Binder& bind, const Config& c, const LayerConfig& layer,
                  const std::string& block) {
  const int64_t n = c.n_experts, d_ff = layer.d_ff_expert;
  const std::string both = block + "ffn_gate_up_exps.weight";
  l.router = bind.matrix(block + "ffn_gate_inp.weight", n, c.d_model);
  l.router_scale = bind.vector(block + "ffn_gate_inp.scale", c.d_model);
  if (bind.has(both)) {
    const Experts gate_up = bind.experts(both, n, 2 * d_ff, c.d_model);
    if (gate_up.first.layout != Layout::Rows && d_ff % kPanelRows != 0)
      bind.refuse(both, "is packed, but its gate does not end with a panel; unpack the file");
    l.expert_gate = rows_of(gate_up, 0, d_ff);
    l.expert_up = rows_of(gate_up, d_ff, d_ff);
  } else {
    l.expert_gate = bind.experts(block + "ffn_gate_exps.weight", n, d_ff, c.d_model);
    l.expert_up = bind.experts(block + "ffn_up_exps.weight", n, d_ff, c.d_model);
  }
  l.expert_down = bind.experts(block + "ffn_down_exps.weight", n, c.d_model, d_ff);
  l.expert_scale = bind.vector(block + "ffn_down_exps.scale", n);
  l.expert_norm = bind.vector(block + "pre_ffw_norm_2.weight", c.d_model);
  l.dense_post_norm = bind.vector(block + "post_ffw_norm_1.weight", c.d_model);
  l.expert_post_norm = bind.vector(block + "post_ffw_norm_2.weight", c.d_model);
}

void bind_per_layer_embedding(LayerWeights& l, Binder& bind, const Config& c, const std::string& block) {
  l.ple_gate = bind.matrix(block + "inp_gate.weight", c.d_ple, c.d_model);
  l.ple_proj = bind.matrix(block + "proj.weight", c.d_model, c.d_ple);
  l.ple_post_norm = bind.vector(block + "post_norm.weight", c.d_model);
}

}  // namespace

Weights Weights::bind(const GgufFile& file, const Config& config, Backend& backend) {
  Binder binder(file, backend);
  Weights w = bind(binder, binder, config, backend);
  binder.refuse_unused();
  return w;
}

Weights Weights::bind(Binder& bind, Binder& keys, const Config& c, Backend& backend) {
  Weights w;
  w.embed = bind.matrix("token_embd.weight", c.n_vocab, c.d_model);
  w.output = bind.has("output.weight") ? bind.matrix("output.weight", c.n_vocab, c.d_model) : w.embed;
  w.output_norm = bind.vector("output_norm.weight", c.d_model);
  if (c.d_ple > 0) {
    w.ple_embed = bind.matrix("per_layer_token_embd.weight", c.n_vocab, c.n_layers * c.d_ple);
    w.ple_in = bind.matrix("per_layer_model_proj.weight", c.n_layers * c.d_ple, c.d_model);
    w.ple_norm = bind.vector("per_layer_proj_norm.weight", c.d_ple);
  }
  if (c.has_rope_factors) {
    const int64_t n_pairs = c.rope_global.head_dim / 2;
    const Tensor factors = bind.host_vector("rope_freqs.weight", n_pairs);
    w.rope_factors.assign(factors.f32(), factors.f32() + n_pairs);
  }
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerConfig& layer = c.layers[i];
    const std::string block = cat("blk.", i, ".");
    LayerWeights l;
    bind_attention(l, bind, keys, c, layer, block, backend);
    bind_feed_forward(l, bind, c, layer, block);
    if (c.n_experts > 0) bind_experts(l, bind, c, layer, block);
    if (c.d_ple > 0) bind_per_layer_embedding(l, bind, c, block);
    if (c.has_out_scale) l.out_scale = bind.host_vector(block + "layer_output_scale.weight", 1).f32()[0];
    w.layers.push_back(l);
  }
  return w;
}

}  // namespace gemmule
