// Speed of the attention kernel of each instruction-set level on one core, in GMAC/s and as a share of the
// f32 multiply-adds the core can do: q.k and p.v at the visible positions, over thread CPU time (a shared
// machine does not count). Best of several runs. Shapes: steps of a prompt; decode at three depths for the
// two kinds of layers of Gemma 4 12B. The last lines are decode steps through the whole backend, on all
// threads, over wall time, as a share of what all cores can do: the multiply-adds, or reading the cache
// where that takes longer. Run: attention_bench [--json] [isa [words of a shape]]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_select.h"
#include "backend/cpu/peaks.h"
#include "bench.h"

namespace {

using gemmule::DType;
using gemmule::KvKind;
using gemmule::bench::thread_seconds;
using gemmule::bench::wall_seconds;

struct Shape {
  const char* what;
  int tokens, heads, head_dim;
  int64_t context;  // positions the last token sees
  KvKind kind;
  int n_turned;
};

constexpr Shape kShapes[] = {
    {"prefill 16 tokens x 4 heads", 16, 4, 256, 512, KvKind::F16, 0},
    {"prefill 16 tokens x 4 heads", 16, 4, 256, 512, KvKind::F32, 0},
    {"prefill 64 tokens x 1 head", 64, 1, 256, 1024, KvKind::F16, 0},
    {"prefill 32 tokens x 2 heads", 32, 2, 256, 1024, KvKind::F16, 0},
    {"prefill 4 tokens x 16 heads", 4, 16, 512, 2048, KvKind::F16, 0},
    {"prefill 4 tokens x 16 heads", 4, 16, 512, 2048, KvKind::F16, 64},
    {"prefill 4 tokens x 16 heads", 4, 16, 512, 2048, KvKind::Q8_0, 64},
    {"verify 4 tokens x 2 heads", 4, 2, 256, 1024, KvKind::F16, 0},
    {"decode 1 token x 8 heads", 1, 8, 512, 4096, KvKind::F16, 0},
    {"decode 1 token x 4 heads", 1, 4, 256, 1024, KvKind::F16, 0},
    {"decode 1 token x 1 head", 1, 1, 256, 1024, KvKind::F16, 0},
    {"decode sliding, 2 heads", 1, 2, 256, 1024, KvKind::F16, 0},
    {"decode sliding, 2 heads", 1, 2, 256, 1024, KvKind::F32, 0},
    {"decode sliding, 2 heads", 1, 2, 256, 1024, KvKind::Q8_0, 0},
    {"decode global, 16 heads", 1, 16, 512, 4096, KvKind::F16, 0},
    {"decode global, 16 heads", 1, 16, 512, 4096, KvKind::F16, 64},
    {"decode global, 16 heads", 1, 16, 512, 4096, KvKind::Q8_0, 64},
    {"decode global, 16 heads", 1, 16, 512, 16384, KvKind::F16, 64},
    {"decode global, 16 heads", 1, 16, 512, 16384, KvKind::Q8_0, 64},
    {"decode global, 16 heads", 1, 16, 512, 32768, KvKind::F32, 64},
    {"decode global, 16 heads", 1, 16, 512, 32768, KvKind::F16, 0},
    {"decode global, 16 heads", 1, 16, 512, 32768, KvKind::F16, 64},
    {"decode global, 16 heads", 1, 16, 512, 32768, KvKind::Q8_0, 64},
};

DType dtype_of(KvKind kind) {
  return kind == KvKind::F32 ? DType::F32 : kind == KvKind::F16 ? DType::F16 : DType::Q8_0;
}
const char* name_of(KvKind kind) {
  return kind == KvKind::F32 ? "f32" : kind == KvKind::F16 ? "f16" : "q8_0";
}

// Room for n values that starts at a cache line, as the engine's buffers do.
template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t n) : memory_(n * sizeof(T) + 64), size_(n) {}
  T* data() { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64); }
  size_t size() const { return size_; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }

 private:
  std::vector<uint8_t> memory_;
  size_t size_;
};

// A cache of `heads` key/value heads full of small random numbers; what they are does not change the time.
struct Cache {
  gemmule::KvView view;
  AlignedBuffer<uint8_t> memory;

  Cache(KvKind kind, int64_t heads, int64_t dim, int64_t ring, int64_t n_turned)
      : view{dtype_of(kind), heads, dim, ring, nullptr, nullptr, n_turned},
        memory(static_cast<size_t>(heads * ring * (view.k_row() + view.v_row()))) {
    view.k = memory.data();
    view.v = view.k + heads * ring * view.k_row();
    gemmule::bench::Lcg random;
    gemmule::bench::fill_numbers(view.dtype, memory.data(), memory.size(), random);
  }
};

// GMAC/s of f32 multiply-adds at this level, of all the pool's threads together.
double peak_of(std::string_view level, gemmule::ThreadPool& pool) {
  const bool is_512 = level == "avx512";
  const auto clock = pool.n_threads() == 1 ? thread_seconds : wall_seconds;
  for (const gemmule::bench::Peak& peak : gemmule::bench::peaks()) {
    const std::string_view name = peak.name;
    if (!name.starts_with("f32") || (name.ends_with("zmm") != is_512 && name != "f32 fmla")) continue;
    double best = 0;
    constexpr int64_t kRounds = 1'000'000;
    for (int run = 0; run < 5; ++run) {
      const double start = clock();
      pool.run(pool.n_threads(), [&](int64_t, int) { peak.run(kRounds); });
      best = std::max(best, 1e-9 * peak.macs * kRounds * pool.n_threads() / (clock() - start));
    }
    return best;
  }
  return 0;
}

double giga_macs_per_second(const gemmule::KernelTable& kernels, const Shape& s) {
  const int64_t ring = (s.context + 255) / 256 * 256;
  Cache cache(s.kind, 1, s.head_dim, ring, s.n_turned);
  const auto rows = static_cast<size_t>(s.tokens) * static_cast<size_t>(s.heads);
  AlignedBuffer<float> q(rows * static_cast<size_t>(s.head_dim)), out(q.size());  // [tokens][heads][head_dim]
  gemmule::bench::Lcg random;
  for (float& x : q) x = 0.1f * (static_cast<float>(random.next() % 2048) / 1024 - 1);
  std::vector<int64_t> lo(static_cast<size_t>(s.tokens), 0), hi(static_cast<size_t>(s.tokens));
  double macs = 0;
  for (int t = 0; t < s.tokens; ++t) {
    hi[static_cast<size_t>(t)] = s.context - s.tokens + 1 + t;
    macs += 2.0 * s.heads * s.head_dim * static_cast<double>(hi[static_cast<size_t>(t)]);
  }
  AlignedBuffer<uint8_t> scratch(kernels.attend_scratch_bytes(s.head_dim, static_cast<int64_t>(rows)));
  std::vector<float> sums(2 * rows);
  gemmule::AttendArgs a{};
  a.q = q.data();
  a.q_stride = a.out_stride = static_cast<int64_t>(s.heads) * s.head_dim;
  a.out = out.data();
  a.n_tokens = s.tokens;
  a.head_end = s.heads;
  a.head_dim = s.head_dim;
  a.n_turned = s.n_turned;
  a.kind = s.kind;
  a.k = cache.view.k;
  a.v = cache.view.v;
  a.k_row = cache.view.k_row();
  a.v_row = cache.view.v_row();
  a.ring = ring;
  a.lo = lo.data();
  a.hi = hi.data();
  a.end = s.context;
  a.sums = sums.data();
  a.scratch = scratch.data();

  double best = 0;
  for (int run = 0; run < 5; ++run) {
    int calls = 0;
    const double start = thread_seconds();
    double elapsed = 0;
    do {
      std::fill(sums.begin(), sums.end(), 0.0f);
      kernels.attend(a);
      ++calls;
      elapsed = thread_seconds() - start;
    } while (elapsed < 0.03);
    best = std::max(best, macs * calls / elapsed * 1e-9);
  }
  return best;
}

// One token of all layers of a kind, as a decode step runs it: the cache of every layer is other memory.
void backend_step(const char* what, KvKind kind, int64_t layers, int64_t kv_heads, int64_t dim,
                  int64_t n_turned, int64_t context, bool json) {
  const auto be = gemmule::open_cpu("", 0);
  gemmule::ThreadPool pool(be->n_threads());
  be->reserve(1, 16 * dim, dim);
  const gemmule::Rows q = be->alloc(1, 16 * dim), y = be->alloc(1, 16 * dim);
  std::fill_n(q.data, 16 * dim, 0.01f);
  std::vector<Cache> caches;
  caches.reserve(static_cast<size_t>(layers));
  for (int64_t i = 0; i < layers; ++i)
    caches.emplace_back(kind, kv_heads, dim, (context + 255) / 256 * 256, n_turned);
  const std::vector<int64_t> lo = {0}, hi = {context};
  double best = 1e9, read = 1e9;
  for (int run = 0; run < 5; ++run) {
    const double start = wall_seconds();
    for (const Cache& cache : caches) {
      const gemmule::KvRun kv{0, 1, cache.view};
      be->attend(y, q, std::span(&kv, 1), lo, hi);
    }
    best = std::min(best, wall_seconds() - start);
    double seconds = 0;
    for (Cache& cache : caches)
      seconds += gemmule::bench::read_together(pool, cache.memory.data(), cache.memory.size() / 64 * 64);
    read = std::min(read, seconds);
  }
  const double n_bytes =
      static_cast<double>(layers * kv_heads * context * (caches[0].view.k_row() + caches[0].view.v_row()));
  const double macs = 2.0 * static_cast<double>(layers * 16 * dim * context);
  const double roof = std::max(read, 1e-9 * macs / peak_of(be->isa(), pool));
  const char* const line =
      json ? "{\"mode\": \"attention step\", \"name\": \"%s\", \"layers\": %lld, \"context\": %lld, "
             "\"type\": \"%s\", "
             "\"values\": \"%s\", \"ms\": %.3f, \"GMAC/s\": %.2f, \"GB/s\": %.2f, \"share\": %.4f}\n"
           : "%-28s %lld layers, %5lld positions %-4s %-6s %7.2f ms  %6.1f GMAC/s  %5.1f GB/s  %.2f\n";
  std::printf(line, what, static_cast<long long>(layers), static_cast<long long>(context), name_of(kind),
              n_turned > 0 ? "shared" : "", best * 1e3, macs / best * 1e-9, n_bytes / best * 1e-9,
              roof / best);
}

}  // namespace

int main(int argc, char** argv) {
  const bool json = argc > 1 && std::string_view(argv[1]) == "--json";
  if (json) --argc, ++argv;
  const std::string only = argc > 1 ? argv[1] : "", words = argc > 2 ? argv[2] : "";
  const char* const line = json ? "{\"mode\": \"attention\", \"isa\": \"%s\", \"name\": \"%s\", "
                                  "\"head_dim\": %d, \"context\": %lld, \"type\": "
                                  "\"%s\", \"values\": \"%s\", \"GMAC/s\": %.2f, \"share\": %.4f}\n"
                                : "%-7s %-28s d=%d context=%-5lld %-4s %-6s %6.2f GMAC/s  %.2f\n";
  gemmule::ThreadPool one(1);
  for (const gemmule::KernelLevel& level : gemmule::kernel_levels(gemmule::detect_cpu_features())) {
    if (!level.supported || (!only.empty() && only != level.table->name)) continue;
    const double peak = peak_of(level.table->name, one);
    for (const Shape& s : kShapes) {
      if (std::string_view(s.what).find(words) == std::string_view::npos) continue;
      const double speed = giga_macs_per_second(*level.table, s);
      std::printf(line, level.table->name, s.what, s.head_dim, static_cast<long long>(s.context),
                  name_of(s.kind), s.n_turned > 0 ? "shared" : "", speed, peak > 0 ? speed / peak : 0);
    }
  }
  if (!std::string_view("decode step").starts_with(words)) return 0;
  for (const KvKind kind : {KvKind::F16, KvKind::Q8_0}) {
    backend_step("decode step, sliding layers", kind, 40, 8, 256, 0, 1024, json);
    for (const int64_t context : {4096, 16384, 32768})
      backend_step("decode step, global layers", kind, 8, 1, 512, 64, context, json);
  }
  backend_step("decode step, global layers", KvKind::F16, 8, 1, 512, 0, 32768, json);
  return 0;
}
