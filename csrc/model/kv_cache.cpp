#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>

namespace gemmule {
namespace {

// Attention works in chunks of 256 positions, which must not wrap inside a ring.
constexpr int64_t kChunk = 256;
constexpr int64_t kFewPositions = 4096;  // whose pages are kept: taking them from the system again costs time
constexpr int64_t kPage = 4096;

int64_t round_up(int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }

// A step of max_rows rows at positions p.. still needs the window - 1 positions before p.
int64_t ring_of(bool is_sliding, int64_t window, int64_t n_ctx, int64_t max_rows) {
  const int64_t whole = round_up(n_ctx);
  return is_sliding ? std::min(whole, round_up(window - 1 + max_rows)) : whole;
}

KvView shape_of(const LayerConfig& layer, int64_t ring, KvTypes types) {
  return {
      types.of(layer.is_sliding), layer.n_kv_heads, layer.head_dim, ring, nullptr, nullptr, layer.n_turned};
}

int64_t layer_bytes(const LayerConfig& layer, int64_t ring, KvTypes types) {
  const KvView view = shape_of(layer, ring, types);
  return layer.owns_kv() ? ring * layer.n_kv_heads * (view.k_row() + view.v_row()) : 0;
}

KvView view_of(const LayerConfig& layer, int64_t ring, KvTypes types, const Arena& memory) {
  KvView view = shape_of(layer, ring, types);
  view.k = memory.data();
  view.v = memory.data() + ring * layer.n_kv_heads * view.k_row();
  return view;
}

}  // namespace

void copy_positions(const KvPlane& from, const KvPlane& to, int64_t begin, int64_t end) {
  for (int64_t p = begin, n; p < end; p += n) {  // runs that wrap in neither ring
    n = std::min({end - p, from.ring - p % from.ring, to.ring - p % to.ring});
    for (int64_t head = 0; head < from.n_heads; ++head)
      std::memcpy(to.data + (head * to.ring + p % to.ring) * to.row_bytes,
                  from.data + (head * from.ring + p % from.ring) * from.row_bytes,
                  static_cast<size_t>(n * from.row_bytes));
  }
}

int64_t KvCache::plan_bytes(const Config& config, int64_t n_ctx, KvTypes types, int64_t max_rows) {
  int64_t n_bytes = 0;
  for (const LayerConfig& layer : config.layers)
    n_bytes += layer_bytes(layer, ring_of(layer.is_sliding, config.window, n_ctx, max_rows), types);
  return n_bytes;
}

KvCache::KvCache(const Config& config, int64_t n_ctx, KvTypes types, int64_t max_rows)
    : n_ctx_(n_ctx),
      window_(config.window),
      sliding_ring_(ring_of(true, config.window, n_ctx, max_rows)),
      types_(types),
      shapes_(config.layers) {
  for (const LayerConfig& layer : shapes_) {
    const int64_t ring = layer.is_sliding ? sliding_ring_ : round_up(n_ctx);
    memory_.emplace_back(layer_bytes(layer, ring, types));
    layers_.push_back(layer.owns_kv() ? view_of(layer, ring, types, memory_.back())
                                      : layers_[static_cast<size_t>(layer.kv_from)]);
  }
}

int64_t KvCache::size_bytes() const {
  int64_t n_bytes = 0;
  for (const Arena& memory : memory_) n_bytes += memory.size();
  return n_bytes;
}

int64_t KvCache::used_bytes() const {
  int64_t n_bytes = 0;
  for (int64_t i = 0; i < n_layers(); ++i)
    for (const KvPlane& plane : planes(i)) {
      const int64_t each = std::min(touched_, plane.ring) * plane.row_bytes;
      n_bytes += plane.n_heads * std::min((each + kPage - 1) / kPage * kPage, plane.ring * plane.row_bytes);
    }
  return n_bytes;
}

void KvCache::give_up(int64_t n) {
  if (touched_ - n < kFewPositions) return;
  for (int64_t i = 0; i < n_layers(); ++i) {
    if (is_sliding(i)) continue;
    for (const KvPlane& plane : planes(i))
      for (int64_t head = 0; head < plane.n_heads; ++head)
        release_pages(plane.data + (head * plane.ring + n) * plane.row_bytes,
                      (touched_ - n) * plane.row_bytes);
  }
  touched_ = n;
}

int64_t KvCache::bytes_for_rows(int64_t max_rows) const {
  const int64_t ring = std::max(sliding_ring_, ring_of(true, window_, n_ctx_, max_rows));
  int64_t n_bytes = 0;
  for (const LayerConfig& layer : shapes_)
    n_bytes += layer_bytes(layer, layer.is_sliding ? ring : round_up(n_ctx_), types_);
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
      Arena larger(layer_bytes(layer, ring, types_));
      const std::vector<KvPlane> from = planes(static_cast<int64_t>(i));
      std::swap(memory_[i], larger);  // `from` stays valid until the end of the block
      layers_[i] = view_of(layer, ring, types_, memory_[i]);
      const std::vector<KvPlane> to = planes(static_cast<int64_t>(i));
      for (size_t k = 0; k < to.size(); ++k) copy_positions(from[k], to[k], held, written_);
    }
  }
  sliding_ring_ = ring;
  first_held_ = held;
}

std::vector<KvPlane> KvCache::planes(int64_t i) const {
  if (!shapes_[static_cast<size_t>(i)].owns_kv()) return {};
  const KvView& layer = this->layer(i);
  return {{layer.k, layer.n_kv_heads, layer.ring, layer.k_row()},
          {layer.v, layer.n_kv_heads, layer.ring, layer.v_row()}};
}

void KvCache::copy_from(const KvCache& other, int64_t n, const StopToken* stop) {
  constexpr int64_t kPiece = 4096;  // positions between two looks at the stop token
  const int64_t held = std::min(n, std::max(other.first_held(), n - sliding_ring_));
  for (int64_t i = 0; i < n_layers(); ++i) {
    const std::vector<KvPlane> from = other.planes(i), to = planes(i);
    for (size_t k = 0; k < to.size(); ++k)
      for (int64_t p = is_sliding(i) ? held : 0; p < n; p += kPiece) {
        if (stop != nullptr) stop->check();
        copy_positions(from[k], to[k], p, std::min(n, p + kPiece));
      }
  }
  filled(held, n);
}

void KvCache::filled(int64_t first, int64_t end) {
  first_held_ = first;
  written_ = end;
  touched_ = std::max(touched_, end);
}

void KvCache::will_write(int64_t end) {
  written_ = std::max(written_, end);
  touched_ = std::max(touched_, end);
}

int64_t KvCache::first_held_after(int64_t end) const {
  return std::max(first_held_, std::max(written_, end) - sliding_ring_);
}

bool KvCache::can_rewind(int64_t n) const {
  return n == 0 || std::max<int64_t>(0, n - (window_ - 1)) >= first_held();
}

}  // namespace gemmule
