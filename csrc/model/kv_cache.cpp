#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>

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

int64_t layer_bytes(const LayerConfig& layer, int64_t ring, DType dtype) {
  return layer.owns_kv() ? 2 * ring * layer.n_kv_heads * layer.head_dim * dtype_info(dtype).block_bytes : 0;
}

KvView view_of(const LayerConfig& layer, int64_t ring, DType dtype, const Arena& memory) {
  return {dtype, layer.n_kv_heads, layer.head_dim, ring, memory.data(), memory.data() + memory.size() / 2};
}

// Positions [begin, end), which both have slots for.
void move_positions(const KvView& from, const KvView& to, int64_t begin, int64_t end) {
  const int64_t slot_bytes = from.head_dim * dtype_info(from.dtype).block_bytes;
  for (int64_t p = begin, n; p < end; p += n) {  // runs that wrap in neither ring
    n = std::min({end - p, from.ring - p % from.ring, to.ring - p % to.ring});
    for (int64_t head = 0; head < from.n_kv_heads; ++head) {
      const int64_t source = (head * from.ring + p % from.ring) * slot_bytes;
      const int64_t target = (head * to.ring + p % to.ring) * slot_bytes;
      std::memcpy(to.k + target, from.k + source, static_cast<size_t>(n * slot_bytes));
      std::memcpy(to.v + target, from.v + source, static_cast<size_t>(n * slot_bytes));
    }
  }
}

}  // namespace

int64_t KvCache::plan_bytes(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows) {
  int64_t n_bytes = 0;
  for (const LayerConfig& layer : config.layers)
    n_bytes += layer_bytes(layer, ring_of(layer.is_sliding, config.window, n_ctx, max_rows), dtype);
  return n_bytes;
}

KvCache::KvCache(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows)
    : n_ctx_(n_ctx),
      window_(config.window),
      sliding_ring_(ring_of(true, config.window, n_ctx, max_rows)),
      dtype_(dtype),
      shapes_(config.layers) {
  for (const LayerConfig& layer : shapes_) {
    const int64_t ring = layer.is_sliding ? sliding_ring_ : round_up(n_ctx);
    memory_.emplace_back(layer_bytes(layer, ring, dtype));
    layers_.push_back(layer.owns_kv() ? view_of(layer, ring, dtype, memory_.back())
                                      : layers_[static_cast<size_t>(layer.kv_from)]);
  }
}

int64_t KvCache::size_bytes() const {
  int64_t n_bytes = 0;
  for (const Arena& memory : memory_) n_bytes += memory.size();
  return n_bytes;
}

int64_t KvCache::bytes_for_rows(int64_t max_rows) const {
  const int64_t ring = std::max(sliding_ring_, ring_of(true, window_, n_ctx_, max_rows));
  int64_t n_bytes = 0;
  for (const LayerConfig& layer : shapes_)
    n_bytes += layer_bytes(layer, layer.is_sliding ? ring : round_up(n_ctx_), dtype_);
  return n_bytes;
}

void KvCache::reserve_rows(int64_t max_rows) {
  const int64_t ring = ring_of(true, window_, n_ctx_, max_rows), held = first_held();
  if (ring <= sliding_ring_) return;
  for (size_t i = 0; i < shapes_.size(); ++i) {
    const LayerConfig& layer = shapes_[i];
    if (!layer.owns_kv()) {
      layers_[i] = layers_[static_cast<size_t>(layer.kv_from)];
    } else if (layer.is_sliding && layers_[i].ring < ring) {
      Arena larger(layer_bytes(layer, ring, dtype_));
      const KvView view = view_of(layer, ring, dtype_, larger);
      move_positions(layers_[i], view, held, written_);
      memory_[i] = std::move(larger);
      layers_[i] = view;
    }
  }
  sliding_ring_ = ring;
  first_held_ = held;
}

void KvCache::will_write(int64_t end) { written_ = std::max(written_, end); }

int64_t KvCache::first_held() const { return std::max(first_held_, written_ - sliding_ring_); }

bool KvCache::can_rewind(int64_t n) const {
  return n == 0 || std::max<int64_t>(0, n - (window_ - 1)) >= first_held();
}

}  // namespace gemmule
