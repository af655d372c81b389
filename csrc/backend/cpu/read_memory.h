// Reading memory as fast as the machine can, for the roofline and the kernel benchmarks: clocks, memory of a
// given page size, and several ways to read it.
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemmule::bench {

inline double seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
inline double wall_seconds() { return seconds(CLOCK_MONOTONIC); }
inline double thread_seconds() { return seconds(CLOCK_THREAD_CPUTIME_ID); }

enum class PageSize : uint8_t { Small, Huge };

// Zeroed memory at a 2 MiB boundary, of 4 KB pages or (as far as the system grants them) of huge ones.
class Pages {
 public:
  Pages(size_t n_bytes, PageSize page_size) : n_bytes_(n_bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    mapped_bytes_ = n_bytes + kHuge;
    mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(mapped_) + kHuge - 1) / kHuge * kHuge);
#if defined(__linux__)
    madvise(data_, n_bytes, page_size == PageSize::Huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    (void)page_size;
#endif
    std::memset(data_, 0, n_bytes);
  }
  ~Pages() { munmap(mapped_, mapped_bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return n_bytes_; }

 private:
  void* mapped_;
  size_t mapped_bytes_, n_bytes_;
  uint8_t* data_;
};

// Ways to read memory: which one is fastest differs between machines, and the fastest one is the bandwidth.
// `ahead` is the distance of software prefetch (0: none); `streams` places are read in turns.
struct ReadWay {
  int streams;
  int ahead;
};
inline constexpr ReadWay kReadWays[] = {{1, 0}, {1, 1024}, {1, 2304}, {1, 4608}, {2, 1024},
                                        {4, 0}, {4, 1024}, {4, 2304}, {8, 1024}};

// The xor of n bytes at p (both multiples of 64 * streams), so that no load can be left out.
#if defined(__x86_64__)
template <int kStreams>
__attribute__((target("avx2"))) uint64_t read_memory(const uint8_t* p, size_t n, int ahead) {
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const size_t part = n / kStreams;
  for (size_t i = 0; i < part; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* at = p + static_cast<size_t>(s) * part + i;
      if (ahead > 0) _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
      sum[0] = _mm256_xor_si256(sum[0], _mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
      sum[1] = _mm256_xor_si256(sum[1], _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32)));
    }
  }
  alignas(32) uint64_t words[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm256_xor_si256(sum[0], sum[1]));
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}
#else
template <int kStreams>
uint64_t read_memory(const uint8_t* p, size_t n, int ahead) {
  uint64_t sum[8] = {};
  const size_t part = n / kStreams;
  for (size_t i = 0; i < part; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* at = p + static_cast<size_t>(s) * part + i;
      if (ahead > 0) __builtin_prefetch(at + ahead);
      uint64_t words[8];
      std::memcpy(words, at, sizeof words);
      for (int j = 0; j < 8; ++j) sum[j] ^= words[j];
    }
  }
  uint64_t all = 0;
  for (const uint64_t word : sum) all ^= word;
  return all;
}
#endif

inline uint64_t read_memory(const uint8_t* p, size_t n, ReadWay way) {
  switch (way.streams) {
    case 1:
      return read_memory<1>(p, n, way.ahead);
    case 2:
      return read_memory<2>(p, n, way.ahead);
    case 4:
      return read_memory<4>(p, n, way.ahead);
    default:
      return read_memory<8>(p, n, way.ahead);
  }
}

}  // namespace gemmule::bench
