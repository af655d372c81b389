// The packed 6-bit scales of the K formats: Q4_K and Q5_K keep 8 (scale, min) pairs in 12 bytes, Q3_K 16
// scales. Layout source: docs/FORMAT.md. Free of includes beyond <cstdint> and of external symbols
// (everything is static), so that objects compiled for different instruction sets may share it.
#pragma once

#include <cstdint>

namespace gemmule {

struct ScaleMin {
  uint8_t scale;  // 0..63
  uint8_t min;    // 0..63
};

// Pair j (0..7) of `packed` [12]. Bytes 0..3: low 6 bits are the scales 0..3, the top 2 bits those of
// scales 4..7; bytes 4..7: the same for the mins; bytes 8..11: low nibbles of the scales 4..7, high nibbles
// of the mins 4..7.
static inline ScaleMin unpack_scale_min(const uint8_t* packed, int j) {
  if (j < 4) return {static_cast<uint8_t>(packed[j] & 63), static_cast<uint8_t>(packed[j + 4] & 63)};
  return {static_cast<uint8_t>((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)),
          static_cast<uint8_t>((packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))};
}

// The inverse for all 8 `pairs`; every byte of `packed` [12] is written.
static inline void pack_scale_mins(const ScaleMin* pairs, uint8_t* packed) {
  for (int j = 0; j < 4; ++j) {
    const ScaleMin low = pairs[j];
    const ScaleMin high = pairs[j + 4];
    packed[j] = static_cast<uint8_t>(low.scale | ((high.scale >> 4) << 6));
    packed[j + 4] = static_cast<uint8_t>(low.min | ((high.min >> 4) << 6));
    packed[j + 8] = static_cast<uint8_t>((high.scale & 15) | ((high.min & 15) << 4));
  }
}

// Scale s (0..15) of a Q3_K block, -32..31. `packed` [12]: nibble s of bytes 0..7 (low nibbles first) is its
// low part, bits 2(s/4)..2(s/4)+1 of byte 8 + s%4 its top two bits.
static inline int unpack_scale_q3(const uint8_t* packed, int s) {
  const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
  const int high = (packed[8 + s % 4] >> (2 * (s / 4))) & 3;
  return (low | (high << 4)) - 32;
}

// The inverse for all 16 `scales` (-32..31); every byte of `packed` [12] is written.
static inline void pack_scales_q3(const int8_t* scales, uint8_t* packed) {
  for (int i = 0; i < 12; ++i) packed[i] = 0;
  for (int s = 0; s < 16; ++s) {
    const int code = scales[s] + 32;
    packed[s % 8] = static_cast<uint8_t>(packed[s % 8] | ((code & 15) << (s < 8 ? 0 : 4)));
    packed[8 + s % 4] = static_cast<uint8_t>(packed[8 + s % 4] | ((code >> 4) << (2 * (s / 4))));
  }
}

}  // namespace gemmule
