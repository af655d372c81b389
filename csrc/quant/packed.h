// The packed layout r8p64: the blocks of a quantized matrix in the order in which kernels use them. A
// permutation of the bits of GGUF's blocks, so packing loses nothing and takes not one byte more.
//
// A panel holds 64 rows (the last panel of a matrix 8 to 56), all of K, in this order:
//
//   steps of 256 elements of K (the last step of a 32-element type may hold fewer blocks)
//     Q6_K and Q3_K: f16 d[groups][8], all groups of the step (16 bytes a group would put what follows off
//     the 32-byte grid)
//     groups of 8 rows
//       the group: the block of 256 elements, or the n (up to eight) blocks of 32 elements, of each of its
//       rows
//
// A panel therefore has the size of its rows in GGUF, and panel p starts where row 64 p would.
//
// A *vector* is 32 bytes: byte 4 r + i belongs to row r (0..7) of the group and to element i (0..3) of a
// k-group, four consecutive elements. Arrays below are indexed [..][row]. A code is what GGUF stores,
// unsigned and before any offset. "bits a..b: k-group g" = those bits of every byte of the vector belong to
// k-group g.
//
//   Q8_0   f16 d[n][8]; each block: 8 vectors of i8, k-groups 0..7
//   Q4_0   f16 d[n][8]; each block: 4 vectors v: bits 0..3 k-group v, bits 4..7 k-group v + 4
//   Q4_1   f16 d[n][8]; f16 m[n][8]; blocks as Q4_0
//   Q5_0   f16 d[n][8]; each block: vector H, bit g = bit 4 of the codes of k-group g; 4 vectors as Q4_0
//   Q5_1   f16 d[n][8]; f16 m[n][8]; blocks as Q5_0
//   Q4_K   f16 d[8]; f16 dmin[8]; u8 lo[8][8]: sub-block j: scale & 15 | (min & 15) << 4;
//          u8 hi[4][8]: sub-block j (low nibble) and j + 4 (high): scale >> 4 | (min >> 4) << 2;
//          8 sub-blocks of 32: 4 vectors as Q4_0                                            (1152 bytes)
//   Q5_K   as Q4_K, but each sub-block of 32 as a block of Q5_0                             (1408 bytes)
//   Q6_K   i8 scale[16][8]; 16 sub-blocks of 16: 3 vectors B0..B2 for the k-groups C0..C3:
//          B_i = C_i | (C3 >> 2 i & 3) << 6                                                 (1664 bytes)
//   Q3_K   u8 lo[8][8]: sub-block j (low nibble) and j + 8 (high): scale & 15;
//          u8 hi[4][8]: sub-blocks j, j + 4, j + 8, j + 12 from the low bits on: scale >> 4;
//          8 pairs of sub-blocks of 16: H: bit g = bit 2 of the codes of k-group g of the pair (0..7);
//          2 vectors: vector s, bits 2 v..2 v + 1 = bits 0..1 of k-group v (0..3) of sub-block s
//                                                                                            (864 bytes)
//   Q2_K   f16 d[8]; f16 dmin[8]; u8 scale[16][8]: scale | min << 4;
//          16 sub-blocks of 16: 1 vector, bits 2 v..2 v + 1 = k-group v (0..3)               (672 bytes)
//
// F32, F16 and BF16 have no packed form, nor has a matrix whose rows are not a multiple of 8.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace gemmule {

inline constexpr int64_t kPanelRows = 64;
inline constexpr int64_t kGroupRows = 8;
inline constexpr int64_t kStepElements = 256;

// Whether a matrix of this type and shape has a packed form.
bool can_pack(DType dtype, int64_t rows, int64_t cols);

// The portable packer and its inverse, for whole matrices: `from` and `to` hold rows * row_bytes(dtype, cols)
// bytes and do not overlap. Throws std::invalid_argument where can_pack is false.
void pack_rows(DType dtype, int64_t rows, int64_t cols, const uint8_t* from, uint8_t* to);
void unpack_rows(DType dtype, int64_t rows, int64_t cols, const uint8_t* from, uint8_t* to);

// One row of a packed matrix as GGUF blocks: row_size() bytes.
void unpack_row(const Tensor& packed, int64_t row, uint8_t* to);

}  // namespace gemmule
