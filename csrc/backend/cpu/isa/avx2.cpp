// AVX2 + FMA + F16C: Intel since 2013, AMD since 2015. Compiled with those flags, so no standard header may
// be included below: its inline functions would leak AVX2 code into the rest of the program.
#include "backend/cpu/isa/vec_avx2.h"
#include "backend/cpu/isa/wide_pair.h"
#include "backend/cpu/kernels/matmul_quant_avx2.inl"
#include "backend/cpu/kernels/table.inl"

namespace gemmule {
const KernelTable& kernels_avx2() noexcept {
  static constexpr KernelTable table =
      make_table("avx2", "AVX2 + FMA + F16C: Intel since 2013, AMD since 2015");
  return table;
}
}  // namespace gemmule
