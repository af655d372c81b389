// The forward pass of Gemma 3 and Gemma 4 text models. Formulas and names: docs/MODEL.md.
//
//   x = sqrt(d_model) * embed[token]           rows of images and sound: the vector they come with
//   each layer:  x += post_norm(Wo attend(norm(x)))
//                x += post_norm(ffn(x))     ffn(x) = Wdown(gelu(Wgate norm(x)) * (Wup norm(x)))
//                x += post_norm(Wproj(gelu(Wple x) * ple[layer]))           (E2B, E4B)
//                x *= out_scale                                             (Gemma 4)
//   y = norm(x),  logits = cap * tanh(embed y / cap)                        (cap: Gemma 4)
//
// Sliding layers see the last `window` positions and keep a ring; global layers see all. The rows of an image
// see each other on sliding layers, the later ones too. In Gemma 4 the two
// kinds also differ in head size, key/value heads and rotary angles, and where a global layer has no Wv its
// values are the keys before their norm and rotation; its cache then keeps of a key only the numbers that
// turn, and q_norm carries the weight of k_norm for the others (weights.cpp). The last layers of E2B and E4B
// read the keys and values of an earlier layer. In 26B-A4B ffn(x) has a second term, the experts that the
// router chose for each row.
#include "model/gemma4.h"

#include <cmath>

namespace gemmule {
namespace {

void show(const Tap* tap, const char* name, size_t layer, Rows values) {
  if (tap) tap->values(name, static_cast<int64_t>(layer), values);
}
void show(const Tap* tap, const char* name, Rows values) {
  if (tap) tap->values(name, -1, values);
}
void show_experts(const Tap* tap, const char* name, size_t layer, Rows values, const Routes& routes) {
  if (!tap || !tap->experts) return;
  for (int64_t b = 0; b < routes.n_busy; ++b) {
    const int64_t e = routes.busy[b], first = routes.first[e];
    tap->experts(name, static_cast<int64_t>(layer), e, values.from(first, routes.first[e + 1] - first));
  }
}

}  // namespace

Rows Gemma4::forward(const Batch& batch, const StopToken* stop, const Tap* tap) {
  const Rows x = stream(static_cast<int64_t>(batch.tokens.size()));
  be_.embed(x, w_.embed, batch.tokens, cfg_.embed_scale);
  for (const Batch::Media& m : batch.media) be_.write(x.from(m.row, m.n_rows), m.vectors);
  show(tap, "embed", x);
  return run_layers(batch, stop, tap);
}

Rows Gemma4::run_layers(const Batch& batch, const StopToken* stop, const Tap* tap) {
  place_rows(batch);
  const Rows x = stream(n_), y = s_.y.first(n_);
  if (cfg_.d_ple > 0) embed_per_layer(batch, tap);
  for (size_t i = 0; i < w_.layers.size(); ++i) {
    if (stop) stop->check();
    attention(i, batch, tap);
    feed_forward(i, tap);
    if (cfg_.d_ple > 0) per_layer_input(i, tap);
    if (cfg_.has_out_scale) be_.scale(x, w_.layers[i].out_scale);
    show(tap, "layer_out", i, x);
  }
  be_.rms_norm(y, x, w_.output_norm, cfg_.rms_eps);
  show(tap, "output_norm", y);
  return y;
}

void Gemma4::attention(size_t i, const Batch& batch, const Tap* tap) {
  const LayerWeights& l = w_.layers[i];
  const LayerConfig& c = cfg_.layers[i];
  const Rows x = s_.x.first(n_), h = s_.h.first(n_);
  const Rows q = s_.q.as(n_, c.q_width()), k = s_.k.as(n_, c.kv_width()), v = s_.v.as(n_, c.kv_width()),
             a = s_.a.as(n_, c.q_width());
  const Rows cos = s_.cos[c.is_sliding].first(n_), sin = s_.sin[c.is_sliding].first(n_);
  for (size_t r = 0; r < runs_.size(); ++r)
    runs_[r].kv = batch.sequences[r].kv->layer(c.owns_kv() ? static_cast<int64_t>(i) : c.kv_from);

  be_.rms_norm(h, x, l.attn_norm, cfg_.rms_eps);
  show(tap, "attn_in", i, h);
  const Product qkv[] = {{q, l.wq}, {k, l.wk}, {v, l.wv}};
  be_.matmul(std::span(qkv).first(l.wv ? 3 : l.wk ? 2 : 1), h);
  be_.head_norm_rope(q, c.head_dim, l.q_norm, cfg_.rms_eps, cos, sin, cfg_.attn_scale);
  if (c.owns_kv()) {
    if (!l.wv) be_.copy(v, k);  // V is K before its norm and rotation
    be_.head_norm_rope(k, c.head_dim, l.k_norm, cfg_.rms_eps, cos, sin, 1);
    if (cfg_.v_norm) be_.head_norm_rope(v, c.head_dim, {}, cfg_.rms_eps, {}, {}, 1);
    be_.kv_append(runs_, k, v, batch.pos);
  }
  be_.attend(a, q, runs_, lo_[c.is_sliding], hi_[c.is_sliding]);
  show(tap, "attn_heads", i, a);
  be_.matmul(h, l.wo, a);
  be_.add_rms_norm(x, h, l.attn_post_norm, cfg_.rms_eps);
  show(tap, "attn_out", i, x);
}

void Gemma4::feed_forward(size_t i, const Tap* tap) {
  const LayerWeights& l = w_.layers[i];
  const int64_t d_ff = cfg_.layers[i].d_ff;
  const Rows x = s_.x.first(n_), h = s_.h.first(n_), gate = s_.gate.as(n_, d_ff), up = s_.up.as(n_, d_ff);
  be_.rms_norm(h, x, l.ffn_norm, cfg_.rms_eps);
  show(tap, "ffn_in", i, h);
  be_.gated_gelu(gate, up, l.gate, l.up, h);
  show(tap, "ffn_act", i, gate);
  be_.matmul(h, l.down, gate);
  if (cfg_.n_experts > 0) add_experts(i, h, tap);
  be_.add_rms_norm(x, h, l.ffn_post_norm, cfg_.rms_eps);
  show(tap, "ffn_out", i, x);
}

// h = norm(h) + norm(sum over the chosen experts e of weight[e] * expert_e(norm(x)))
void Gemma4::add_experts(size_t i, Rows h, const Tap* tap) {
  const LayerWeights& l = w_.layers[i];
  Routes& routes = s_.routes;
  const int64_t n_pairs = n_ * cfg_.n_experts_used, d_ff = cfg_.layers[i].d_ff_expert;
  const Rows x = s_.x.first(n_), u = s_.u.first(n_), scores = s_.scores.first(n_);
  const Rows pairs = s_.pairs.first(n_pairs), gate = s_.expert_gate.as(n_pairs, d_ff),
             up = s_.expert_up.as(n_pairs, d_ff);

  be_.rms_norm(u, x, l.router_scale, cfg_.rms_eps);
  be_.scale(u, 1 / std::sqrt(static_cast<float>(cfg_.d_model)));
  show(tap, "router_in", i, u);
  be_.matmul(scores, l.router, u);
  be_.route(routes, scores, l.expert_scale);

  be_.rms_norm(u, x, l.expert_norm, cfg_.rms_eps);
  be_.gather(pairs, u, routes);
  show_experts(tap, "expert_in", i, pairs, routes);
  be_.expert_gated_gelu(gate, up, l.expert_gate, l.expert_up, pairs, routes);
  show_experts(tap, "expert_act", i, gate, routes);
  be_.expert_matmul(pairs, l.expert_down, gate, routes);
  be_.expert_sum(u, pairs, routes);

  be_.rms_norm(h, h, l.dense_post_norm, cfg_.rms_eps);
  be_.add_rms_norm(h, u, l.expert_post_norm, cfg_.rms_eps);
}

// ple = (norm(Wple_in x / sqrt(d_model)) + sqrt(d_ple) * ple_embed[token]) / sqrt(2), d_ple numbers a layer
void Gemma4::embed_per_layer(const Batch& batch, const Tap* tap) {
  const Rows x = s_.x.first(n_), ple = s_.ple.first(n_), token = s_.ple_token.first(n_);
  show(tap, "ple_model_in", x);
  be_.matmul(ple, w_.ple_in, x);
  be_.scale(ple, 1 / std::sqrt(static_cast<float>(cfg_.d_model)));
  be_.head_norm_rope(ple, cfg_.d_ple, w_.ple_norm, cfg_.rms_eps, {}, {}, 1);
  be_.embed(token, w_.ple_embed, batch.tokens, std::sqrt(static_cast<float>(cfg_.d_ple)));
  be_.add(ple, token);
  be_.scale(ple, std::sqrt(0.5f));
}

void Gemma4::per_layer_input(size_t i, const Tap* tap) {
  const LayerWeights& l = w_.layers[i];
  const Rows x = s_.x.first(n_), h = s_.h.first(n_), g = s_.ple_gate.first(n_);
  show(tap, "ple_in", i, x);
  be_.matmul(g, l.ple_gate, x);
  be_.gelu_mul(g, g, s_.ple.first(n_), static_cast<int64_t>(i) * cfg_.d_ple);
  show(tap, "ple_act", i, g);
  be_.matmul(h, l.ple_proj, g);
  be_.add_rms_norm(x, h, l.ple_post_norm, cfg_.rms_eps);
}

Rows Gemma4::logits(Rows hidden) {
  const Rows z = s_.logits.first(hidden.n);
  be_.matmul(z, w_.output, hidden);
  if (cfg_.final_softcap > 0) be_.softcap(z, cfg_.final_softcap);
  return z;
}

}  // namespace gemmule
