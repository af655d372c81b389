// Keys and values of one sequence. Sliding layers keep a ring of window + step positions, whatever the
// context; global layers keep the whole context; layers that share the cache of an earlier one have no memory
// of their own. Where the numbers of a key that do not turn are a weight times those of the value, only the
// others are kept (KvView::n_turned). Address space is reserved for all positions; pages are taken from the
// system as positions are first written and given back when many are given up. A step of more rows than the
// rings are made for (a long image) lets the rings grow; sequences of text never pay for that.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "core/stop_token.h"
#include "model/config.h"
#include "model/kv_types.h"

namespace gemmule {

// One array that a layer with a cache of its own keeps, whatever the number format: the bytes of position p
// of a head are row p % ring.
struct KvPlane {
  uint8_t* data = nullptr;  // [n_heads][ring][row_bytes]
  int64_t n_heads = 0, ring = 0, row_bytes = 0;
};

// Positions [begin, end) between planes of one shape that have slots for all of them.
void copy_positions(const KvPlane& from, const KvPlane& to, int64_t begin, int64_t end);

class KvCache {
 public:
  // max_rows: rows of the largest step.
  KvCache(const Config& config, int64_t n_ctx, KvTypes types, int64_t max_rows);

  // What layer i reads: its own keys and values, or those it shares.
  const KvView& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  int64_t n_ctx() const { return n_ctx_; }

  // What a copy of layer i consists of; empty where it shares the cache of another one.
  std::vector<KvPlane> planes(int64_t i) const;
  int64_t n_layers() const { return static_cast<int64_t>(shapes_.size()); }
  bool is_sliding(int64_t i) const { return shapes_[static_cast<size_t>(i)].is_sliding; }
  int64_t ring(int64_t i) const { return layers_[static_cast<size_t>(i)].ring; }
  int64_t window() const { return window_; }
  const KvTypes& types() const { return types_; }
  int64_t size_bytes() const;  // reserved
  int64_t used_bytes() const;  // in memory, in whole pages

  // Makes room for steps of max_rows rows. Rings that are too small move to larger memory with all they hold.
  void reserve_rows(int64_t max_rows);
  // Bytes of all rings after `reserve_rows(max_rows)`.
  int64_t bytes_for_rows(int64_t max_rows) const;

  // To be told before positions up to `end` are stored, and when all of them are given up.
  void will_write(int64_t end);
  void clear() { written_ = first_held_ = 0; }
  // Gives back the memory of the global layers behind position n, where that is much: positions from there on
  // are stored again before they are read.
  void give_up(int64_t n);

  // Whether positions [0, n) can be continued: the sliding rings must still hold the last window before n.
  bool can_rewind(int64_t n) const;

  // The positions that the sliding rings hold: [first_held(), written()).
  int64_t first_held() const { return first_held_after(written_); }
  int64_t first_held_after(int64_t end) const;  // once positions up to `end` are stored
  int64_t written() const { return written_; }
  // Takes the first n positions, or what of them `other` still holds, of a cache of the same layers.
  void copy_from(const KvCache& other, int64_t n, const StopToken* stop);
  // To be told that the rings were filled from a copy and now hold [first, end).
  void filled(int64_t first, int64_t end);

  static int64_t plan_bytes(const Config& config, int64_t n_ctx, KvTypes types, int64_t max_rows);

 private:
  int64_t n_ctx_;
  int64_t window_;
  int64_t sliding_ring_;
  int64_t written_ = 0;     // one past the highest position ever stored
  int64_t first_held_ = 0;  // older ones were lost before the rings last grew
  int64_t touched_ = 0;     // one past the highest position whose pages may be in memory
  KvTypes types_;
  std::vector<LayerConfig> shapes_;
  std::vector<Arena> memory_;  // of each layer, keys then values; empty where they are shared
  std::vector<KvView> layers_;
};

}  // namespace gemmule
