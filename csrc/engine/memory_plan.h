// How much memory a model needs, from its header alone.
#pragma once

#include <cstdint>

#include "gguf/gguf_reader.h"
#include "model/config.h"
#include "model/kv_types.h"

namespace gemmule {

struct MemoryPlan {
  int64_t weights = 0;    // mapped from the file, shared between processes; without tables read by the row
  int64_t kv = 0;         // keys and values of one session at n_ctx positions
  int64_t scratch = 0;    // activations of one step, and the piece of the weights that is being packed
  int64_t media = 0;      // embedders, and what an image needs beyond steps of text; 0 without embedders
  int64_t drafter = 0;    // its weights, mapped as well, and what a step of it works in; 0 without one
  int64_t snapshots = 0;  // of one session: what it may keep for going back
  int64_t total = 0;
  int64_t available = 0;  // what this process may still take, now; 0 when unknown
};

inline constexpr int64_t kAutoSnapshots = -1;

// mmproj, drafter: the file of the embedders and that of the drafter, or null. snapshot_limit: of the
// session, in bytes or kAutoSnapshots. packing: whether the weights may be packed in memory. Throws
// FormatError or UnsupportedError for a file that could not be loaded either.
MemoryPlan plan_memory(const GgufFile& file, int64_t n_ctx, KvTypes kv_types, int64_t n_ubatch,
                       const GgufFile* mmproj = nullptr, const GgufFile* drafter = nullptr,
                       int64_t snapshot_limit = 0, bool packing = true);

// What an image of n_rows tokens, which is always one step, needs beyond steps of n_ubatch rows of text.
int64_t image_bytes(const Config& config, int64_t n_ctx, KvTypes kv_types, int64_t n_ubatch, int64_t n_rows);

// The limit that kAutoSnapshots stands for: what one place to go back to can need (window_bytes), 256 MiB at
// least, an eighth of what is available at most.
int64_t auto_snapshot_bytes(int64_t window_bytes, int64_t available);

// Memory this process can still take: the least of what the system reports and what a control group leaves.
int64_t available_memory();

}  // namespace gemmule
