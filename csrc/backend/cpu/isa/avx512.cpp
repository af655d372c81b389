// AVX-512 F, BW, DQ, VL and VNNI: Intel servers since 2019, Intel clients of 2019 to 2021, AMD since 2022.
// Compiled with those flags, so no standard header may be included below. Everything but the packed matmuls
// and the micro-tiles of attention is the AVX2 code: its eight lanes are part of the contract.
#include "backend/cpu/isa/vec_avx2.h"
#include "backend/cpu/isa/wide_avx512.h"
#include "backend/cpu/kernels/ops_avx512.inl"
// The vocabulary above is for what follows.
#include "backend/cpu/kernels/packed_few_avx512.inl"
// Takes what that has for a few tokens.
#include "backend/cpu/kernels/matmul_quant_vnni.inl"
#include "backend/cpu/kernels/table.inl"

namespace gemmule {
const KernelTable& kernels_avx512() noexcept {
  static constexpr KernelTable table =
      make_table("avx512", "AVX-512 F BW DQ VL VNNI: Intel servers since 2019, AMD since 2022");
  return table;
}
}  // namespace gemmule
