// The encoders for the baseline of the architecture: vectors of four, which every 64-bit machine has.
#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gemmule {
namespace {

constexpr int kLanes = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));

#if defined(__SSE2__)
static inline F vmin(F a, F b) { return _mm_min_ps(a, b); }
static inline F vmax(F a, F b) { return _mm_max_ps(a, b); }
static inline F vsqrt(F a) { return _mm_sqrt_ps(a); }
#else
static inline F vmin(F a, F b) { return a < b ? a : b; }
static inline F vmax(F a, F b) { return a > b ? a : b; }
static inline F vsqrt(F a) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
#endif
static inline F zip_low(F a, F b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
static inline F zip_high(F a, F b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }

}  // namespace
}  // namespace gemmule

#include "quant/kernels/encode_table.inl"

namespace gemmule {
const EncodeKernels& encode_kernels_scalar() noexcept {
  static constexpr EncodeKernels table = make_table("scalar");
  return table;
}
}  // namespace gemmule
