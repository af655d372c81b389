// AVX-VNNI beside AVX2: Intel since 2021, AMD since 2024. Compiled with those flags, so no standard header
// may be included below. Everything that is not a packed matmul is the AVX2 code.
#include "backend/cpu/isa/vec_avx2.h"
#include "backend/cpu/isa/wide_pair.h"
#include "backend/cpu/kernels/ops_avx_vnni.inl"
// The vocabulary above is for what follows.
#include "backend/cpu/kernels/matmul_quant_vnni.inl"
#include "backend/cpu/kernels/table.inl"

namespace gemmule {
const KernelTable& kernels_avx_vnni() noexcept {
  static constexpr KernelTable table =
      make_table("avx_vnni", "AVX-VNNI with AVX2: Intel since 2021, AMD since 2024");
  return table;
}
}  // namespace gemmule
