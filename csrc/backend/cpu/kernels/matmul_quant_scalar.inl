// Quantized matmuls in plain C++: the readable reference of the numeric contract (docs/DESIGN.md, "Numbers").
// Each block format is unpacked to one canonical form (signed codes, sub-block scales, mins, two f32
// factors); one body then computes, block after block in ascending order, with exact integers and one f32
// chain per output:
//   I = sum_s scale_s * sum_i q_i a_i        acc = fma(d * da, f32(I), acc)
//   M = sum_s min_s * sum_i a_i              acc = fma(m * da, f32(M), acc)      (formats with mins;
//   K-quants: m = -dmin)
#include "backend/cpu/kernel_table.h"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace quant_scalar {

inline float half_to_float(uint16_t h) noexcept {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in f32
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | sign);
  }
  if (exponent == 31) {  // a signalling NaN becomes quiet, as in the hardware conversions
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return __builtin_bit_cast(float, sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  return __builtin_bit_cast(float, sign | ((exponent + 112) << 23) | (mantissa << 13));
}

template <class Block>
Block load_block(const uint8_t* src) noexcept {
  Block block;
  __builtin_memcpy(&block, src, sizeof block);
  return block;
}

// Canonical form of one block of Size elements in sub-blocks of Sub elements. `q` has the format's offset (8,
// 16, 4, 32) already subtracted; `m` multiplies sum_s min_s * sum(a) when the format has mins.
template <int Size, int Sub>
struct Canonical {
  int16_t q[Size];
  int16_t scale[Size / Sub];
  int16_t min[Size / Sub];
  float d;
  float m;
};

struct Q8_0 {
  using Block = BlockQ8_0;
  static constexpr int kSize = 32, kSub = 32;
  static constexpr bool kMins = false;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.scale[0] = 1;
    for (int i = 0; i < 32; ++i) c.q[i] = b.q[i];
  }
};

struct Q4_0 {
  using Block = BlockQ4_0;
  static constexpr int kSize = 32, kSub = 32;
  static constexpr bool kMins = false;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.scale[0] = 1;
    for (int i = 0; i < 16; ++i) {
      c.q[i] = static_cast<int16_t>((b.qs[i] & 15) - 8);
      c.q[i + 16] = static_cast<int16_t>((b.qs[i] >> 4) - 8);
    }
  }
};

struct Q4_1 {
  using Block = BlockQ4_1;
  static constexpr int kSize = 32, kSub = 32;
  static constexpr bool kMins = true;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.m = half_to_float(b.m);
    c.scale[0] = 1;
    c.min[0] = 1;
    for (int i = 0; i < 16; ++i) {
      c.q[i] = b.qs[i] & 15;
      c.q[i + 16] = b.qs[i] >> 4;
    }
  }
};

// Codes of Q5_0 and Q5_1: four bits from qs, the fifth from bit i of the little-endian field qh.
inline void unpack_five_bits(const uint8_t* qh, const uint8_t* qs, int offset, int16_t* q) noexcept {
  const uint32_t high = qh[0] | qh[1] << 8 | qh[2] << 16 | static_cast<uint32_t>(qh[3]) << 24;
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int16_t>(((qs[i] & 15) | static_cast<int>((high >> i) & 1) << 4) - offset);
    q[i + 16] = static_cast<int16_t>(((qs[i] >> 4) | static_cast<int>((high >> (i + 16)) & 1) << 4) - offset);
  }
}

struct Q5_0 {
  using Block = BlockQ5_0;
  static constexpr int kSize = 32, kSub = 32;
  static constexpr bool kMins = false;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.scale[0] = 1;
    unpack_five_bits(b.qh, b.qs, 16, c.q);
  }
};

struct Q5_1 {
  using Block = BlockQ5_1;
  static constexpr int kSize = 32, kSub = 32;
  static constexpr bool kMins = true;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.m = half_to_float(b.m);
    c.scale[0] = 1;
    c.min[0] = 1;
    unpack_five_bits(b.qh, b.qs, 0, c.q);
  }
};

struct Q2_K {
  using Block = BlockQ2_K;
  static constexpr int kSize = 256, kSub = 16;
  static constexpr bool kMins = true;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.m = -half_to_float(b.dmin);
    for (int s = 0; s < 16; ++s) {
      c.scale[s] = b.scales[s] & 15;
      c.min[s] = b.scales[s] >> 4;
    }
    for (int half = 0; half < 2; ++half)
      for (int part = 0; part < 4; ++part)
        for (int l = 0; l < 32; ++l)
          c.q[128 * half + 32 * part + l] = (b.qs[32 * half + l] >> (2 * part)) & 3;
  }
};

struct Q3_K {
  using Block = BlockQ3_K;
  static constexpr int kSize = 256, kSub = 16;
  static constexpr bool kMins = false;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    for (int s = 0; s < 16; ++s) {
      const int low = s < 8 ? b.scales[s] & 15 : b.scales[s - 8] >> 4;
      const int high = (b.scales[8 + s % 4] >> (2 * (s / 4))) & 3;
      c.scale[s] = static_cast<int16_t>((low | high << 4) - 32);
    }
    for (int half = 0; half < 2; ++half)
      for (int part = 0; part < 4; ++part)
        for (int l = 0; l < 32; ++l) {
          const int low = (b.qs[32 * half + l] >> (2 * part)) & 3;
          const int high = (b.hmask[l] >> (4 * half + part)) & 1;
          c.q[128 * half + 32 * part + l] = static_cast<int16_t>((low | high << 2) - 4);
        }
  }
};

// The 6-bit scales and mins of Q4_K and Q5_K: pairs 0..3 lie plain in bytes 0..3 and 4..7; of pairs 4..7 the
// low four bits share bytes 8..11 and the high two bits fill up bytes 0..3 (scales) and 4..7 (mins).
inline void unpack_six_bit_pairs(const uint8_t* src, int16_t* scale, int16_t* min) noexcept {
  for (int s = 0; s < 4; ++s) {
    scale[s] = src[s] & 63;
    min[s] = src[s + 4] & 63;
    scale[s + 4] = static_cast<int16_t>((src[s + 8] & 15) | (src[s] >> 6) << 4);
    min[s + 4] = static_cast<int16_t>((src[s + 8] >> 4) | (src[s + 4] >> 6) << 4);
  }
}

struct Q4_K {
  using Block = BlockQ4_K;
  static constexpr int kSize = 256, kSub = 32;
  static constexpr bool kMins = true;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.m = -half_to_float(b.dmin);
    unpack_six_bit_pairs(b.scales, c.scale, c.min);
    for (int part = 0; part < 4; ++part)
      for (int l = 0; l < 32; ++l) {
        c.q[64 * part + l] = b.qs[32 * part + l] & 15;
        c.q[64 * part + 32 + l] = b.qs[32 * part + l] >> 4;
      }
  }
};

struct Q5_K {
  using Block = BlockQ5_K;
  static constexpr int kSize = 256, kSub = 32;
  static constexpr bool kMins = true;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    c.m = -half_to_float(b.dmin);
    unpack_six_bit_pairs(b.scales, c.scale, c.min);
    for (int part = 0; part < 4; ++part)
      for (int l = 0; l < 32; ++l) {
        const int high = b.qh[l] >> (2 * part);
        c.q[64 * part + l] = static_cast<int16_t>((b.qs[32 * part + l] & 15) | (high & 1) << 4);
        c.q[64 * part + 32 + l] = static_cast<int16_t>((b.qs[32 * part + l] >> 4) | (high & 2) << 3);
      }
  }
};

struct Q6_K {  // in each half of 128 elements, ql holds quarters 0|2 and 1|3 (low|high nibble), qh all four
               // (2 bits)
  using Block = BlockQ6_K;
  static constexpr int kSize = 256, kSub = 16;
  static constexpr bool kMins = false;
  static void unpack(const Block& b, Canonical<kSize, kSub>& c) noexcept {
    c.d = half_to_float(b.d);
    for (int s = 0; s < 16; ++s) c.scale[s] = b.scales[s];
    for (int half = 0; half < 2; ++half)
      for (int quarter = 0; quarter < 4; ++quarter)
        for (int l = 0; l < 32; ++l) {
          const int low = (b.ql[64 * half + 32 * (quarter & 1) + l] >> (quarter & 2 ? 4 : 0)) & 15;
          const int high = (b.qh[32 * half + l] >> (2 * quarter)) & 3;
          c.q[128 * half + 32 * quarter + l] = static_cast<int16_t>((low | high << 4) - 32);
        }
  }
};

// The contract. y itself is the chain of each output between blocks. block_at(row, b) gives block b of a row.
template <class Format, class BlockAt>
void matmul_blocks(const BlockAt& block_at, int64_t row_begin, int64_t row_end, const ActRows& x, float* y,
                   int64_t y_stride) noexcept {
  constexpr int kSize = Format::kSize;
  constexpr int kSub = Format::kSub;
  constexpr int kSumsPerBlock = kSize == 32 ? 1 : 16;  // sums of 32 codes (Q8_32) or of 16 codes (Q8_256)
  constexpr int kSumsPerSub = kSumsPerBlock * kSub / kSize;
  const int64_t n_blocks = x.k / kSize;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t t = 0; t < x.n; ++t) y[t * y_stride + row] = 0.0f;
    for (int64_t b = 0; b < n_blocks; ++b) {
      Canonical<kSize, kSub> c;
      Format::unpack(block_at(row, b), c);
      for (int64_t t = 0; t < x.n; ++t) {
        const int8_t* a = x.q + t * x.k + b * kSize;
        int32_t dot = 0;
        for (int s = 0; s < kSize / kSub; ++s) {
          int32_t sum = 0;
          for (int i = 0; i < kSub; ++i) sum += c.q[kSub * s + i] * a[kSub * s + i];
          dot += c.scale[s] * sum;
        }
        const float da = x.d[t * n_blocks + b];
        float& acc = y[t * y_stride + row];
        acc = __builtin_fmaf(c.d * da, static_cast<float>(dot), acc);
        if constexpr (Format::kMins) {
          const int16_t* sums = x.sums + (t * n_blocks + b) * kSumsPerBlock;
          int32_t mins = 0;
          for (int s = 0; s < kSize / kSub; ++s)
            for (int i = 0; i < kSumsPerSub; ++i) mins += c.min[s] * sums[kSumsPerSub * s + i];
          acc = __builtin_fmaf(c.m * da, static_cast<float>(mins), acc);
        }
      }
    }
  }
}

template <class Format>
void matmul(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
            float* y, int64_t y_stride) noexcept {
  using Block = typename Format::Block;
  const auto block_at = [&](int64_t row, int64_t b) noexcept {
    return load_block<Block>(w + row * w_stride + b * static_cast<int64_t>(sizeof(Block)));
  };
  matmul_blocks<Format>(block_at, row_begin, row_end, x, y, y_stride);
}

// Blocks of Size activations to int8; one sum per Group codes. A block whose largest magnitude m is zero, so
// small that 127 / m overflows, infinite or NaN gets codes 0; d = m / 127 then still carries infinity and NaN
// on.
template <int Size, int Group>
void quantize(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  for (int64_t b = 0; b < k / Size; ++b) {
    const float* src = x + b * Size;
    int8_t* dst = q + b * Size;
    uint32_t bits[Size];
    __builtin_memcpy(bits, src, sizeof bits);
    int32_t max_bits = 0;  // magnitudes order as integers, with NaN above infinity
    for (int i = 0; i < Size; ++i) {
      const int32_t magnitude = static_cast<int32_t>(bits[i] & 0x7fffffffu);
      max_bits = magnitude > max_bits ? magnitude : max_bits;
    }
    const float m = __builtin_bit_cast(float, max_bits);
    const float inv = m > 0.0f ? 127.0f / m : 0.0f;
    d[b] = m / 127.0f;
    int16_t* block_sums = sums + b * (Size / Group);
    if (!(inv > 0.0f && inv < __builtin_inff())) {
      __builtin_memset(dst, 0, Size);
      __builtin_memset(block_sums, 0, sizeof(int16_t) * (Size / Group));
      continue;
    }
    for (int g = 0; g < Size / Group; ++g) {
      int32_t sum = 0;
      for (int i = Group * g; i < Group * (g + 1); ++i) {
        // Adding 1.5 * 2^23 leaves the nearest integer (ties to even) in the low bits of the sum.
        const float shifted = src[i] * inv + 0x1.8p23f;
        const int32_t code = static_cast<int32_t>(__builtin_bit_cast(uint32_t, shifted)) - 0x4b400000;
        dst[i] = static_cast<int8_t>(code);
        sum += code;
      }
      block_sums[g] = static_cast<int16_t>(sum);
    }
  }
}

}  // namespace quant_scalar

void matmul_q8_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q8_0>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q4_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q4_0>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q4_1(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q4_1>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q5_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q5_0>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q5_1(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q5_1>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q2_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q2_K>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q3_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q3_K>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q4_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q4_K>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q5_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q5_K>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
void matmul_q6_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void*) noexcept {
  quant_scalar::matmul<quant_scalar::Q6_K>(w, w_stride, row_begin, row_end, x, y, y_stride);
}

void quantize_q8_32(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_scalar::quantize<32, 32>(x, k, q, d, sums);
}
void quantize_q8_256(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_scalar::quantize<256, 16>(x, k, q, d, sums);
}

size_t matmul_scratch_bytes(int64_t, int64_t) noexcept { return 0; }

}  // namespace
}  // namespace gemmule
