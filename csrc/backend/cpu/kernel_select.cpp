#include "backend/cpu/kernel_select.h"

#include "core/error.h"

namespace gemmule {

const KernelTable& kernels_scalar() noexcept;
#if defined(GEMMULE_HAVE_NEON)
const KernelTable& kernels_neon() noexcept;
const KernelTable& kernels_neon_dotprod() noexcept;
const KernelTable& kernels_neon_i8mm() noexcept;
#endif
#if defined(GEMMULE_HAVE_AVX512)
const KernelTable& kernels_avx512() noexcept;
#endif
#if defined(GEMMULE_HAVE_AVX_VNNI)
const KernelTable& kernels_avx_vnni() noexcept;
#endif
#if defined(GEMMULE_HAVE_AVX2)
const KernelTable& kernels_avx2() noexcept;
#endif

std::vector<KernelLevel> kernel_levels([[maybe_unused]] const CpuFeatures& features) {
  std::vector<KernelLevel> levels;
#if defined(GEMMULE_HAVE_AVX512)
  levels.push_back({&kernels_avx512(), features.avx512_vnni});
#endif
#if defined(GEMMULE_HAVE_AVX_VNNI)
  levels.push_back({&kernels_avx_vnni(), features.avx_vnni});
#endif
#if defined(GEMMULE_HAVE_AVX2)
  levels.push_back({&kernels_avx2(), features.avx2});
#endif
#if defined(GEMMULE_HAVE_NEON)
  levels.push_back({&kernels_neon_i8mm(), features.neon_i8mm});
  levels.push_back({&kernels_neon_dotprod(), features.neon_dotprod});
  levels.push_back({&kernels_neon(), features.neon});
#endif
  levels.push_back({&kernels_scalar(), true});
  return levels;
}

const KernelTable& select_kernels(const CpuFeatures& features, const std::string& isa) {
  std::string usable;
  for (const KernelLevel& level : kernel_levels(features)) {
    if (level.supported && (isa.empty() || isa == level.table->name)) return *level.table;
    if (level.supported) usable += (usable.empty() ? "" : ", ") + std::string(level.table->name);
  }
  throw DeviceError(cat("isa=\"", isa, "\" cannot run here; this build and machine offer: ", usable));
}

}  // namespace gemmule
