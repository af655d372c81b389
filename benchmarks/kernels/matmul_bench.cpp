// Speed of the quantized matmuls of one instruction-set level on one core.
//   stream: one token over more weights than the caches hold, GB/s of wall-clock time, next to a plain read
//   of the
//           same memory (what share of the bandwidth the kernel reaches); best of several passes
//   cached: GMAC/s over thread CPU time (a shared machine does not count) for small and large numbers of
//   tokens
// Run: matmul_bench [isa] [format] [stream|cached]; an empty argument means all.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "core/dtype.h"

namespace {

using gemmule::ActRows;
using gemmule::DType;
using gemmule::KernelTable;

constexpr DType kFormats[] = {DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1,
                              DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K};

double seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Lcg {
  uint64_t state = 1;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
};

// Random bytes where every 16-bit pair is a small positive half float, whatever the block layout.
void fill(std::vector<uint8_t>& w) {
  Lcg rng;
  for (size_t i = 0; i + 2 <= w.size(); i += 2) {
    const uint16_t half = static_cast<uint16_t>(0x1000u | (rng.next() & 0x8fffu));
    std::memcpy(&w[i], &half, 2);
  }
}

struct Activations {
  std::vector<float> x;
  std::vector<int8_t> q;
  std::vector<float> d;
  std::vector<int16_t> sums;
  ActRows rows;

  Activations(const KernelTable& kernels, DType dtype, int64_t n, int64_t k) {
    const bool k_quant = gemmule::dtype_info(dtype).block_size == 256;
    const int64_t blocks = k / (k_quant ? 256 : 32), groups = k / (k_quant ? 16 : 32);
    x.resize(static_cast<size_t>(k));
    q.resize(static_cast<size_t>(n * k));
    d.resize(static_cast<size_t>(n * blocks));
    sums.resize(static_cast<size_t>(n * groups));
    Lcg rng;
    for (int64_t t = 0; t < n; ++t) {
      for (float& v : x) v = static_cast<float>(rng.next() % 2001) * 0.001f - 1.0f;
      (k_quant ? kernels.quantize_q8_256 : kernels.quantize_q8_32)(
          x.data(), k, q.data() + t * k, d.data() + t * blocks, sums.data() + t * groups);
    }
    rows = {n, k, nullptr, q.data(), d.data(), sums.data()};
  }
};

void* aligned(std::vector<uint8_t>& memory) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

#if defined(__x86_64__)
uint64_t read_all(const uint8_t* p, size_t n) {
  __m128i a = _mm_setzero_si128(), b = a, c = a, d = a;
  for (size_t i = 0; i + 64 <= n; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 1024), _MM_HINT_T0);
    a = _mm_xor_si128(a, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i)));
    b = _mm_xor_si128(b, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i + 16)));
    c = _mm_xor_si128(c, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i + 32)));
    d = _mm_xor_si128(d, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i + 48)));
  }
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_xor_si128(_mm_xor_si128(a, b), _mm_xor_si128(c, d))));
}
#else
uint64_t read_all(const uint8_t* p, size_t n) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i + 64 <= n; i += 64) {
    uint64_t v[8];
    std::memcpy(v, p + i, sizeof v);
    for (int j = 0; j < 8; ++j) sum[j] ^= v[j];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}
#endif

void stream(const KernelTable& kernels, DType dtype, int64_t k, std::vector<uint8_t>& weights) {
  const int64_t stride = gemmule::row_bytes(dtype, k);
  const int64_t rows = static_cast<int64_t>(weights.size()) / stride;
  const auto bytes = static_cast<double>(rows * stride);
  const Activations a(kernels, dtype, 1, k);
  std::vector<uint8_t> scratch(kernels.matmul_scratch_bytes(1, k) + 64);
  std::vector<float> y(static_cast<size_t>(rows));
  double kernel = 1e9, plain = 1e9;
  volatile uint64_t sink = 0;
  for (int pass = 0; pass < 8; ++pass) {  // alternating, so that both see the same machine
    double start = seconds(CLOCK_MONOTONIC);
    sink = sink ^ read_all(weights.data(), weights.size());
    plain = std::min(plain, seconds(CLOCK_MONOTONIC) - start);
    start = seconds(CLOCK_MONOTONIC);
    kernels.matmul[static_cast<size_t>(dtype)](weights.data(), stride, 0, rows, a.rows, y.data(), rows,
                                               aligned(scratch));
    kernel = std::min(kernel, seconds(CLOCK_MONOTONIC) - start);
  }
  std::printf("%-7s %-5s stream K=%-6lld %6.2f GB/s   plain read %6.2f GB/s   share %5.1f %%\n", kernels.name,
              gemmule::dtype_name(dtype), static_cast<long long>(k), bytes / kernel * 1e-9,
              static_cast<double>(weights.size()) / plain * 1e-9,
              100.0 * bytes / kernel / (static_cast<double>(weights.size()) / plain));
}

void cached(const KernelTable& kernels, DType dtype, int64_t k, const std::vector<uint8_t>& weights) {
  const int64_t stride = gemmule::row_bytes(dtype, k);
  std::printf("%-7s %-5s cached K=%-6lld GMAC/s:", kernels.name, gemmule::dtype_name(dtype),
              static_cast<long long>(k));
  for (const int64_t n : {1, 2, 3, 4, 8, 32, 128, 512}) {
    const int64_t rows = n <= 8 ? 128 : 2048;  // few tokens: weights that stay in the cache
    const Activations a(kernels, dtype, n, k);
    std::vector<uint8_t> scratch(kernels.matmul_scratch_bytes(n, k) + 64);
    std::vector<float> y(static_cast<size_t>(rows * n));
    double best = 0;
    for (int run = 0; run < 40; ++run) {  // short runs: the best one was left alone
      const double start = seconds(CLOCK_THREAD_CPUTIME_ID);
      double elapsed = 0;
      int calls = 0;
      do {
        kernels.matmul[static_cast<size_t>(dtype)](weights.data(), stride, 0, rows, a.rows, y.data(), rows,
                                                   aligned(scratch));
        ++calls;
        elapsed = seconds(CLOCK_THREAD_CPUTIME_ID) - start;
      } while (elapsed < 0.002);
      best = std::max(best, 1e-9 * static_cast<double>(rows * k * n * calls) / elapsed);
    }
    std::printf("  T=%lld %5.1f", static_cast<long long>(n), best);
    std::fflush(stdout);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i) { return std::string(argc > i ? argv[i] : ""); };
  const KernelTable& kernels = gemmule::select_kernels(gemmule::detect_cpu_features(), argument(1));
  std::vector<uint8_t> weights(size_t{320} << 20);
  fill(weights);
  for (const DType dtype : kFormats) {
    if (!argument(2).empty() && argument(2) != gemmule::dtype_name(dtype)) continue;
    const bool k_quant = gemmule::dtype_info(dtype).block_size == 256;
    if (argument(3) != "cached")
      for (const int64_t k : {int64_t{k_quant ? 768 : 640}, int64_t{3840}, int64_t{15360}})
        stream(kernels, dtype, k, weights);
    if (argument(3) != "stream")
      for (const int64_t k : {int64_t{k_quant ? 768 : 640}, int64_t{3840}})
        cached(kernels, dtype, k, weights);
  }
  return 0;
}
