// What the benchmarks in C++ share: clocks, memory of a given page size and reading it, products (all from
// the core's roofline), and random numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "backend/cpu/read_memory.h"
#include "backend/cpu/roofline_product.h"
#include "core/dtype.h"

namespace gemmule::bench {

// Random numbers of a type of the cache, about 2^-7 to 1 in size: what they are does not change the time, as
// long as none is subnormal.
inline void fill_numbers(DType dtype, uint8_t* at, size_t n_bytes, Lcg& random) {
  for (size_t i = 0; i + 2 <= n_bytes; i += 2) {
    auto bits = static_cast<uint16_t>(random.next());
    if (dtype == DType::F16) bits = static_cast<uint16_t>((bits & 0x9fff) | 0x2000);
    if (dtype == DType::F32 && i % 4 == 2) bits = static_cast<uint16_t>((bits & 0x81ff) | 0x3c00);
    if (dtype == DType::Q8_0 && i % 34 == 0) bits = 0x2000;  // the scale of a block
    std::memcpy(at + i, &bits, sizeof bits);
  }
}

}  // namespace gemmule::bench
