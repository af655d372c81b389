// What this machine can do, as the denominators of every efficiency figure; under 5 seconds.
//   clock: dependent additions; read bandwidth of 1 .. all threads over 4 KB pages, huge pages and a mapped
//   file (each thread reads its own slice, best of several ways and passes); peaks of the multiply
//   instructions (thread CPU time, one core, and all cores at once); an empty run of the thread pool.
// Run: roofline_bench [--json] [--file MODEL.gguf] [--threads N]
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "bench.h"
#include "core/thread_pool.h"
#include "peaks.h"

namespace {

using gemmule::ThreadPool;
using gemmule::bench::Pages;
using gemmule::bench::PageSize;
using gemmule::bench::Peak;
using gemmule::bench::ReadWay;
using gemmule::bench::thread_seconds;
using gemmule::bench::wall_seconds;

constexpr size_t kReadBytes = size_t{256} << 20;

struct Result {
  std::string name;
  int threads;
  double value;
  const char* unit;
  std::string note;
};

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
    sink += gemmule::bench::read_memory(data + static_cast<size_t>(job) * slice, slice, way);
  });
  const double elapsed = wall_seconds() - start;
  return elapsed * static_cast<double>(n) / static_cast<double>(slice * static_cast<size_t>(n_threads));
}

Result bandwidth(const char* name, int n_threads, const uint8_t* data, size_t n) {
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
    for (const ReadWay way : gemmule::bench::kReadWays) pass(way);
  for (int run = 0; run < 4; ++run) pass(best_way);
  char note[96];
  std::snprintf(note, sizeof note, "%d streams a thread, prefetch %d B; one stream %.2f", best_way.streams,
                best_way.ahead, 1e-9 * static_cast<double>(n) / best_of_one_stream);
  return {std::string("read ") + name, n_threads, 1e-9 * static_cast<double>(n) / best, "GB/s", note};
}

class FileMapping {
 public:
  explicit FileMapping(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY);
    struct stat info {};
    if (fd < 0 || fstat(fd, &info) != 0) return;
    size_ = std::min(static_cast<size_t>(info.st_size) / 4096 * 4096, kReadBytes);
    void* at = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) data_ = static_cast<uint8_t*>(at);
  }
  ~FileMapping() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Giga multiply-accumulates per second of all threads together, over CPU time, so that neighbours do not
// count.
Result arithmetic(const Peak& peak, int n_threads) {
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

Result empty_run(int n_threads) {
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

void print(const Result& r, bool json) {
  if (json)
    std::printf("{\"name\": \"%s\", \"threads\": %d, \"value\": %.4g, \"unit\": \"%s\", \"note\": \"%s\"}\n",
                r.name.c_str(), r.threads, r.value, r.unit, r.note.c_str());
  else
    std::printf("%-30s %d threads %9.2f %-7s %s\n", r.name.c_str(), r.threads, r.value, r.unit,
                r.note.c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false;
  std::string file;
  int max_threads = gemmule::physical_cores();
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--json") {
      json = true;
    } else if (option == "--file" && i + 1 < argc) {
      file = argv[++i];
    } else if (option == "--threads" && i + 1 < argc) {
      max_threads = std::max(1, std::atoi(argv[++i]));
    } else {
      std::fprintf(stderr, "usage: roofline_bench [--json] [--file MODEL.gguf] [--threads N]\n");
      return 2;
    }
  }
  std::vector<int> counts;
  for (int n = 1; n < max_threads; n *= 2) counts.push_back(n);
  counts.push_back(max_threads);

  print({"clock", 1, clock_ghz(), "GHz", ""}, json);
  for (const Peak& peak : gemmule::bench::peaks()) {
    print(arithmetic(peak, 1), json);
    if (max_threads > 1) print(arithmetic(peak, max_threads), json);
  }
  for (const int n : counts)
    if (n > 1) print(empty_run(n), json);
  for (const auto& [name, page_size] :
       {std::pair{"4 KB pages", PageSize::Small}, {"huge pages", PageSize::Huge}}) {
    const Pages memory(kReadBytes, page_size);
    for (const int n : counts) print(bandwidth(name, n, memory.data(), memory.size()), json);
  }
  if (!file.empty()) {
    const FileMapping mapping(file);
    if (mapping.data() == nullptr) {
      std::fprintf(stderr, "cannot map %s; give a readable file\n", file.c_str());
      return 1;
    }
    for (const int n : counts) print(bandwidth("mapped file", n, mapping.data(), mapping.size()), json);
  }
  return 0;
}
