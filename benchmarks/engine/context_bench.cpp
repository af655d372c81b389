// Speed and memory of a model whose context is really in use: the cache is filled with random numbers up to
// each depth (reading so many tokens would take hours, and what the numbers are does not change the time),
// then single tokens are decoded there.
// Run: context_bench MODEL.gguf [KV_TYPE [N_CTX [TOKENS [DEPTH ...]]]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "bench.h"
#include "engine/loaded_model.h"
#include "engine/memory_plan.h"
#include "model/kv_cache.h"

namespace {

using namespace gemmule;

constexpr int64_t kWholeContext = 262144;  // of the Gemma 4 models

struct Options {
  std::string path;
  KvTypes kv_types{DType::Q8_0, DType::F16};
  int64_t n_ctx = kWholeContext;
  int64_t n_tokens = 8;  // decoded at each depth
  std::vector<int64_t> depths = {0, 4096, 16384, 32768, kWholeContext};
};

// A line of /proc/self/status in MB; 0 where there is none.
double process_mb(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":")) return std::strtod(line.c_str() + name.size() + 1, nullptr) * 1024e-6;
  return 0;
}

// The positions [begin, end) of every layer, or what its ring keeps of them.
void fill(KvCache& kv, int64_t begin, int64_t end, bench::Lcg& random) {
  kv.will_write(end);
  for (int64_t i = 0; i < kv.n_layers(); ++i) {
    for (const KvPlane& plane : kv.planes(i)) {
      const int64_t first = std::max(begin, end - plane.ring);
      for (int64_t p = first, n; p < end; p += n) {
        n = std::min(end - p, plane.ring - p % plane.ring);
        for (int64_t head = 0; head < plane.n_heads; ++head)
          bench::fill_numbers(kv.layer(i).dtype,
                              plane.data + (head * plane.ring + p % plane.ring) * plane.row_bytes,
                              static_cast<size_t>(n * plane.row_bytes), random);
      }
    }
  }
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : model_(GgufFile::open(options.path), {}),
        kv_(model_.config(), options.n_ctx, options.kv_types, model_.n_ubatch()) {}

  const LoadedModel& model() const { return model_; }
  const KvCache& kv() const { return kv_; }

  // A prompt, which brings the weights into memory, and into the kernels' order.
  void warm_up() {
    for (int i = 0; i < 2; ++i) step(0, std::min(model_.n_ubatch(), kv_.n_ctx()));
    for (int i = 0; i < 3; ++i) step(0, 1);
  }

  // Median seconds of a token behind `depth` others; depths ascend.
  double seconds_at(int64_t depth, int64_t n_tokens) {
    if (depth > filled_) fill(kv_, filled_, depth, random_);
    filled_ = std::max(filled_, depth);
    std::vector<double> seconds;
    for (int64_t i = 0; i < n_tokens; ++i) {
      const double start = bench::wall_seconds();
      step(depth + i, 1);
      seconds.push_back(bench::wall_seconds() - start);
    }
    std::nth_element(seconds.begin(), seconds.begin() + n_tokens / 2, seconds.end());
    return seconds[static_cast<size_t>(n_tokens / 2)];
  }

 private:
  void step(int64_t pos, int64_t n_rows) {
    const std::vector<int32_t> tokens(static_cast<size_t>(n_rows), 100);
    std::vector<int64_t> positions(static_cast<size_t>(n_rows));
    std::iota(positions.begin(), positions.end(), pos);
    const Batch::Sequence sequence{0, n_rows, &kv_};
    kv_.will_write(pos + n_rows);
    model_.run(n_rows, nullptr, [&](Gemma4& gemma) {
      const Rows hidden = gemma.forward({tokens, positions, std::span(&sequence, 1), {}}, nullptr, nullptr);
      gemma.logits(hidden.from(n_rows - 1, 1));
    });
  }

  LoadedModel model_;
  KvCache kv_;
  bench::Lcg random_;
  int64_t filled_ = 0;
};

Options read_options(int argc, char** argv) {
  Options options;
  options.path = argv[1];
  if (argc > 2) options.kv_types = parse_kv_types(argv[2]);
  if (argc > 3) options.n_ctx = std::atoll(argv[3]);
  if (argc > 4) options.n_tokens = std::max<int64_t>(1, std::atoll(argv[4]));
  if (argc > 5) options.depths.clear();
  for (int i = 5; i < argc; ++i) options.depths.push_back(std::atoll(argv[i]));
  for (int64_t& depth : options.depths) depth = std::min(depth, options.n_ctx - options.n_tokens);
  std::sort(options.depths.begin(), options.depths.end());
  options.depths.erase(std::unique(options.depths.begin(), options.depths.end()), options.depths.end());
  return options;
}

void run(const Options& options) {
  Bench bench(options);
  const MemoryPlan plan = plan_memory(bench.model().file(), options.n_ctx, options.kv_types, 256);
  bench.warm_up();
  std::printf("%s, %lld positions, kv %s, %d threads, %s\n", options.path.c_str(),
              static_cast<long long>(options.n_ctx), format_kv_types(options.kv_types).c_str(),
              bench.model().backend().n_threads(), bench.model().backend().isa());
  std::printf("%9s %9s %8s %7s %10s %9s\n", "depth", "ms/token", "tok/s", "share", "cache MB", "RSS MB");
  double at_first = 0;
  for (const int64_t depth : options.depths) {
    const double seconds = bench.seconds_at(depth, options.n_tokens);
    if (at_first == 0) at_first = seconds;
    std::printf("%9lld %9.1f %8.3f %7.3f %10.1f %9.1f\n", static_cast<long long>(depth), 1e3 * seconds,
                1 / seconds, at_first / seconds, 1e-6 * static_cast<double>(bench.kv().used_bytes()),
                process_mb("VmRSS"));
    std::fflush(stdout);
  }
  std::printf("cache %.1f MB as planned, %.1f MB reserved; weights %.1f MB, of which %.1f MB packed\n",
              1e-6 * static_cast<double>(plan.kv), 1e-6 * static_cast<double>(bench.kv().size_bytes()),
              1e-6 * static_cast<double>(plan.weights),
              1e-6 * static_cast<double>(bench.model().packed_bytes()));
  std::printf("peak RSS %.1f MB (own memory %.1f, of files %.1f at the end); planned %.1f MB\n",
              process_mb("VmHWM"), process_mb("RssAnon"), process_mb("RssFile"),
              1e-6 * static_cast<double>(plan.total));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: context_bench MODEL.gguf [KV_TYPE [N_CTX [TOKENS [DEPTH ...]]]]\n");
    return 2;
  }
  try {
    run(read_options(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "context_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
