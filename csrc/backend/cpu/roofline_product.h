// Products of random numbers by the kernels of one level, for the roofline and the kernel benchmarks. Which
// numbers they are does not change the time, as long as none is subnormal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/cpu/kernel_table.h"
#include "core/arena.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

namespace gemmule::bench {

struct Lcg {
  uint64_t state = 1;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
};

// Weights of any type in either layout: every pair of bytes is a small half float.
void fill_weights(uint8_t* w, size_t n_bytes);

// n rows of k activations, in the form that weights of a quantized type want.
class Activations {
 public:
  Activations(const KernelTable& kernels, DType dtype, int64_t n, int64_t k);
  Activations(Activations&&) = default;
  Activations& operator=(Activations&&) = default;

  const ActRows& rows() const { return rows_; }

 private:
  std::vector<int8_t> q_;
  std::vector<float> d_;
  std::vector<int16_t> sums_;
  ActRows rows_;
};

// [rows][k] in one of the two layouts, with the kernel that reads it.
struct Matrix {
  const KernelTable& kernels;
  DType dtype;
  bool packed;
  int64_t rows, k;
  const uint8_t* w;

  bool has_kernel() const;
  int64_t row_bytes() const { return gemmule::row_bytes(dtype, k); }
  // Rows [begin, end) of y [x.n][rows]; scratch: kernels.matmul_scratch_bytes, at a cache line
  void multiply(int64_t begin, int64_t end, const ActRows& x, float* y, void* scratch) const;
};

// The product of a whole matrix with n tokens on the threads of a pool, its jobs cut as the backend does.
class Pass {
 public:
  Pass(const Matrix& matrix, int64_t n, ThreadPool& pool);
  double seconds();  // runs it

 private:
  Matrix matrix_;
  ThreadPool& pool_;
  Activations x_;
  std::vector<float> y_;        // [n][rows]
  std::vector<Arena> scratch_;  // of each thread
};

}  // namespace gemmule::bench
