// NEON of every 64-bit ARM processor.
#include "backend/cpu/isa/vec_neon.h"
#include "backend/cpu/isa/wide_pair.h"
#include "backend/cpu/kernels/dot_neon.inl"

namespace gemmule {
namespace {
namespace quant_neon {
using OneToken = Smull;
using ManyTokens = Smull;
}  // namespace quant_neon
}  // namespace
}  // namespace gemmule

#include "backend/cpu/kernels/matmul_quant_neon.inl"
#include "backend/cpu/kernels/table.inl"

namespace gemmule {
const KernelTable& kernels_neon() noexcept {
  static constexpr KernelTable table = make_table("neon", "NEON: every 64-bit ARM processor");
  return table;
}
}  // namespace gemmule
