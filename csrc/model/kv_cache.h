// Keys and values of one sequence. Sliding layers keep a ring of window + step positions, whatever the
// context; global layers keep the whole context; layers that share the cache of an earlier one have no memory
// of their own. Pages are taken from the system as positions are first written.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "model/config.h"

namespace gemmule {

class KvCache {
 public:
  // n_ctx: positions; max_rows: rows of the largest step. dtype: F16 or F32.
  KvCache(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows);

  // What layer i reads: its own keys and values, or those it shares.
  const KvView& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  int64_t n_ctx() const { return n_ctx_; }
  int64_t size_bytes() const { return memory_.size(); }

  // Whether positions [0, n) can be continued after positions up to `written` were stored: the sliding rings
  // must still hold the last window before n.
  bool can_rewind(int64_t n, int64_t written) const;

  static int64_t plan_bytes(const Config& config, int64_t n_ctx, DType dtype, int64_t max_rows);

 private:
  int64_t n_ctx_;
  int64_t window_;
  int64_t sliding_ring_;
  Arena memory_;
  std::vector<KvView> layers_;
};

}  // namespace gemmule
