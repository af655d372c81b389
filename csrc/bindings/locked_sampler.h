// A sampler has scratch of its own, so two threads that share one take turns.
#pragma once

#include <mutex>

#include "engine/sampler.h"

namespace gemmule {

struct LockedSampler {
  Sampler sampler;
  std::mutex mutex;
};

}  // namespace gemmule
