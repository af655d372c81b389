// Speed of the attention kernel of each instruction-set level on one core, in GMAC/s: the multiply-adds of
// q.k and p.v at the visible positions, over thread CPU time (a shared machine does not count). Best of
// several runs. Run: attention_bench [isa]
#include <ctime>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/kernel_select.h"

namespace {

struct Shape {
  const char* what;
  int tokens, heads, head_dim;
  int64_t context;  // positions the last token sees
  bool f16;
};

constexpr Shape kShapes[] = {
    {"prefill 16 tokens x 4 heads", 16, 4, 256, 512, true},
    {"prefill 16 tokens x 4 heads", 16, 4, 256, 512, false},
    {"prefill 64 tokens x 1 head", 64, 1, 256, 1024, true},
    {"prefill 32 tokens x 2 heads", 32, 2, 256, 1024, true},
    {"prefill 4 tokens x 16 heads", 4, 16, 512, 2048, true},
    {"verify 4 tokens x 2 heads", 4, 2, 256, 1024, true},
    {"decode 1 token x 16 heads", 1, 16, 512, 2048, true},
    {"decode 1 token x 4 heads", 1, 4, 256, 1024, true},
    {"decode 1 token x 4 heads", 1, 4, 256, 1024, false},
    {"decode 1 token x 2 heads", 1, 2, 256, 1024, true},
    {"decode 1 token x 1 head", 1, 1, 256, 1024, true},
};

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

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double giga_macs_per_second(const gemmule::KernelTable& kernels, const Shape& s) {
  const int64_t ring = (s.context + 255) / 256 * 256;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  const auto rows = static_cast<size_t>(s.tokens) * static_cast<size_t>(s.heads);
  const auto dim = static_cast<size_t>(s.head_dim);
  AlignedBuffer<float> q(rows * dim), out(rows * dim);                         // [tokens][heads][head_dim]
  AlignedBuffer<float> k32(static_cast<size_t>(ring) * dim), v32(k32.size());  // [ring][head_dim]
  for (float& x : q) x = 0.1f * normal(rng);
  for (float& x : k32) x = normal(rng);
  for (float& x : v32) x = normal(rng);
  AlignedBuffer<uint16_t> k16(k32.size()), v16(v32.size());
  kernels.f32_to_f16(k32.data(), k16.data(), static_cast<int64_t>(k32.size()));
  kernels.f32_to_f16(v32.data(), v16.data(), static_cast<int64_t>(v32.size()));

  std::vector<int64_t> lo(static_cast<size_t>(s.tokens), 0), hi(static_cast<size_t>(s.tokens));
  double macs = 0;
  for (int t = 0; t < s.tokens; ++t) {
    hi[static_cast<size_t>(t)] = s.context - s.tokens + 1 + t;
    macs += 2.0 * s.heads * s.head_dim * static_cast<double>(hi[static_cast<size_t>(t)]);
  }
  AlignedBuffer<uint8_t> scratch(kernels.attend_scratch_bytes(s.head_dim, static_cast<int64_t>(rows)));
  gemmule::AttendArgs a{};
  a.q = q.data();
  a.q_stride = a.out_stride = static_cast<int64_t>(s.heads) * s.head_dim;
  a.out = out.data();
  a.n_tokens = s.tokens;
  a.head_end = s.heads;
  a.head_dim = s.head_dim;
  a.k = s.f16 ? static_cast<const void*>(k16.data()) : k32.data();
  a.v = s.f16 ? static_cast<const void*>(v16.data()) : v32.data();
  a.kv_f16 = s.f16;
  a.ring = ring;
  a.lo = lo.data();
  a.hi = hi.data();
  a.scratch = scratch.data();

  double best = 0;
  for (int run = 0; run < 5; ++run) {
    int calls = 0;
    const double start = thread_seconds();
    double elapsed = 0;
    do {
      kernels.attend(a);
      ++calls;
      elapsed = thread_seconds() - start;
    } while (elapsed < 0.03);
    best = std::max(best, macs * calls / elapsed * 1e-9);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  for (const gemmule::KernelLevel& level : gemmule::kernel_levels(gemmule::detect_cpu_features())) {
    if (!level.supported || (!only.empty() && only != level.table->name)) continue;
    for (const Shape& s : kShapes) {
      std::printf("%-7s %-28s d=%d context=%-5lld %s  %6.2f GMAC/s\n", level.table->name, s.what, s.head_dim,
                  static_cast<long long>(s.context), s.f16 ? "f16" : "f32",
                  giga_macs_per_second(*level.table, s));
    }
  }
  return 0;
}
