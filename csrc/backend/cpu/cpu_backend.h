// The CPU backend: a kernel table, a thread pool and the scratch they need.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "core/arena.h"
#include "core/thread_pool.h"

namespace gemmule {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelTable& kernels, int n_threads) : kernels_(kernels), pool_(n_threads) {}

  const char* isa() const override { return kernels_.name; }
  int n_threads() const override { return pool_.n_threads(); }

  Tensor place(const Tensor& file_view) override { return file_view; }
  Rows alloc(int64_t n_rows, int64_t cols) override;
  void reserve(int64_t max_rows, int64_t max_cols, int64_t max_head_dim) override;

  void copy(Rows y, Rows x) override;
  void embed(Rows y, const Tensor& table, std::span<const int32_t> tokens, float scale) override;
  void rms_norm(Rows y, Rows x, const Tensor& w, float eps) override;
  void add_rms_norm(Rows x, Rows y, const Tensor& w, float eps) override;
  using Backend::matmul;
  void matmul(std::span<const Product> products, Rows x) override;
  void gated_gelu(Rows y, Rows tmp, const Tensor& gate, const Tensor& up, Rows x) override;
  void head_norm_rope(Rows x, int64_t head_dim, const Tensor& w, float eps, Rows cos, Rows sin,
                      float scale) override;
  void kv_append(std::span<const KvRun> runs, Rows k, Rows v, std::span<const int64_t> pos) override;
  void attend(Rows y, Rows q, std::span<const KvRun> runs, std::span<const int64_t> lo,
              std::span<const int64_t> hi) override;
  void scale(Rows x, float s) override;
  void softcap(Rows x, float cap) override;

 private:
  // Input rows in the forms that the weights of a step want; filled by `prepare`.
  struct Inputs {
    ActRows f32, q8_32, q8_256;
    const ActRows& of(DType dtype) const;
  };
  Inputs prepare(Rows x, bool need_q8_32, bool need_q8_256);
  void multiply(const Product& product, const Inputs& in, int64_t row_begin, int64_t row_end, int thread);
  template <class Fn>
  void each_row(int64_t n_rows, Fn&& fn);
  void* scratch(int thread) { return scratch_.data() + static_cast<int64_t>(thread) * scratch_bytes_; }

  const KernelTable& kernels_;
  ThreadPool pool_;
  std::vector<Arena> buffers_;
  Arena scratch_;  // [n_threads][scratch_bytes_]
  int64_t scratch_bytes_ = 0;
  int64_t attend_rows_ = 64;  // query rows of one attention job at most
  int64_t max_rows_ = 0, max_cols_ = 0;
  Arena q32_, d32_, sums32_, q256_, d256_, sums256_;  // quantized input rows, see ActRows
};

}  // namespace gemmule
