// The encoders for AVX-512 (F, BW, DQ, VL): vectors of sixteen.
#include <immintrin.h>

#include <cstdint>

namespace gemmule {
namespace {

constexpr int kLanes = 16;
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));

static inline F vmin(F a, F b) { return _mm512_maskz_min_ps(0xffff, a, b); }
static inline F vmax(F a, F b) { return _mm512_maskz_max_ps(0xffff, a, b); }
static inline F vsqrt(F a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
static inline F zip_low(F a, F b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline F zip_high(F a, F b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

}  // namespace
}  // namespace gemmule

#include "quant/kernels/encode_table.inl"

namespace gemmule {
const EncodeKernels& encode_kernels_avx512() noexcept {
  static constexpr EncodeKernels table = make_table("avx512");
  return table;
}
}  // namespace gemmule
