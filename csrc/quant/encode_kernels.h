// What an instruction-set object of the encoders exports: one table of functions. Free of inline functions,
// so that objects compiled for different instruction sets may share it.
#pragma once

#include <cstdint>

namespace gemmule {

// Whole rows, one after the other.
struct EncodeJob {
  const float* x;           // [n_rows * n_cols], finite
  const float* importance;  // [n_cols] in (0, 2), or null
  const float* row_rms;     // [n_rows] root of the mean of x^2; used with importance only
  uint8_t* out;             // the blocks
  double* sums;             // [n_rows * 4]: error2, norm2 and both times importance are added to it
  int64_t n_rows;
  int64_t n_cols;
  uint32_t src_type;  // the DType the numbers were rounded to before they came here
};

struct EncodeKernels {
  const char* name;
  bool (*all_finite)(const float* x, int64_t n);
  void (*widen_bf16)(const uint8_t* src, float* dst, int64_t n);
  void (*q8_0)(const EncodeJob& job);
  void (*q4_0)(const EncodeJob& job);
  void (*q4_1)(const EncodeJob& job);
  void (*q5_0)(const EncodeJob& job);
  void (*q5_1)(const EncodeJob& job);
  void (*q2_k)(const EncodeJob& job);
  void (*q3_k)(const EncodeJob& job);
  void (*q4_k)(const EncodeJob& job);
  void (*q5_k)(const EncodeJob& job);
  void (*q6_k)(const EncodeJob& job);
};

const EncodeKernels& encode_kernels_scalar() noexcept;
const EncodeKernels& encode_kernels_avx2() noexcept;
const EncodeKernels& encode_kernels_avx512() noexcept;

// See lattice.h; called from the objects, compiled for the baseline.
bool encode_lattice_q4_0(const float* x, uint32_t src_type, uint8_t* block) noexcept;

}  // namespace gemmule
