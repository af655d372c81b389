// Which instruction-set levels this build has, which of them this machine can run, and the choice of one.
#pragma once

#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernel_table.h"

namespace gemmule {

struct KernelLevel {
  const KernelTable* table;
  bool supported;  // on this machine, now
};

// All levels of this build, best first.
std::vector<KernelLevel> kernel_levels(const CpuFeatures& features);

// The level called `isa`, or the best supported one when `isa` is empty.
// Throws DeviceError naming the level and the ones that would work.
const KernelTable& select_kernels(const CpuFeatures& features, const std::string& isa);

}  // namespace gemmule
