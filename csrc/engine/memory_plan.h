// How much memory a model needs, from its header alone.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "gguf/gguf_reader.h"

namespace gemmule {

struct MemoryPlan {
  int64_t weights = 0;  // mapped from the file, shared between processes; without tables read by the row
  int64_t kv = 0;       // keys and values of one session at n_ctx positions
  int64_t scratch = 0;  // activations of one step, and the piece of the weights that is being packed
  int64_t media = 0;    // embedders, and what an image needs beyond steps of text; 0 without embedders
  int64_t total = 0;
  int64_t available = 0;  // what this process may still take, now; 0 when unknown
};

// mmproj: the file of the embedders, or null. Throws FormatError or UnsupportedError for a file that could
// not be loaded either.
MemoryPlan plan_memory(const GgufFile& file, int64_t n_ctx, DType kv_type, int64_t n_ubatch,
                       const GgufFile* mmproj = nullptr);

// Memory this process can still take: the least of what the system reports and what a control group leaves.
int64_t available_memory();

}  // namespace gemmule
