#include "backend/cpu/roofline_product.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/read_memory.h"
#include "quant/packed.h"

namespace gemmule::bench {

void fill_weights(uint8_t* w, size_t n_bytes) {
  constexpr size_t kDifferent = size_t{1} << 20;  // then the same again: numbers are slower to make than read
  Lcg random;
  for (size_t i = 0; i + 2 <= std::min(n_bytes, kDifferent); i += 2) {
    const auto half = static_cast<uint16_t>(0x1000u | (random.next() & 0x8fffu));
    std::memcpy(w + i, &half, sizeof half);
  }
  for (size_t i = kDifferent; i < n_bytes; i += kDifferent)
    std::memcpy(w + i, w, std::min(kDifferent, n_bytes - i));
}

Activations::Activations(const KernelTable& kernels, DType dtype, int64_t n, int64_t k) {
  const bool k_quant = dtype_info(dtype).block_size == 256;
  const int64_t blocks = k / (k_quant ? 256 : 32), groups = k / (k_quant ? 16 : 32);
  const auto quantize = k_quant ? kernels.quantize_q8_256 : kernels.quantize_q8_32;
  q_.resize(static_cast<size_t>(n * k));
  d_.resize(static_cast<size_t>(n * blocks));
  sums_.resize(static_cast<size_t>(n * groups));
  std::vector<float> x(static_cast<size_t>(k));
  Lcg random;
  for (int64_t t = 0; t < n; ++t) {
    for (float& v : x) v = static_cast<float>(random.next() % 2001) * 0.001f - 1.0f;
    quantize(x.data(), k, q_.data() + t * k, d_.data() + t * blocks, sums_.data() + t * groups);
  }
  rows_ = {n, k, nullptr, q_.data(), d_.data(), sums_.data()};
}

bool Matrix::has_kernel() const {
  const auto i = static_cast<size_t>(dtype);
  return packed ? kernels.matmul_packed[i] != nullptr : kernels.matmul[i] != nullptr;
}

void Matrix::multiply(int64_t begin, int64_t end, const ActRows& x, float* y, void* scratch) const {
  const auto i = static_cast<size_t>(dtype);
  if (packed)
    kernels.matmul_packed[i](w, rows, begin, end, x, y, rows, scratch);
  else
    kernels.matmul[i](w, row_bytes(), begin, end, x, y, rows, scratch);
}

Pass::Pass(const Matrix& matrix, int64_t n, ThreadPool& pool)
    : matrix_(matrix),
      pool_(pool),
      x_(matrix.kernels, matrix.dtype, n, matrix.k),
      y_(static_cast<size_t>(matrix.rows * n)) {
  const auto scratch_bytes = static_cast<int64_t>(matrix.kernels.matmul_scratch_bytes(n, matrix.k));
  for (int i = 0; i < pool.n_threads(); ++i) scratch_.emplace_back(scratch_bytes);
}

double Pass::seconds() {
  constexpr int64_t kJobRows = 2 * kPanelRows;
  const int64_t n_jobs = (matrix_.rows + kJobRows - 1) / kJobRows;
  const double start = wall_seconds();
  pool_.run(n_jobs, [&](int64_t job, int thread) {
    matrix_.multiply(job * kJobRows, std::min((job + 1) * kJobRows, matrix_.rows), x_.rows(), y_.data(),
                     scratch_[static_cast<size_t>(thread)].data());
  });
  return wall_seconds() - start;
}

}  // namespace gemmule::bench
