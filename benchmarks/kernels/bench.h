// What the benchmarks in C++ share: clocks, memory of a given page size and reading it, products (all from
// the core's roofline), random numbers, and the roofs that their shares are of.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "backend/cpu/read_memory.h"
#include "backend/cpu/roofline_product.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

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

// Seconds of a call: the best of several runs of some milliseconds.
template <class Call>
double seconds_of(const Call& call, double (*clock)()) {
  double best = 1e9;
  for (int run = 0; run < 12; ++run) {
    int64_t calls = 0;
    const double start = clock();
    double elapsed = 0;
    for (int64_t n = 1; elapsed < 3e-3; n *= 2) {
      for (int64_t i = 0; i < n; ++i) call();
      calls += n;
      elapsed = clock() - start;
    }
    best = std::min(best, elapsed / static_cast<double>(calls));
  }
  return best;
}

inline std::atomic<uint64_t> sink{0};  // what was read goes here, so that it must be read

// GB/s of one core, reading the same n_bytes again and again in the fastest way.
inline double cached_read(const uint8_t* p, int64_t n_bytes) {
  const size_t n = std::max<size_t>(static_cast<size_t>(n_bytes) / 1024 * 1024, 1024);
  double best = 1e9;
  for (const ReadWay way : kReadWays)
    best = std::min(best, seconds_of([&] { sink += read_memory(p, n, way) & 1; }, thread_seconds));
  return 1e-9 * static_cast<double>(n) / best;
}

// Seconds in which all threads read n_bytes, a slice each.
inline double read_together(ThreadPool& pool, const uint8_t* p, size_t n_bytes) {
  const double start = wall_seconds();
  const size_t slice = n_bytes / static_cast<size_t>(pool.n_threads()) / 1024 * 1024;
  pool.run(pool.n_threads(), [&](int64_t job, int) {
    sink += read_memory(p + static_cast<size_t>(job) * slice, slice, ReadWay{8, 1024});
  });
  return wall_seconds() - start;
}

}  // namespace gemmule::bench
