// How much memory a model needs, from its header alone.
#pragma once

#include <cstdint>

#include "gguf/gguf_reader.h"
#include "model/kv_types.h"

namespace gemmule {

struct MemoryPlan {
  int64_t weights = 0;  // mapped from the file, shared between processes; without tables read by the row
  int64_t kv = 0;       // keys and values of one session at n_ctx positions
  int64_t scratch = 0;  // activations of one step
  int64_t total = 0;
  int64_t available = 0;  // what this process may still take, now; 0 when unknown
};

// Throws FormatError or UnsupportedError for a file that could not be loaded either.
MemoryPlan plan_memory(const GgufFile& file, int64_t n_ctx, KvTypes kv_types, int64_t n_ubatch);

// Memory this process can still take: the least of what the system reports and what a control group leaves.
int64_t available_memory();

}  // namespace gemmule
