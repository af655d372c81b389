// The block formats of GGUF, byte for byte. `d`, `dmin` and `m` are IEEE half floats kept as bits.
// Value of element j: see each struct. Layout source: the GGUF quantization formats as documented in
// docs/FORMAT.md. This header is included by kernels, so it may not include any other.
#pragma once

#include <cstdint>

namespace gemmule {

struct BlockQ8_0 {  // 32 elements: d * q[j]
  uint16_t d;
  int8_t q[32];
};
struct BlockQ4_0 {  // 32 elements: d * (nibble - 8); low nibbles are elements 0..15, high nibbles 16..31
  uint16_t d;
  uint8_t qs[16];
};
struct BlockQ4_1 {  // 32 elements: d * nibble + m; nibbles as in Q4_0
  uint16_t d;
  uint16_t m;
  uint8_t qs[16];
};
struct BlockQ5_0 {  // 32 elements: d * (code - 16); bit 4 of element j is bit j of the 32-bit field qh
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ5_1 {  // 32 elements: d * code + m; codes as in Q5_0
  uint16_t d;
  uint16_t m;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ2_K {  // 256 elements, 16 sub-blocks of 16: (d * low4(scales[s])) * code - (dmin *
                    // high4(scales[s]))
  uint8_t scales[16];
  uint8_t qs[64];  // element 128h + 32c + l is bits 2c..2c+1 of qs[32h + l]
  uint16_t d;
  uint16_t dmin;
};
struct BlockQ3_K {     // 256 elements, 16 sub-blocks of 16: d * (scale6 - 32) * (code - 4)
  uint8_t hmask[32];   // bit 4h + c of hmask[l] is bit 2 of element 128h + 32c + l
  uint8_t qs[64];      // as in Q2_K: the low two bits
  uint8_t scales[12];  // 16 6-bit scales: low 4 bits in bytes 0..7, high 2 bits in bytes 8..11
  uint16_t d;
};
struct BlockQ4_K {  // 256 elements, 8 sub-blocks of 32: (d * scale6) * code - (dmin * min6)
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];  // 8 pairs of 6-bit scales and mins
  uint8_t qs[128];  // element 64c + l is the low nibble of qs[32c + l], element 64c + 32 + l the high nibble
};
struct BlockQ5_K {  // as Q4_K with a fifth bit: bit 2c (low nibble) or 2c+1 (high nibble) of qh[l]
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
struct BlockQ6_K {  // 256 elements, 16 sub-blocks of 16: d * scales[s] * (code - 32)
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24 && sizeof(BlockQ2_K) == 84);
static_assert(sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176);
static_assert(sizeof(BlockQ6_K) == 210);

}  // namespace gemmule
