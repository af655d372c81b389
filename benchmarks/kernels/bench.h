// What the kernel benchmarks share: clocks, memory of a given page size and reading it (from the core's
// roofline), and random numbers.
#pragma once

#include <cstdint>

#include "backend/cpu/read_memory.h"

namespace gemmule::bench {

struct Lcg {
  uint64_t state = 1;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
};

}  // namespace gemmule::bench
