// Which tokens a grammar allows: one bit for each, in words of 32.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/error.h"

namespace gemmule {

using Mask = pybind11::array_t<uint32_t, pybind11::array::c_style>;

// As Sampler::sample takes it; empty for None.
inline std::vector<uint32_t> mask_words(const std::optional<Mask>& mask, int64_t n_vocab) {
  if (!mask) return {};
  const int64_t n_words = (n_vocab + 31) / 32;
  if (mask->ndim() != 1 || mask->size() != n_words)
    throw std::invalid_argument(cat("mask must have the shape [", n_words, "], a bit for every token"));
  return {mask->data(), mask->data() + mask->size()};
}

}  // namespace gemmule
