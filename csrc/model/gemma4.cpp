// The forward pass of Gemma 3 and Gemma 4 text models. Formulas and names: docs/MODEL.md.
//
//   x = sqrt(d_model) * embed[token]
//   each layer:  x += post_norm(Wo attend(norm(x)))
//                x += post_norm(Wdown(gelu(Wgate norm(x)) * (Wup norm(x))))
//                x *= out_scale                                             (Gemma 4)
//   y = norm(x),  logits = cap * tanh(embed y / cap)                        (cap: Gemma 4)
//
// Sliding layers see the last `window` positions and keep a ring; global layers see all. In Gemma 4 the two
// kinds also differ in head size, key/value heads and rotary angles, and where a global layer has no Wv its
// values are the keys before their norm and rotation.
#include "model/gemma4.h"

#include <algorithm>

#include "model/rope.h"

namespace gemmule {

Rows Gemma4::forward(const Batch& batch, const StopToken* stop, const Tap* tap) {
  place_rows(batch);
  const Rows x = s_.x.first(n_), y = s_.y.first(n_);
  be_.embed(x, w_.embed, batch.tokens, cfg_.embed_scale);
  if (tap) (*tap)("embed", -1, x);
  for (size_t i = 0; i < w_.layers.size(); ++i) {
    if (stop) stop->check();
    attention(i, batch, tap);
    feed_forward(i, tap);
    if (cfg_.has_out_scale) be_.scale(x, w_.layers[i].out_scale);
    if (tap) (*tap)("layer_out", static_cast<int64_t>(i), x);
  }
  be_.rms_norm(y, x, w_.output_norm, cfg_.rms_eps);
  if (tap) (*tap)("output_norm", -1, y);
  return y;
}

void Gemma4::attention(size_t i, const Batch& batch, const Tap* tap) {
  const LayerWeights& l = w_.layers[i];
  const LayerConfig& c = cfg_.layers[i];
  const int64_t q_width = c.n_heads * c.head_dim, kv_width = c.n_kv_heads * c.head_dim;
  const Rows x = s_.x.first(n_), h = s_.h.first(n_);
  const Rows q = s_.q.as(n_, q_width), k = s_.k.as(n_, kv_width), v = s_.v.as(n_, kv_width),
             a = s_.a.as(n_, q_width);
  const Rows cos = s_.cos[c.is_sliding].first(n_), sin = s_.sin[c.is_sliding].first(n_);

  be_.rms_norm(h, x, l.attn_norm, cfg_.rms_eps);
  if (l.wv) {
    const Product qkv[] = {{q, l.wq}, {k, l.wk}, {v, l.wv}};
    be_.matmul(qkv, h);
  } else {
    const Product qk[] = {{q, l.wq}, {k, l.wk}};
    be_.matmul(qk, h);
    be_.copy(v, k);  // V is K before its norm and rotation
  }
  be_.head_norm_rope(q, c.head_dim, l.q_norm, cfg_.rms_eps, cos, sin, cfg_.attn_scale);
  be_.head_norm_rope(k, c.head_dim, l.k_norm, cfg_.rms_eps, cos, sin, 1);
  if (cfg_.v_norm) be_.head_norm_rope(v, c.head_dim, {}, cfg_.rms_eps, {}, {}, 1);

  for (size_t r = 0; r < runs_.size(); ++r)
    runs_[r].kv = batch.sequences[r].kv->layer(static_cast<int64_t>(i));
  be_.kv_append(runs_, k, v, batch.pos);
  be_.attend(a, q, runs_, lo_[c.is_sliding], hi_);
  if (tap) (*tap)("attn_heads", static_cast<int64_t>(i), a);
  be_.matmul(h, l.wo, a);
  be_.add_rms_norm(x, h, l.attn_post_norm, cfg_.rms_eps);
  if (tap) (*tap)("attn_out", static_cast<int64_t>(i), x);
}

void Gemma4::feed_forward(size_t i, const Tap* tap) {
  const LayerWeights& l = w_.layers[i];
  const Rows x = s_.x.first(n_), h = s_.h.first(n_), gate = s_.gate.first(n_), up = s_.up.first(n_);
  be_.rms_norm(h, x, l.ffn_norm, cfg_.rms_eps);
  be_.gated_gelu(gate, up, l.gate, l.up, h);
  be_.matmul(h, l.down, gate);
  be_.add_rms_norm(x, h, l.ffn_post_norm, cfg_.rms_eps);
  if (tap) (*tap)("ffn_out", static_cast<int64_t>(i), x);
}

Rows Gemma4::logits(Rows hidden) {
  const Rows z = s_.logits.first(hidden.n);
  be_.matmul(z, w_.output, hidden);
  if (cfg_.final_softcap > 0) be_.softcap(z, cfg_.final_softcap);
  return z;
}

// Where each row stands: its rotary angles, what it may see, and whose cache it writes.
void Gemma4::place_rows(const Batch& batch) {
  n_ = static_cast<int64_t>(batch.tokens.size());
  for (int kind = 0; kind < 2; ++kind)
    rope_angles(freq_[kind], batch.pos, s_.cos[kind].data, s_.sin[kind].data);
  for (size_t i = 0; i < batch.pos.size(); ++i) {
    lo_[0][i] = 0;
    lo_[1][i] = std::max<int64_t>(0, batch.pos[i] - (cfg_.window - 1));
    hi_[i] = batch.pos[i] + 1;
  }
  runs_.clear();
  for (const Batch::Sequence& s : batch.sequences) runs_.push_back({s.row, s.n_rows, {}});
}

namespace {

struct Widths {
  int64_t q = 0, kv = 0, head_dim = 0;
};

Widths widest(const Config& config) {
  Widths w;
  for (const LayerConfig& layer : config.layers) {
    w.q = std::max(w.q, layer.n_heads * layer.head_dim);
    w.kv = std::max(w.kv, layer.n_kv_heads * layer.head_dim);
    w.head_dim = std::max(w.head_dim, layer.head_dim);
  }
  return w;
}

}  // namespace

Gemma4::Gemma4(const Config& config, const Weights& weights, Backend& backend, int64_t max_rows,
               int64_t max_logits)
    : cfg_(config), w_(weights), be_(backend) {
  const Widths w = widest(config);
  freq_[0] = rope_frequencies(config.rope_global, weights.rope_factors);
  freq_[1] = rope_frequencies(config.rope_sliding, {});
  s_.x = be_.alloc(max_rows, config.d_model);
  s_.h = be_.alloc(max_rows, config.d_model);
  s_.y = be_.alloc(max_rows, config.d_model);
  s_.q = be_.alloc(max_rows, w.q);
  s_.a = be_.alloc(max_rows, w.q);
  s_.k = be_.alloc(max_rows, w.kv);
  s_.v = be_.alloc(max_rows, w.kv);
  s_.gate = be_.alloc(max_rows, config.d_ff);
  s_.up = be_.alloc(max_rows, config.d_ff);
  s_.logits = be_.alloc(max_logits, config.n_vocab);
  for (int kind = 0; kind < 2; ++kind) {
    s_.cos[kind] = be_.alloc(max_rows, static_cast<int64_t>(freq_[kind].size()));
    s_.sin[kind] = be_.alloc(max_rows, static_cast<int64_t>(freq_[kind].size()));
    lo_[kind].resize(static_cast<size_t>(max_rows));
  }
  hi_.resize(static_cast<size_t>(max_rows));
  runs_.reserve(static_cast<size_t>(max_rows));
  be_.reserve(max_rows, std::max({config.d_model, config.d_ff, w.q}), w.head_dim);
}

int64_t Gemma4::scratch_bytes(const Config& config, int64_t max_rows, int64_t max_logits) {
  const Widths w = widest(config);
  const int64_t widest_input = std::max({config.d_model, config.d_ff, w.q});
  const int64_t floats =
      max_rows * (3 * config.d_model + 2 * w.q + 2 * w.kv + 2 * config.d_ff + 2 * w.head_dim) +
      max_logits * config.n_vocab;
  return floats * static_cast<int64_t>(sizeof(float)) +
         max_rows * widest_input * 5 / 2;  // + the quantized inputs
}

}  // namespace gemmule
