#include "backend/cpu/roofline.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/peaks.h"
#include "backend/cpu/read_memory.h"
#include "core/mapped_file.h"
#include "core/thread_pool.h"

namespace gemmule {

namespace {

using bench::kReadWays;
using bench::Pages;
using bench::PageSize;
using bench::Peak;
using bench::ReadWay;
using bench::thread_seconds;
using bench::wall_seconds;

constexpr size_t kReadBytes = size_t{256} << 20;

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

}  // namespace

std::vector<RooflineResult> measure_roofline(int n_threads, const std::string& path) {
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
  for (const auto& [name, page_size] :
       {std::pair{"4 KB pages", PageSize::Small}, {"huge pages", PageSize::Huge}}) {
    const Pages memory(kReadBytes, page_size);
    for (const int n : counts) results.push_back(bandwidth(name, n, memory.data(), memory.size()));
  }
  if (!path.empty()) {
    const MappedFile file(path);
    const size_t size = std::min(static_cast<size_t>(file.size()) / 4096 * 4096, kReadBytes);
    for (const int n : counts) results.push_back(bandwidth("mapped file", n, file.data(), size));
  }
  return results;
}

}  // namespace gemmule
