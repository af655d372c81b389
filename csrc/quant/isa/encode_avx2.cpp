// The encoders for AVX2: vectors of eight.
#include <immintrin.h>

#include <cstdint>

namespace gemmule {
namespace {

constexpr int kLanes = 8;
typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));

static inline F vmin(F a, F b) { return _mm256_min_ps(a, b); }
static inline F vmax(F a, F b) { return _mm256_max_ps(a, b); }
static inline F vsqrt(F a) { return _mm256_sqrt_ps(a); }
static inline F zip_low(F a, F b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
static inline F zip_high(F a, F b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

}  // namespace
}  // namespace gemmule

#include "quant/kernels/encode_table.inl"

namespace gemmule {
const EncodeKernels& encode_kernels_avx2() noexcept {
  static constexpr EncodeKernels table = make_table("avx2");
  return table;
}
}  // namespace gemmule
