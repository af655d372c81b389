// NEON with 8-bit matrix products: ARM since about 2021, Apple since the M2. Compiled with those flags, so no
// standard header may be included below: its inline functions would leak such code into the rest of the
// program.
#include "backend/cpu/isa/vec_neon.h"
#include "backend/cpu/isa/wide_pair.h"
#include "backend/cpu/kernels/dot_neon_dotprod.inl"
#include "backend/cpu/kernels/dot_neon_i8mm.inl"

namespace gemmule {
namespace {
namespace quant_neon {
using OneToken = Sdot;
using ManyTokens = Smmla;
}  // namespace quant_neon
}  // namespace
}  // namespace gemmule

#include "backend/cpu/kernels/matmul_quant_neon.inl"
#include "backend/cpu/kernels/table.inl"

namespace gemmule {
const KernelTable& kernels_neon_i8mm() noexcept {
  static constexpr KernelTable table =
      make_table("neon_i8mm", "NEON + 8-bit matrix products: ARM since about 2021, Apple since M2");
  return table;
}
}  // namespace gemmule
