// The CPU backend: a kernel table, a thread pool and the scratch they need.
#pragma once

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/packed_weights.h"
#include "core/arena.h"
#include "core/thread_pool.h"
#include "core/thread_tuner.h"

namespace gemmule {

class CpuBackend final : public Backend {
 public:
  // tuner: says how many threads one-row steps use; that of one thread: all of them.
  CpuBackend(const KernelTable& kernels, int n_threads, ThreadTuner tuner = ThreadTuner(1))
      : kernels_(kernels), pool_(n_threads), tuner_(tuner) {}

  const char* isa() const override { return kernels_.name; }
  int n_threads() const override { return pool_.n_threads(); }
  void begin_step(int64_t n_rows) override;
  void end_step() override;
  void watch(const StopToken* stop) override { pool_.watch(stop); }

  Tensor place(const Tensor& file_view) override {
    max_row_bytes_ = std::max(max_row_bytes_, file_view.row_size());
    return file_view;
  }
  void allow_repacking(std::span<const Tensor> matrices, Repacking repacking) override {
    weights_.allow(matrices, std::move(repacking), kernels_);
  }
  int64_t repacked_bytes() const override { return weights_.packed_bytes(); }
  Rows alloc(int64_t n_rows, int64_t cols) override;
  Routes alloc_routes(int64_t n_rows, int64_t n_experts, int64_t n_used) override;
  void reserve(int64_t max_rows, int64_t max_cols, int64_t max_head_dim) override;

  void write(Rows y, const float* numbers) override;
  void copy(Rows y, Rows x) override;
  void add(Rows x, Rows y) override;
  void add_vector(Rows x, const Tensor& b) override;
  void embed(Rows y, const Tensor& table, std::span<const int32_t> tokens, float scale) override;
  void rms_norm(Rows y, Rows x, const Tensor& w, float eps) override;
  void add_rms_norm(Rows x, Rows y, const Tensor& w, float eps) override;
  void layer_norm(Rows y, Rows x, const Tensor& w, const Tensor& b, float eps) override;
  using Backend::matmul;
  void matmul(std::span<const Product> products, Rows x) override;
  void matmul_rows(Rows y, const Tensor& w, Rows x, std::span<const int32_t> rows) override;
  void gated_gelu(Rows y, Rows tmp, const Tensor& gate, const Tensor& up, Rows x) override;
  void gelu_mul(Rows y, Rows gate, Rows up, int64_t up_col) override;
  void head_norm_rope(Rows x, int64_t head_dim, const Tensor& w, float eps, Rows cos, Rows sin,
                      float scale) override;
  void kv_append(std::span<const KvRun> runs, Rows k, Rows v, std::span<const int64_t> pos) override;
  void attend(Rows y, Rows q, std::span<const KvRun> runs, std::span<const int64_t> lo,
              std::span<const int64_t> hi) override;
  void route(Routes& routes, Rows scores, const Tensor& scale) override;
  void gather(Rows y, Rows x, const Routes& routes) override;
  void expert_matmul(Rows y, const Experts& w, Rows x, const Routes& routes) override;
  void expert_gated_gelu(Rows y, Rows tmp, const Experts& gate, const Experts& up, Rows x,
                         const Routes& routes) override;
  void expert_sum(Rows y, Rows x, const Routes& routes) override;
  void scale(Rows x, float s) override;
  void softcap(Rows x, float cap) override;

 private:
  // Input rows in the forms that the weights of a step want; filled by `prepare`.
  struct Inputs {
    ActRows f32, q8_32, q8_256;
    const ActRows& of(DType dtype) const;
    Inputs rows(int64_t first, int64_t n) const;  // some of them
  };
  static ActKind act_kind(DType dtype);
  int64_t job_rows(const Tensor& w, int64_t n_tokens) const;  // output rows of one job of a product
  Inputs prepare(Rows x, std::initializer_list<DType> weights) {
    return prepare(x, std::span(weights.begin(), weights.size()));
  }
  Inputs prepare(Rows x, std::span<const DType> weights);
  void multiply(Rows y, const PackedWeights::View& w, const Inputs& in, int64_t row_begin, int64_t row_end,
                int thread);
  // Rows [row_begin, row_end) of y = gelu(gate x) * (up x)
  void multiply_gated(Rows y, Rows tmp, const PackedWeights::View& gate, const PackedWeights::View& up,
                      const Inputs& in, int64_t row_begin, int64_t row_end, int thread);
  template <class Fn>
  void each_row(int64_t n_rows, Fn&& fn);

  // One run of `attend`; lo and hi are those of the whole batch.
  struct Attention {
    const KvRun* run;
    Rows y, q;
    const int64_t* lo;
    const int64_t* hi;
    int64_t n_heads;
    int64_t group;  // query heads that share a key/value head
  };
  static constexpr int64_t kAttendRows = 64;    // query rows of one attention job at most
  static constexpr int64_t kFewRows = 16;       // up to so many, every head is a job
  static constexpr int64_t kMaxSums = 1 << 16;  // rows times heads that are attended to at a time
  static constexpr int64_t kMaxTurned = 1024;   // numbers of a key that are stored beside the values
  void reserve_attention(int64_t max_head_dim, size_t& scratch_bytes);
  void store_row(const KvView& kv, const float* x, int64_t n, uint8_t* to) const;
  AttendArgs attend_args(const Attention& a, int64_t token, int64_t n_tokens, int64_t head, int64_t n_heads,
                         int thread);
  void attend_run(const Attention& a);
  void attend_tiles(const Attention& a, int64_t first, int64_t end);
  void attend_chunks(const Attention& a, int64_t first, int64_t end, int64_t per_round);
  // What a product reads. May pack a piece of it first, by the rows of the step: the head has few, but
  // packing it is a small part of a long step.
  PackedWeights::View weights(const Tensor& w, int64_t n_tokens) {
    weights_.advance(w, std::max(n_tokens, step_rows_), kernels_, pool_);
    return weights_.view(w);
  }
  template <class Fn>
  void each_expert_job(const Experts& w, const Routes& routes, Fn&& fn);
  void* scratch(int thread) { return scratch_.data() + static_cast<int64_t>(thread) * scratch_bytes_; }

  const KernelTable& kernels_;
  ThreadPool pool_;
  ThreadTuner tuner_;
  bool is_tuned_step_ = false;
  int64_t step_rows_ = 0;
  std::chrono::steady_clock::time_point step_start_;
  PackedWeights weights_;
  std::vector<Arena> buffers_;
  Arena scratch_;  // [n_threads][scratch_bytes_]
  int64_t scratch_bytes_ = 0;
  int64_t max_row_bytes_ = 0;  // of any weight, for `embed`
  Arena parts_;                // f32 [chunks][rows][heads][attend_part_floats] of an attention over few rows
  Arena sums_;                 // f32 [rows][heads][2]
  Arena q32_, d32_, sums32_, q256_, d256_, sums256_;  // quantized input rows, see ActRows
};

// fn(row) for every row, on the pool when there are enough of them.
template <class Fn>
void CpuBackend::each_row(int64_t n_rows, Fn&& fn) {
  constexpr int64_t kSerialRows = 4;  // fewer are done by the caller: waking a worker costs more
  if (n_rows < kSerialRows) {
    for (int64_t row = 0; row < n_rows; ++row) fn(row);
    return;
  }
  constexpr int64_t kRowsPerJob = 4;
  pool_.run((n_rows + kRowsPerJob - 1) / kRowsPerJob, [&](int64_t job, int) {
    const int64_t end = std::min(n_rows, (job + 1) * kRowsPerJob);
    for (int64_t row = job * kRowsPerJob; row < end; ++row) fn(row);
  });
}

}  // namespace gemmule
