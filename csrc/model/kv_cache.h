// Keys and values of one sequence. Sliding layers keep a ring of window + step positions, whatever the
// context; global layers keep the whole context; layers that share the cache of an earlier one have no memory
// of their own. Pages are taken from the system as positions are first written. A step of more rows than the
// rings are made for (a long image) lets the rings grow; sequences of text never pay for that.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "model/config.h"

namespace gemmule {

class KvCache {
 public:
  // max_rows: rows of the largest step. dtype: F16 or F32.
  KvCache(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows);

  // What layer i reads: its own keys and values, or those it shares.
  const KvView& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  int64_t n_ctx() const { return n_ctx_; }
  int64_t size_bytes() const;

  // Makes room for steps of max_rows rows. Rings that are too small move to larger memory with all they hold.
  void reserve_rows(int64_t max_rows);
  // Bytes of all rings after `reserve_rows(max_rows)`.
  int64_t bytes_for_rows(int64_t max_rows) const;

  // To be told before positions up to `end` are stored, and when all of them are given up.
  void will_write(int64_t end);
  void clear() { written_ = first_held_ = 0; }

  // Whether positions [0, n) can be continued: the sliding rings must still hold the last window before n.
  bool can_rewind(int64_t n) const;

  static int64_t plan_bytes(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows);

 private:
  int64_t first_held() const;  // the oldest position that the sliding rings hold

  int64_t n_ctx_;
  int64_t window_;
  int64_t sliding_ring_;
  int64_t written_ = 0;     // one past the highest position ever stored
  int64_t first_held_ = 0;  // older ones were lost before the rings last grew
  DType dtype_;
  std::vector<LayerConfig> shapes_;
  std::vector<Arena> memory_;  // of each layer, keys then values; empty where they are shared
  std::vector<KvView> layers_;
};

}  // namespace gemmule
