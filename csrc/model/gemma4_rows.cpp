// What the forward pass stands on: where the rows of a batch are, and the memory of a step.
#include <algorithm>

#include "model/gemma4.h"
#include "model/rope.h"

namespace gemmule {

// Where each row stands: its rotary angles, what it may see, and whose cache it writes.
void Gemma4::place_rows(const Batch& batch) {
  n_ = static_cast<int64_t>(batch.pos.size());
  // A drafter's row stands at a position that is not in the cache yet.
  const int64_t sees_itself = cfg_.owns_kv() ? 1 : 0;
  for (int kind = 0; kind < 2; ++kind)
    rope_angles(freq_[kind], batch.pos, s_.cos[kind].data, s_.sin[kind].data);
  for (size_t i = 0; i < batch.pos.size(); ++i) {
    lo_[0][i] = 0;
    lo_[1][i] = std::max<int64_t>(0, batch.pos[i] - (cfg_.window - 1));
    hi_[0][i] = hi_[1][i] = batch.pos[i] + sees_itself;
  }
  for (const Batch::Media& m : batch.media) {
    if (!m.is_block) continue;
    const int64_t end = batch.pos[static_cast<size_t>(m.row + m.n_rows - 1)] + 1;
    std::fill_n(hi_[1].begin() + m.row, m.n_rows, end);
  }
  runs_.clear();
  for (const Batch::Sequence& s : batch.sequences) runs_.push_back({s.row, s.n_rows, {}});
}

namespace {

// Per row of a step, over all layers.
struct Widths {
  int64_t q = 0, kv = 0, d_ff = 0, d_ff_expert = 0, head_dim = 0;
  int64_t input = 0;  // numbers of the largest input of a product; those of all its experts count together
  int64_t ple = 0;
  int64_t pairs = 0;  // experts of a row

  explicit Widths(const Config& config)
      : input(config.d_model), ple(config.n_layers * config.d_ple), pairs(config.n_experts_used) {
    for (const LayerConfig& layer : config.layers) {
      q = std::max(q, layer.q_width());
      kv = std::max(kv, layer.kv_width());
      d_ff = std::max(d_ff, layer.d_ff);
      d_ff_expert = std::max(d_ff_expert, layer.d_ff_expert);
      head_dim = std::max(head_dim, layer.head_dim);
    }
    input = std::max({input, q, d_ff, config.d_ple, pairs * config.d_model, pairs * d_ff_expert});
  }
};

}  // namespace

Gemma4::Gemma4(const Config& config, const Weights& weights, Backend& backend, int64_t max_rows,
               int64_t max_logits)
    : cfg_(config), w_(weights), be_(backend) {
  const Widths w(config);
  freq_[0] = rope_frequencies(config.rope_global, weights.rope_factors);
  freq_[1] = rope_frequencies(config.rope_sliding, {});
  s_.x = be_.alloc(max_rows, config.d_model);
  s_.h = be_.alloc(max_rows, config.d_model);
  s_.y = be_.alloc(max_rows, config.d_model);
  s_.q = be_.alloc(max_rows, w.q);
  s_.a = be_.alloc(max_rows, w.q);
  s_.k = be_.alloc(max_rows, w.kv);
  s_.v = be_.alloc(max_rows, w.kv);
  s_.gate = be_.alloc(max_rows, w.d_ff);
  s_.up = be_.alloc(max_rows, w.d_ff);
  s_.logits = be_.alloc(max_logits, config.n_vocab);
  for (int kind = 0; kind < 2; ++kind) {
    s_.cos[kind] = be_.alloc(max_rows, static_cast<int64_t>(freq_[kind].size()));
    s_.sin[kind] = be_.alloc(max_rows, static_cast<int64_t>(freq_[kind].size()));
    lo_[kind].resize(static_cast<size_t>(max_rows));
    hi_[kind].resize(static_cast<size_t>(max_rows));
  }
  if (config.d_ple > 0) {
    s_.ple = be_.alloc(max_rows, w.ple);
    s_.ple_token = be_.alloc(max_rows, w.ple);
    s_.ple_gate = be_.alloc(max_rows, config.d_ple);
  }
  if (config.n_experts > 0) {
    s_.scores = be_.alloc(max_rows, config.n_experts);
    s_.u = be_.alloc(max_rows, config.d_model);
    s_.pairs = be_.alloc(max_rows * w.pairs, config.d_model);
    s_.expert_gate = be_.alloc(max_rows * w.pairs, w.d_ff_expert);
    s_.expert_up = be_.alloc(max_rows * w.pairs, w.d_ff_expert);
    s_.routes = be_.alloc_routes(max_rows, config.n_experts, w.pairs);
  }
  runs_.reserve(static_cast<size_t>(max_rows));
  be_.reserve(max_rows, w.input, w.head_dim);
}

int64_t Gemma4::scratch_bytes(const Config& config, int64_t max_rows, int64_t max_logits) {
  const Widths w(config);
  int64_t row =
      3 * config.d_model + 2 * w.q + 2 * w.kv + 2 * w.d_ff + 2 * w.head_dim;  // numbers, 4 bytes each
  if (config.d_ple > 0) row += 2 * w.ple + config.d_ple;
  if (config.n_experts > 0)
    row += config.n_experts + config.d_model + w.pairs * (config.d_model + 2 * w.d_ff_expert + 4);
  return (max_rows * row + max_logits * config.n_vocab) * static_cast<int64_t>(sizeof(float)) +
         max_rows * w.input * 5 / 2;  // + the quantized inputs
}

}  // namespace gemmule
