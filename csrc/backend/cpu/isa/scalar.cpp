// The portable level: plain C++, the architecture's baseline. The reference all other levels are compared
// with.
#include "backend/cpu/isa/vec_scalar.h"
#include "backend/cpu/isa/wide_pair.h"
#include "backend/cpu/kernels/matmul_packed_scalar.inl"
#include "backend/cpu/kernels/table.inl"

namespace gemmule {
const KernelTable& kernels_scalar() noexcept {
  static constexpr KernelTable table = make_table("scalar", "portable C++");
  return table;
}
}  // namespace gemmule
