#include "model/kv_cache.h"

#include <algorithm>

namespace gemmule {
namespace {

constexpr int64_t kChunk =
    256;  // attention works in chunks of 256 positions, which must not wrap inside a ring

int64_t round_up(int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }

// A step of max_rows rows at positions p.. still needs the window - 1 positions before p.
int64_t ring_of(bool is_sliding, int64_t window, int64_t n_ctx, int64_t max_rows) {
  const int64_t whole = round_up(n_ctx);
  return is_sliding ? std::min(whole, round_up(window - 1 + max_rows)) : whole;
}

int64_t layer_bytes(const Config& config, const LayerConfig& layer, int64_t n_ctx, DType dtype,
                    int64_t max_rows) {
  if (!layer.owns_kv()) return 0;
  const int64_t ring = ring_of(layer.is_sliding, config.window, n_ctx, max_rows);
  return 2 * ring * layer.n_kv_heads * layer.head_dim * dtype_info(dtype).block_bytes;
}

}  // namespace

int64_t KvCache::plan_bytes(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows) {
  int64_t n_bytes = 0;
  for (const LayerConfig& layer : config.layers)
    n_bytes += layer_bytes(config, layer, n_ctx, dtype, max_rows);
  return n_bytes;
}

KvCache::KvCache(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows)
    : n_ctx_(n_ctx),
      window_(config.window),
      sliding_ring_(ring_of(true, config.window, n_ctx, max_rows)),
      memory_(plan_bytes(config, n_ctx, dtype, max_rows)) {
  uint8_t* next = memory_.data();
  for (const LayerConfig& layer : config.layers) {
    if (!layer.owns_kv()) {
      layers_.push_back(layers_[static_cast<size_t>(layer.kv_from)]);
      continue;
    }
    const int64_t half = layer_bytes(config, layer, n_ctx, dtype, max_rows) / 2;
    layers_.push_back({dtype, layer.n_kv_heads, layer.head_dim,
                       ring_of(layer.is_sliding, config.window, n_ctx, max_rows), next, next + half});
    next += 2 * half;
  }
}

bool KvCache::can_rewind(int64_t n, int64_t written) const {
  const int64_t oldest_needed = std::max<int64_t>(0, n - (window_ - 1));
  return written <= oldest_needed + sliding_ring_;
}

}  // namespace gemmule
