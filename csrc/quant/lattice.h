// Blocks of 32 numbers that are already d * code with codes -8..7 and an f16 d, rounded to the type of the
// source: what quantization-aware training for Q4_0 leaves. They are stored without loss.
#pragma once

#include <cstdint>

namespace gemmule {

// x [32] finite, rounded to src_type (a DType number: F16, BF16, else taken as F32). If the block is on a
// lattice, fills block [18] (Q4_0) such that its numbers, rounded to src_type, equal x, and returns true. Of
// the scales that do with the same codes, it takes the one of least squared error. An all-zero block is on a
// lattice.
bool encode_lattice_q4_0(const float* x, uint32_t src_type, uint8_t* block) noexcept;

}  // namespace gemmule
