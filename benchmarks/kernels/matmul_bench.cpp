// Speed of the quantized matmuls: every instruction-set level, both layouts, a ladder of token counts T.
//   cached: GMAC/s of one core over thread CPU time (a shared machine does not count), weights that stay in
//           the cache, and the share of the level's int8 peak
//   stream: one pass of T tokens over more weights than the caches hold, all threads, wall-clock time: GB/s
//           of weights, the share of a plain read of the same memory, and V(T) = time of T tokens / time of
//           one
//   pack:   GB/s of one core from GGUF's layout to the packed one, and the share of a plain read of as many
//           bytes as it reads and writes
// Run: matmul_bench [--mode cached|stream|pack] [--isa LEVEL] [--type Q4_K] [--layout gguf|packed] [--k 3840]
//                   [--tokens 4] [--threads 2] [--pages huge|small] [--json]
// Left out, --mode, --type, --layout and --tokens mean all, --isa the best level (all: every one), --k 3840.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "backend/cpu/peaks.h"
#include "bench.h"
#include "core/dtype.h"
#include "core/thread_pool.h"
#include "quant/packed.h"

namespace {

using gemmule::Arena;
using gemmule::DType;
using gemmule::KernelTable;
using gemmule::kPanelRows;
using gemmule::ThreadPool;
using gemmule::bench::Activations;
using gemmule::bench::Matrix;
using gemmule::bench::Pages;
using gemmule::bench::PageSize;
using gemmule::bench::Pass;
using gemmule::bench::thread_seconds;

constexpr DType kFormats[] = {DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1,
                              DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K};
constexpr int64_t kTokens[] = {1, 2, 3, 4, 6, 8, 12, 16, 64, 256, 512};
constexpr size_t kStreamBytes = size_t{256} << 20;

struct Options {
  std::map<std::string, std::string> given;

  Options(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string name = argv[i];
      const bool known = name == "--mode" || name == "--isa" || name == "--type" || name == "--layout" ||
                         name == "--k" || name == "--tokens" || name == "--threads" || name == "--pages";
      if (name == "--json") {
        given[name] = "yes";
      } else if (known && i + 1 < argc) {
        given[name] = argv[++i];
      } else {
        throw std::runtime_error("unknown option " + name +
                                 "; the options are in the first lines of the source");
      }
    }
  }
  std::string text(const std::string& name, const std::string& other = "") const {
    const auto at = given.find(name);
    return at == given.end() ? other : at->second;
  }
  int64_t number(const std::string& name, int64_t other) const {
    return given.count(name) != 0 ? std::atoll(given.at(name).c_str()) : other;
  }
  bool wants(const std::string& name, const std::string& value) const {
    return text(name).empty() || text(name) == value;
  }
};

const char* layout_name(const Matrix& m) { return m.packed ? "packed" : "gguf"; }

void pack_panel(const KernelTable& kernels, DType dtype, int64_t k, const uint8_t* from, uint8_t* to) {
  if (const gemmule::PackFn pack = kernels.pack[static_cast<size_t>(dtype)])
    pack(from, kPanelRows, k, to);
  else
    gemmule::pack_rows(dtype, kPanelRows, k, from, to);
}

double int8_peak(const std::string& level) {
  double best = 0;
  for (const gemmule::bench::Peak& peak : gemmule::bench::peaks()) {
    if (level != peak.level) continue;
    for (int run = 0; run < 30; ++run) {
      constexpr int64_t kRounds = 100'000;
      const double start = thread_seconds();
      peak.run(kRounds);
      best = std::max(best, 1e-9 * peak.macs * kRounds / (thread_seconds() - start));
    }
  }
  return best;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        json_(!options.text("--json").empty()),
        weights_(kStreamBytes, options.text("--pages") == "small" ? PageSize::Small : PageSize::Huge),
        panels_(kStreamBytes, options.text("--pages") == "small" ? PageSize::Small : PageSize::Huge),
        pool_(static_cast<int>(options.number("--threads", gemmule::physical_cores()))) {
    gemmule::bench::fill_weights(weights_.data(), weights_.size());
  }

  void run(const KernelTable& kernels) {
    const double peak = int8_peak(kernels.name);
    const int64_t k = options_.number("--k", 3840);
    for (const DType dtype : kFormats) {
      if (!options_.wants("--type", gemmule::dtype_name(dtype))) continue;
      if (k % gemmule::dtype_info(dtype).block_size != 0) continue;
      const int64_t panel_bytes = gemmule::row_bytes(dtype, k) * kPanelRows;
      const int64_t n_panels = static_cast<int64_t>(weights_.size()) / panel_bytes;
      const bool streams = options_.wants("--mode", "stream");
      pack(kernels, dtype, k, streams ? n_panels : std::min<int64_t>(n_panels, 4));
      for (const bool packed : {false, true}) {
        const Matrix m{
            kernels, dtype, packed, n_panels * kPanelRows, k, packed ? panels_.data() : weights_.data()};
        if (!options_.wants("--layout", layout_name(m)) || !m.has_kernel()) continue;
        if (options_.wants("--mode", "cached")) cached(m, peak);
        if (streams) stream(m);
      }
    }
  }

 private:
  void pack(const KernelTable& kernels, DType dtype, int64_t k, int64_t n_panels) {
    const int64_t panel_bytes = gemmule::row_bytes(dtype, k) * kPanelRows;
    pool_.run(n_panels, [&](int64_t p, int) {
      pack_panel(kernels, dtype, k, weights_.data() + p * panel_bytes, panels_.data() + p * panel_bytes);
    });
    if (!options_.wants("--mode", "pack")) return;
    const double rate =
        1e-9 * static_cast<double>(panel_bytes) /
        gemmule::bench::seconds_of([&] { pack_panel(kernels, dtype, k, weights_.data(), panels_.data()); },
                                   thread_seconds);
    const double share = 2 * rate / gemmule::bench::cached_read(weights_.data(), 2 * panel_bytes);
    const char* const line =
        json_ ? "{\"mode\": \"pack\", \"isa\": \"%s\", \"type\": \"%s\", \"k\": %lld, \"gb_s\": %.3f, "
                "\"share\": %.4f}\n"
              : "%-12s %-5s pack   K=%-6lld %6.2f GB/s of one core  %.2f\n";
    std::printf(line, kernels.name, gemmule::dtype_name(dtype), static_cast<long long>(k), rate, share);
  }

  void print(const char* mode, const Matrix& m, int64_t n, const char* unit, double value, double share,
             double v) const {
    if (json_) {
      std::printf(
          "{\"mode\": \"%s\", \"isa\": \"%s\", \"type\": \"%s\", \"layout\": \"%s\", \"k\": %lld, "
          "\"tokens\": %lld, "
          "\"%s\": %.3f, \"share\": %.4f, \"v\": %.3f}\n",
          mode, m.kernels.name, gemmule::dtype_name(m.dtype), layout_name(m), static_cast<long long>(m.k),
          static_cast<long long>(n), unit, value, share, v);
    } else {
      std::printf("%-12s %-5s %-6s %-6s K=%-6lld T=%-4lld %8.2f %s", m.kernels.name,
                  gemmule::dtype_name(m.dtype), layout_name(m), mode, static_cast<long long>(m.k),
                  static_cast<long long>(n), value, unit);
      if (share > 0) std::printf("  %5.1f %%", 100 * share);
      if (v > 0) std::printf("  V %5.2f", v);
      std::printf("\n");
    }
    std::fflush(stdout);
  }

  std::vector<int64_t> ladder(int64_t largest) const {
    if (const int64_t one = options_.number("--tokens", 0)) return {one};
    std::vector<int64_t> all;
    for (const int64_t n : kTokens)
      if (n <= largest) all.push_back(n);
    return all;
  }

  void cached(const Matrix& whole, double peak) const {
    for (const int64_t n : ladder(512)) {
      Matrix m = whole;
      m.rows = n == 64 ? 256 : n <= 256 ? 128 : 64;  // whole panels that stay in the cache
      const Activations x(m.kernels, m.dtype, n, m.k);
      const Arena scratch(static_cast<int64_t>(m.kernels.matmul_scratch_bytes(n, m.k)));
      std::vector<float> y(static_cast<size_t>(m.rows * n));
      double best = 0, total = 0;
      for (int run = 0; run < 3 || (total < 0.08 && run < 60);
           ++run) {  // short runs: the best one was left alone
        const double start = thread_seconds();
        double elapsed = 0;
        int calls = 0;
        do {
          m.multiply(0, m.rows, x.rows(), y.data(), scratch.data());
          ++calls;
          elapsed = thread_seconds() - start;
        } while (elapsed < 0.002);
        best = std::max(best, 1e-9 * static_cast<double>(m.rows * m.k * n * calls) / elapsed);
        total += elapsed;
      }
      print("cached", m, n, "GMAC/s", best, peak > 0 ? best / peak : 0, 0);
    }
  }

  void stream(const Matrix& m) {
    const double bytes = static_cast<double>(m.rows * m.row_bytes());
    double one = 0;
    for (const int64_t n : ladder(16)) {
      Pass product(m, n, pool_);
      double kernel = 1e9, plain = 1e9;
      for (int pass = 0; pass < 5; ++pass) {  // alternating, so that both see the same machine
        plain = std::min(plain, gemmule::bench::read_together(pool_, m.w, kStreamBytes));
        kernel = std::min(kernel, product.seconds());
      }
      if (n == 1) one = kernel;
      const double rate = bytes / kernel * 1e-9;
      print("stream", m, n, "GB/s", rate, rate / (static_cast<double>(kStreamBytes) / plain * 1e-9),
            one > 0 ? kernel / one : 0);
    }
  }

  const Options& options_;
  bool json_;
  Pages weights_, panels_;  // rows in GGUF's layout; the same rows packed
  ThreadPool pool_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options(argc, argv);
    Bench bench(options);
    const gemmule::CpuFeatures features = gemmule::detect_cpu_features();
    if (options.text("--isa") != "all") {
      bench.run(gemmule::select_kernels(features, options.text("--isa")));
    } else {
      for (const gemmule::KernelLevel& level : gemmule::kernel_levels(features))
        if (level.supported) bench.run(*level.table);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "matmul_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
