// One row of any type to and from f32. The dequantizers agree with the `gguf` package by bits. So do the
// encoders of the float types and, without importance, of the 32-element formats, except where that package
// stores an infinite f16 scale or divides by a scale too small to have an inverse (here such blocks saturate
// or become zero) and where a Q4_0 block lies on a lattice (lattice.h). Compile with -ffp-contract=off, or
// the bits differ.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace gemmule {

struct Codec {
  DType dtype;
  void (*dequantize_row)(const uint8_t* src, float* dst, int64_t n);  // n: a multiple of the block size
  void (*quantize_row)(const float* src, uint8_t* dst, int64_t n);    // src must be finite
  float error_budget;  // largest accepted rms(x - round trip) / rms(x) on Gaussian data; tests hold it
};

const Codec& codec(DType dtype);

}  // namespace gemmule
