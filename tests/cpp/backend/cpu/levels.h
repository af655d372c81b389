// The instruction-set levels that this machine can run, for tests that compare them.
#pragma once

#include <vector>

#include "backend/cpu/kernel_select.h"

namespace gemmule::testing {

inline std::vector<const KernelTable*> usable_levels() {
  std::vector<const KernelTable*> tables;
  for (const KernelLevel& level : kernel_levels(detect_cpu_features()))
    if (level.supported) tables.push_back(level.table);
  return tables;
}

inline const KernelTable& scalar_level() { return select_kernels(detect_cpu_features(), "scalar"); }

}  // namespace gemmule::testing
