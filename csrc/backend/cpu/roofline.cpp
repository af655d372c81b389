#include "backend/cpu/roofline.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernel_select.h"
#include "backend/cpu/peaks.h"
#include "backend/cpu/read_memory.h"
#include "backend/cpu/roofline_product.h"
#include "core/error.h"
#include "core/mapped_file.h"
#include "core/thread_pool.h"
#include "quant/packed.h"

namespace gemmule {

namespace {

using bench::kReadWays;
using bench::Matrix;
using bench::Pages;
using bench::PageSize;
using bench::Pass;
using bench::Peak;
using bench::ReadWay;
using bench::thread_seconds;
using bench::wall_seconds;

constexpr int64_t kLeastBytes = 1 << 19;
constexpr DType kFormats[] = {DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K};
constexpr int64_t kColumns = 3840;
constexpr int64_t kMostTokens = 13;  // a token and the most that are drafted in one pass

double clock_ghz() {
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    uint64_t x = 0;
    constexpr int64_t kAdds = 4'000'000;
    const double start = thread_seconds();
    for (int64_t i = 0; i < kAdds / 8; ++i) {
      for (int j = 0; j < 8; ++j) {
        x += 3;
        asm volatile("" : "+r"(x));
      }
    }
    best = std::max(best, 1e-9 * static_cast<double>(kAdds) / (thread_seconds() - start));
  }
  return best;
}

// Seconds of one pass over the memory, shared out among the threads of the pool.
double read_pass(ThreadPool& pool, const uint8_t* data, size_t n, ReadWay way) {
  const int64_t n_threads = pool.n_threads();
  const size_t slice = n / static_cast<size_t>(n_threads) / 1024 * 1024;
  std::atomic<uint64_t> sink{0};
  const double start = wall_seconds();
  pool.run(n_threads, [&](int64_t job, int) {
    sink += read_memory(data + static_cast<size_t>(job) * slice, slice, way);
  });
  const double elapsed = wall_seconds() - start;
  return elapsed * static_cast<double>(n) / static_cast<double>(slice * static_cast<size_t>(n_threads));
}

RooflineResult bandwidth(const char* name, int n_threads, const uint8_t* data, size_t n) {
  ThreadPool pool(n_threads);
  ReadWay best_way{};
  double best = 1e9, best_of_one_stream = 1e9;
  const auto pass = [&](ReadWay way) {
    const double elapsed = read_pass(pool, data, n, way);
    if (way.streams == 1) best_of_one_stream = std::min(best_of_one_stream, elapsed);
    if (elapsed >= best) return;
    best = elapsed;
    best_way = way;
  };
  for (int run = 0; run < 2; ++run)
    for (const ReadWay way : kReadWays) pass(way);
  for (int run = 0; run < 4; ++run) pass(best_way);
  char note[96];
  std::snprintf(note, sizeof note, "%d streams a thread, prefetch %d B; one stream %.2f", best_way.streams,
                best_way.ahead, 1e-9 * static_cast<double>(n) / best_of_one_stream);
  return {std::string("read ") + name, n_threads, 1e-9 * static_cast<double>(n) / best, "GB/s", note};
}

// Giga multiply-accumulates per second of all threads together, over CPU time, so that neighbours do not
// count.
RooflineResult arithmetic(const Peak& peak, int n_threads) {
  ThreadPool pool(n_threads);
  std::vector<double> rate(static_cast<size_t>(n_threads), 0.0);
  pool.run(n_threads, [&](int64_t job, int) {
    int64_t n = 1000;
    for (double elapsed = 0; elapsed < 2e-3; n *= 2) {  // also lets the core change its clock
      const double start = thread_seconds();
      peak.run(n);
      elapsed = thread_seconds() - start;
    }
    for (int run = 0; run < 8; ++run) {
      const double start = thread_seconds();
      peak.run(n);
      double& best = rate[static_cast<size_t>(job)];
      best = std::max(best, 1e-9 * peak.macs * static_cast<double>(n) / (thread_seconds() - start));
    }
  });
  double sum = 0;
  for (const double r : rate) sum += r;
  return {peak.name, n_threads, sum, "GMAC/s", peak.level};
}

RooflineResult empty_run(int n_threads) {
  ThreadPool pool(n_threads);
  double best = 1e9;
  for (int round = 0; round < 20; ++round) {
    constexpr int kRuns = 500;
    const double start = wall_seconds();
    for (int i = 0; i < kRuns; ++i) pool.run(n_threads, [](int64_t, int) {});
    best = std::min(best, (wall_seconds() - start) / kRuns);
  }
  return {"empty run of the thread pool", n_threads, 1e9 * best, "ns", ""};
}

// V(1), V(2), ... of a format: what a pass of so many tokens takes, by the time of one of a single token.
void passes(const KernelTable& kernels, DType dtype, const Pages& weights, ThreadPool& pool,
            std::vector<RooflineResult>& results) {
  const auto panel_bytes = static_cast<size_t>(row_bytes(dtype, kColumns) * kPanelRows);
  const auto n_panels = static_cast<int64_t>(weights.size() / panel_bytes);
  const Matrix matrix{kernels, dtype, true, n_panels * kPanelRows, kColumns, weights.data()};
  if (!matrix.has_kernel()) return;
  std::vector<Pass> all;
  for (int64_t n = 1; n <= kMostTokens; ++n) all.emplace_back(matrix, n, pool);
  std::vector<double> best(all.size(), 1e9);
  for (int round = 0; round < 4; ++round)  // in turns, so that all see the same machine
    for (size_t i = 0; i < all.size(); ++i) best[i] = std::min(best[i], all[i].seconds());
  for (size_t i = 0; i < best.size(); ++i) {
    char note[64];
    std::snprintf(note, sizeof note, "%s, %.2f GB/s of weights", kernels.name,
                  1e-9 * static_cast<double>(matrix.rows * matrix.row_bytes()) / best[i]);
    results.push_back(
        {cat("V(", i + 1, ") ", dtype_name(dtype)), pool.n_threads(), best[i] / best[0], "x", note});
  }
}

}  // namespace

std::vector<RooflineResult> measure_roofline(int n_threads, const std::string& path, int64_t n_bytes) {
  const auto size = static_cast<size_t>(std::max(n_bytes, kLeastBytes) / 4096 * 4096);
  const int most = n_threads > 0 ? n_threads : physical_cores();
  std::vector<int> counts;
  for (int n = 1; n < most; n *= 2) counts.push_back(n);
  counts.push_back(most);

  std::vector<RooflineResult> results = {{"clock", 1, clock_ghz(), "GHz", ""}};
  for (const Peak& peak : bench::peaks()) {
    results.push_back(arithmetic(peak, 1));
    if (most > 1) results.push_back(arithmetic(peak, most));
  }
  for (const int n : counts)
    if (n > 1) results.push_back(empty_run(n));
  {
    const Pages memory(size, PageSize::Small);
    for (const int n : counts) results.push_back(bandwidth("4 KB pages", n, memory.data(), size));
  }
  {
    Pages memory(size, PageSize::Huge);
    for (const int n : counts) results.push_back(bandwidth("huge pages", n, memory.data(), size));
    bench::fill_weights(memory.data(), size);
    const KernelTable& kernels = select_kernels(detect_cpu_features(), "");
    ThreadPool pool(most);
    for (const DType dtype : kFormats) passes(kernels, dtype, memory, pool, results);
  }
  if (!path.empty()) {
    const MappedFile file(path);
    const size_t n_read = std::min(static_cast<size_t>(file.size()) / 4096 * 4096, size);
    for (const int n : counts) results.push_back(bandwidth("mapped file", n, file.data(), n_read));
  }
  return results;
}

}  // namespace gemmule
