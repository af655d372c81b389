// Speed of what a step does beside products and attention: norms, rotation, activation functions, quantizing
// activations, packing, the search for the largest of 262,144 logits; and of an empty run of the thread pool.
//   one core, thread CPU time (a shared machine does not count), data in the cache as in a step: ns a call,
//   GB/s read and written, and the share of a plain read of as many bytes in the same cache; an empty run
//   moves nothing, so it has no share
// Run: vector_bench [--isa LEVEL] [--json]
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "bench.h"
#include "core/thread_pool.h"
#include "engine/logit_scan.h"

namespace {

using gemmule::DType;
using gemmule::KernelTable;
using gemmule::bench::cached_read;
using gemmule::bench::Pages;
using gemmule::bench::PageSize;
using gemmule::bench::seconds_of;
using gemmule::bench::thread_seconds;
using gemmule::bench::wall_seconds;

constexpr int64_t kModel = 3840, kFfn = 15360, kVocab = 262144;  // of Gemma 4 12B
constexpr int64_t kHeads = 16, kHeadDim = 256;

struct Work {
  std::string name;
  int64_t n_numbers;
  int64_t n_bytes;  // read and written
  std::function<void()> run;
};

class Bench {
 public:
  explicit Bench(bool json) : json_(json), memory_(size_t{8} << 20, PageSize::Huge) {
    gemmule::bench::Lcg random;
    gemmule::bench::fill_numbers(DType::F32, memory_.data(), memory_.size(), random);
  }

  void run(const KernelTable& kernels) {
    for (const Work& work : works(kernels)) {
      const double seconds = seconds_of(work.run, thread_seconds);
      const double rate = 1e-9 * static_cast<double>(work.n_bytes) / seconds;
      print(kernels.name, work.name, 1, work.n_numbers, seconds, rate,
            rate / cached_read(memory_.data(), work.n_bytes));
    }
  }

  void empty_runs() {
    const int cores = gemmule::physical_cores();
    std::vector<int> counts;
    for (int n = 1; n < cores; n *= 2) counts.push_back(n);
    for (const int n : {cores, 2 * cores}) counts.push_back(n);  // the last: more threads than cores
    for (const int n : counts) {
      gemmule::ThreadPool pool(n);
      print("", "empty run", n, 0, seconds_of([&] { pool.run(n, [](int64_t, int) {}); }, wall_seconds), 0, 0);
    }
  }

 private:
  // Buffer i of numbers, half a MiB apart, at a place of its own in the sets of the cache.
  float* numbers(int i) { return reinterpret_cast<float*>(memory_.data() + i * ((size_t{1} << 19) + 1088)); }

  std::vector<Work> works(const KernelTable& kernels) {
    float *x = numbers(0), *y = numbers(1), *w = numbers(2), *b = numbers(3);
    float* const logits = numbers(8);  // [kVocab], 1 MiB
    auto* const codes = reinterpret_cast<int8_t*>(numbers(4));
    float* const scales = numbers(5);
    auto* const sums = reinterpret_cast<int16_t*>(numbers(6));
    auto* const halves = reinterpret_cast<uint16_t*>(numbers(7));
    std::vector<Work> all = {
        {"rms_norm", kModel, 12 * kModel, [=, &kernels] { kernels.rms_norm(y, x, w, kModel, 1e-6f); }},
        {"add_rms_norm", kModel, 16 * kModel,
         [=, &kernels] { kernels.add_rms_norm(b, x, w, kModel, 1e-6f); }},
        {"layer_norm", kModel, 16 * kModel, [=, &kernels] { kernels.layer_norm(y, x, w, b, kModel, 1e-5f); }},
        {"rope, 16 heads", kHeads * kHeadDim, 8 * kHeads * kHeadDim + 4 * kHeadDim,
         [=, &kernels] {
           for (int64_t h = 0; h < kHeads; ++h) kernels.rope(y + h * kHeadDim, x, w, kHeadDim / 2, kHeadDim);
         }},
        {"gelu_mul", kFfn, 12 * kFfn, [=, &kernels] { kernels.gelu_mul(y, x, w, kFfn); }},
        {"softcap", kVocab, 8 * kVocab, [=, &kernels] { kernels.softcap(logits, 30.0f, kVocab); }},
        {"f32_to_f16", kModel, 6 * kModel, [=, &kernels] { kernels.f32_to_f16(x, halves, kModel); }},
    };
    for (const int64_t k : {kModel, kFfn}) {
      all.push_back({"quantize_q8_256", k, 5 * k + k / 64 + k / 8,
                     [=, &kernels] { kernels.quantize_q8_256(x, k, codes, scales, sums); }});
      all.push_back({"quantize_q8_32", k, 5 * k + k / 8 + k / 16,
                     [=, &kernels] { kernels.quantize_q8_32(x, k, codes, scales, sums); }});
    }
    for (const DType dtype : {DType::Q4_K, DType::Q6_K, DType::Q8_0}) {
      const gemmule::PackFn pack = kernels.pack[static_cast<size_t>(dtype)];
      if (pack == nullptr) continue;
      constexpr int64_t kRows = 64;
      const auto* from = reinterpret_cast<const uint8_t*>(numbers(0));
      auto* const to = reinterpret_cast<uint8_t*>(numbers(8));
      all.push_back({std::string("pack ") + gemmule::dtype_name(dtype), kRows * kModel,
                     2 * kRows * gemmule::row_bytes(dtype, kModel), [=] { pack(from, kRows, kModel, to); }});
    }
    const gemmule::LogitRow row{{logits, static_cast<size_t>(kVocab)}, {}, {}};
    all.push_back({"largest logit", kVocab, 4 * kVocab, [this, row] {
                     bool finite = false;
                     sink_ += gemmule::largest(row, finite).token;
                   }});
    all.push_back({"best 64 logits", kVocab, 4 * kVocab, [this, row] {
                     bool finite = false;
                     gemmule::collect_top(row, 64, candidates_, finite);
                     gemmule::keep_best(candidates_, 64);
                     sink_ += candidates_.front().token;
                   }});
    return all;
  }

  void print(const char* isa, const std::string& name, int threads, int64_t n, double seconds, double rate,
             double share) const {
    const char* const line = json_ ? "{\"isa\": \"%s\", \"name\": \"%s\", \"threads\": %d, \"n\": %lld, "
                                     "\"ns\": %.1f, \"gb_s\": %.3f, \"share\": %.4f}\n"
                                   : "%-12s %-16s %d threads  n=%-7lld %10.1f ns  %7.2f GB/s  %.2f\n";
    std::printf(line, isa, name.c_str(), threads, static_cast<long long>(n), 1e9 * seconds, rate, share);
    std::fflush(stdout);
  }

  bool json_;
  Pages memory_;
  std::vector<gemmule::Candidate> candidates_;
  int64_t sink_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    std::string isa;
    bool json = false;
    for (int i = 1; i < argc; ++i) {
      const std::string option = argv[i];
      if (option == "--json") {
        json = true;
      } else if (option == "--isa" && i + 1 < argc) {
        isa = argv[++i];
      } else {
        throw std::runtime_error("usage: vector_bench [--isa LEVEL] [--json]");
      }
    }
    Bench bench(json);
    bench.run(gemmule::select_kernels(gemmule::detect_cpu_features(), isa));
    bench.empty_runs();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "vector_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
