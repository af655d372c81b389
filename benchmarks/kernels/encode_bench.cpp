// Speed of the encoders, from BF16 rows with and without importance, in millions of weights a second; with
// the path of a shared library that exports llama.cpp's ggml_quantize_chunk, also that encoder (from F32, one
// thread) on the same numbers and the ratio. The share is of a plain read of as many bytes as are read and
// written: finding scales is arithmetic, so it is small. Thread CPU time for one thread, wall-clock time for
// more; best of three. Run: encode_bench [--json] [isa] [format] [threads] [peer.so]; an empty argument means
// the best, all, 1, none.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bench.h"
#include "core/half.h"
#include "quant/encode.h"

namespace {

using gemmule::DType;
using PeerEncoder = size_t (*)(int type, const float* src, void* dst, int64_t start, int64_t n_rows,
                               int64_t n_cols, const float* importance);

constexpr DType kFormats[] = {DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1,
                              DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K};
constexpr int64_t kRows = 256;
constexpr int64_t kCols = 4096;

// Millions of weights a second.
double measure(double (*clock)(), const std::function<void()>& encode) {
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const double start = clock();
    encode();
    best = std::min(best, clock() - start);
  }
  return 1e-6 * static_cast<double>(kRows * kCols) / best;
}

}  // namespace

int main(int argc, char** argv) {
  const bool json = argc > 1 && std::string(argv[1]) == "--json";
  if (json) --argc, ++argv;
  const std::string isa = argc > 1 ? argv[1] : "";
  const std::string format = argc > 2 ? argv[2] : "";
  const int n_threads = argc > 3 && argv[3][0] != '\0' ? std::atoi(argv[3]) : 1;
  PeerEncoder peer = nullptr;
  if (argc > 4) {
    void* library = dlopen(argv[4], RTLD_NOW);
    if (library != nullptr) peer = reinterpret_cast<PeerEncoder>(dlsym(library, "ggml_quantize_chunk"));
    if (peer == nullptr) {
      std::fprintf(stderr, "%s has no ggml_quantize_chunk: %s\n", argv[4], dlerror());
      return 1;
    }
  }
  std::vector<float> x(static_cast<size_t>(kRows * kCols));
  std::vector<uint16_t> narrow(x.size());
  std::vector<float> importance(static_cast<size_t>(kCols));
  uint64_t state = 1;
  const auto uniform = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state >> 40) * 0x1p-24f;
  };
  for (size_t i = 0; i < x.size(); ++i) {
    float sum = -3.0f;
    for (int k = 0; k < 6; ++k) sum += uniform();
    narrow[i] = gemmule::f32_to_bf16(0.02f * sum);
    x[i] = gemmule::bf16_to_f32(narrow[i]);
  }
  for (float& w : importance) w = -std::log(uniform() + 1e-6f);

  const gemmule::bench::Pages memory(6 * x.size(), gemmule::bench::PageSize::Huge);
  gemmule::Encoder encoder(n_threads, isa);
  const auto clock = n_threads == 1 ? gemmule::bench::thread_seconds : gemmule::bench::wall_seconds;
  if (!json)
    std::printf("isa %s, %d thread(s), %lld x %lld; millions of weights a second, share of reading\n",
                encoder.isa(), n_threads, static_cast<long long>(kRows), static_cast<long long>(kCols));
  for (const DType dtype : kFormats) {
    if (!format.empty() && format != gemmule::dtype_name(dtype)) continue;
    std::vector<uint8_t> out(static_cast<size_t>(kRows * gemmule::row_bytes(dtype, kCols)));
    const size_t n_bytes = 2 * narrow.size() + out.size();
    const double read = n_threads * gemmule::bench::cached_read(memory.data(), static_cast<int64_t>(n_bytes));
    const double bytes_per_weight = static_cast<double>(n_bytes) / static_cast<double>(kRows * kCols);
    for (const float* w :
         {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
      const double ours = measure(clock, [&] {
        encoder.encode({reinterpret_cast<const uint8_t*>(narrow.data()), DType::BF16, out.data(), dtype,
                        kRows, kCols, w},
                       nullptr);
      });
      const double share = 1e-3 * ours * bytes_per_weight / read;
      const char* const kind = w != nullptr ? "importance" : "plain";
      double theirs = 0;
      if (peer != nullptr)
        theirs = measure(gemmule::bench::thread_seconds,
                         [&] { peer(static_cast<int>(dtype), x.data(), out.data(), 0, kRows, kCols, w); });
      const char* const name = gemmule::dtype_name(dtype);
      if (json) {
        std::printf(
            "{\"isa\": \"%s\", \"type\": \"%s\", \"weights\": \"%s\", \"threads\": %d, "
            "\"M/s\": %.1f, \"share\": %.4f}\n",
            encoder.isa(), name, kind, n_threads, ours, share);
        continue;
      }
      std::printf("%-5s %-10s %8.1f  %5.3f", name, kind, ours, share);
      if (peer != nullptr) std::printf("   peer %8.1f   ratio %6.2f", theirs, ours / theirs);
      std::printf("\n");
    }
  }
  return 0;
}
