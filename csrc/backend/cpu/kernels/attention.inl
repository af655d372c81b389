// Attention of the query heads of one key/value head for some tokens: softmax(q k^T) v over the range each
// sees. Order of every number, whatever the company: chunks of 256 positions anchored at position 0; inside a
// chunk
//   s_i = q . k_i (8 lanes, fixed tree), m = max s_i, p_i = exp(s_i - m), l = sum p_i (lane i mod 8, fixed
//   tree), o_d = ascending fma(p_i, v_i[d], o_d) from +0;
// chunks combine ascending: M = max(m1, m2), l = fma(l1, e1, l2 * e2), o = fma(o1, e1, o2 * e2), e = exp(m -
// M). A position outside a row's range never enters its sums; one outside the range of all rows is never
// read.
//
// A row is one head of one token; rows are ordered by token, so that neighbours see nearly the same
// positions. Few rows read the cache as it is; many rows first convert a piece of K or V to f32 and share it.
#pragma once

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/math.inl"

namespace gemmule {
namespace {

inline constexpr int64_t kScoreStride =
    kAttendChunk + 8;                        // not a power of two: rows spread over the cache sets
inline constexpr int64_t kKeyFloats = 4096;  // converted keys used by all rows in turn, half of the L1 cache
inline constexpr int64_t kValueTile = 64;    // positions whose converted values are used by all rows in turn
inline constexpr int64_t kPanel = 16;        // dims of one panel of converted values
inline constexpr int64_t kDirectRows = 4;    // up to so many rows work straight from the cache
inline constexpr int64_t kRowGroup = 4;      // rows of one micro-tile

inline int64_t smaller(int64_t a, int64_t b) noexcept { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) noexcept { return a > b ? a : b; }
inline int64_t padded_dim(int64_t head_dim) noexcept { return (head_dim + kPanel - 1) / kPanel * kPanel; }

// All buffers of one call, cut out of the scratch. Every size is a multiple of 64 bytes.
struct AttendScratch {
  float* scores;     // f32 [rows][kScoreStride]: scores of the chunk, then their exponentials
  float* partial;    // f32 [rows][padded_dim]: o of the chunk
  float* keys;       // f32 [kKeyFloats / head_dim][head_dim]
  float* values;     // f32 [padded_dim / 16][kValueTile][16]
  float* max;        // f32 [rows]: m so far
  float* sum;        // f32 [rows]: l so far
  float* chunk_max;  // f32 [rows]: m and l of the chunk
  float* chunk_sum;
  int64_t* begin;  // [rows]: first and last + 1 visible position inside the chunk
  int64_t* end;    // [rows]
};

inline int64_t padded_rows(int64_t n_rows) noexcept { return (n_rows + 15) / 16 * 16; }

inline size_t attend_scratch_bytes(int64_t head_dim, int64_t n_rows) noexcept {
  const int64_t rows = padded_rows(n_rows), dim = padded_dim(head_dim);
  return static_cast<size_t>(
      4 * (rows * (kScoreStride + dim + 4) + larger(kKeyFloats, 8 * dim) + kValueTile * dim) + 16 * rows);
}

inline AttendScratch cut_scratch(void* scratch, int64_t head_dim, int64_t n_rows) noexcept {
  const int64_t rows = padded_rows(n_rows), dim = padded_dim(head_dim);
  AttendScratch s;
  s.scores = static_cast<float*>(scratch);
  s.partial = s.scores + rows * kScoreStride;
  s.keys = s.partial + rows * dim;
  s.values = s.keys + larger(kKeyFloats, 8 * dim);
  s.max = s.values + kValueTile * dim;
  s.sum = s.max + rows;
  s.chunk_max = s.sum + rows;
  s.chunk_sum = s.chunk_max + rows;
  s.begin = reinterpret_cast<int64_t*>(s.chunk_sum + rows);
  s.end = s.begin + rows;
  return s;
}

// s[r * kScoreStride + j] = q[r] . k[j] for kRows rows and kKeys keys; k [kKeys][k_stride].
template <int kRows, int kKeys, class Key>
inline void score_tile(const float* const* q, const Key* k, int64_t dim, float* s) noexcept {
  const float* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = q[r];
  F8 acc[kRows * kKeys];
#pragma GCC unroll 8
  for (int i = 0; i < kRows * kKeys; ++i) acc[i] = zero8();
  for (int64_t d = 0; d < dim; d += 8) {
    F8 key[kKeys];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) key[j] = load8(k + j * dim + d);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      F8 a = load8(row[r] + d);
      pin(a);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) acc[r * kKeys + j] = fma(a, key[j], acc[r * kKeys + j]);
    }
  }
  if constexpr (kRows * kKeys == 8) {
    float total[8];
    store8(total, sum8_of_8(acc));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) __builtin_memcpy(s + r * kScoreStride, total + r * kKeys, 4 * kKeys);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) s[r * kScoreStride + j] = sum8(acc[r * kKeys + j]);
    }
  }
}

// The same for n keys in a row.
template <int kRows, class Key>
inline void score_rows(const float* const* q, const Key* k, int64_t n, int64_t dim, float* s) noexcept {
  constexpr int kKeys = kRows == 1 ? 8 : kRows == 2 ? 4 : 2;
  int64_t j = 0;
  for (; j + kKeys <= n; j += kKeys) score_tile<kRows, kKeys>(q, k + j * dim, dim, s + j);
  for (; j < n; ++j) score_tile<kRows, 1>(q, k + j * dim, dim, s + j);
}

// o[r][0..8w) += sum over n positions, ascending, of p[r][i] * v[i][0..8w); v has v_stride elements per
// position.
template <int kRows, int kWidth, class Value>
inline void value_tile(const float* p, const Value* v, int64_t v_stride, int64_t n, float* o,
                       int64_t o_stride) noexcept {
  F8 acc[kRows][kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWidth; ++w) acc[r][w] = load8(o + r * o_stride + 8 * w);
  }
  for (int64_t i = 0; i < n; ++i) {
    F8 value[kWidth];
#pragma GCC unroll 8
    for (int w = 0; w < kWidth; ++w) value[w] = load8(v + i * v_stride + 8 * w);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F8 weight = set1(p[r * kScoreStride + i]);
#pragma GCC unroll 8
      for (int w = 0; w < kWidth; ++w) acc[r][w] = fma(weight, value[w], acc[r][w]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWidth; ++w) store8(o + r * o_stride + 8 * w, acc[r][w]);
  }
}

// The visible part [begin, end) of one row in a tile of positions [t0, t1).
struct Span {
  int64_t begin, end;
};
inline Span clip(const AttendScratch& s, int64_t row, int64_t t0, int64_t t1) noexcept {
  return {larger(s.begin[row], t0), smaller(s.end[row], t1)};
}

// Adds the values of the positions [t0, t1) of a chunk to kRows rows, 8 * kWidth dims; `v` points at position
// t0. The positions all rows see go through the shared micro-tile, the ragged rest row by row, each row in
// ascending order. (A masked position is skipped rather than given the weight 0, which could turn a -0 into
// +0.)
template <int kRows, int kWidth, class Value>
inline void value_rows(const AttendScratch& s, int64_t row, int64_t t0, int64_t t1, const Value* v,
                       int64_t v_stride, float* o, int64_t o_stride) noexcept {
  const float* p = s.scores + row * kScoreStride;
  Span all{t0, t1};
  bool ragged = false;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Span one = clip(s, row + r, t0, t1);
    ragged |= r > 0 && (one.begin != all.begin || one.end != all.end);
    all.begin = larger(all.begin, one.begin);
    all.end = smaller(all.end, one.end);
  }
  if (all.end < all.begin) all.end = all.begin;
  if (ragged) {
    for (int64_t r = 0; r < kRows; ++r) {
      const Span one = clip(s, row + r, t0, t1);
      const int64_t end = smaller(one.end, all.begin);
      if (one.begin < end) {
        value_tile<1, kWidth>(p + r * kScoreStride + one.begin, v + (one.begin - t0) * v_stride, v_stride,
                              end - one.begin, o + r * o_stride, o_stride);
      }
    }
  }
  if (all.begin < all.end) {
    value_tile<kRows, kWidth>(p + all.begin, v + (all.begin - t0) * v_stride, v_stride, all.end - all.begin,
                              o, o_stride);
  }
  if (ragged) {
    for (int64_t r = 0; r < kRows; ++r) {
      const Span one = clip(s, row + r, t0, t1);
      const int64_t begin = larger(one.begin, all.end);
      if (begin < one.end) {
        value_tile<1, kWidth>(p + r * kScoreStride + begin, v + (begin - t0) * v_stride, v_stride,
                              one.end - begin, o + r * o_stride, o_stride);
      }
    }
  }
}

template <int kWidth, class Value>
inline void value_some_rows(const AttendScratch& s, int64_t row, int64_t n_rows, int64_t t0, int64_t t1,
                            const Value* v, int64_t v_stride, float* o, int64_t o_stride) noexcept {
  switch (n_rows) {
    case 1:
      value_rows<1, kWidth>(s, row, t0, t1, v, v_stride, o, o_stride);
      break;
    case 2:
      value_rows<2, kWidth>(s, row, t0, t1, v, v_stride, o, o_stride);
      break;
    case 3:
      value_rows<3, kWidth>(s, row, t0, t1, v, v_stride, o, o_stride);
      break;
    default:
      value_rows<4, kWidth>(s, row, t0, t1, v, v_stride, o, o_stride);
      break;
  }
}

template <class Key>
inline void score_some_rows(const float* const* q, int64_t n_rows, const Key* k, int64_t n, int64_t dim,
                            float* s) noexcept {
  switch (n_rows) {
    case 1:
      score_rows<1>(q, k, n, dim, s);
      break;
    case 2:
      score_rows<2>(q, k, n, dim, s);
      break;
    case 3:
      score_rows<3>(q, k, n, dim, s);
      break;
    default:
      score_rows<4>(q, k, n, dim, s);
      break;
  }
}

// Turns the scores [begin, end) of one row into exponentials; returns their maximum and their sum.
struct MaxSum {
  float max, sum;
};
inline MaxSum softmax_chunk(float* s, int64_t begin, int64_t end) noexcept {
  const int64_t first = begin / 8 * 8, last = (end + 7) / 8 * 8;
  const float minus_inf = -__builtin_inff();
  for (int64_t i = first; i < begin; ++i) s[i] = minus_inf;
  for (int64_t i = end; i < last; ++i) s[i] = minus_inf;
  F8 top = load8(s + first);
  for (int64_t i = first + 8; i < last; i += 8) top = max(top, load8(s + i));
  const float m = max_lane(top);
  F8 lanes = zero8();
  for (int64_t i = first; i < last; i += 8) {
    const F8 p = exp8(sub(load8(s + i), set1(m)));
    store8(s + i, p);
    lanes = add(lanes, p);
  }
  return {m, sum8(lanes)};
}

// o = fma(o, e1, partial * e2)
inline void combine_rows(float* o, const float* partial, float e1, float e2, int64_t dim) noexcept {
  const F8 f1 = set1(e1), f2 = set1(e2);
  for (int64_t d = 0; d < dim; d += 8) store8(o + d, fma(load8(o + d), f1, mul(load8(partial + d), f2)));
}

template <class Kv>
inline void attend_rows(const AttendArgs& args) noexcept {
  const int64_t dim = args.head_dim, heads = args.head_end - args.head_begin;
  const int64_t n_rows = args.n_tokens * heads, o_stride = padded_dim(dim);
  const AttendScratch s = cut_scratch(args.scratch, dim, n_rows);
  const auto query = [&](int64_t row) {
    return args.q + row / heads * args.q_stride + (args.head_begin + row % heads) * dim;
  };
  int64_t lo = args.lo[0], hi = args.hi[0];
  for (int64_t t = 1; t < args.n_tokens; ++t) {
    lo = smaller(lo, args.lo[t]);
    hi = larger(hi, args.hi[t]);
  }
  const bool direct = n_rows <= kDirectRows;
  const int64_t key_tile = direct ? kAttendChunk : larger(kKeyFloats / dim / 8 * 8, 8);

  for (int64_t base = lo / kAttendChunk * kAttendChunk; base < hi; base += kAttendChunk) {
    // Everything below counts positions from `base`; the chunk lies in contiguous slots.
    const Kv* k = static_cast<const Kv*>(args.k) + base % args.ring * dim;
    const Kv* v = static_cast<const Kv*>(args.v) + base % args.ring * dim;
    int64_t first = kAttendChunk, last = 0;  // positions that some row sees
    for (int64_t t = 0; t < args.n_tokens; ++t) {
      const int64_t begin = smaller(larger(args.lo[t] - base, 0), kAttendChunk);
      const int64_t end = larger(smaller(args.hi[t] - base, kAttendChunk), 0);
      for (int64_t h = 0; h < heads; ++h) {
        s.begin[t * heads + h] = begin;
        s.end[t * heads + h] = larger(begin, end);
      }
      if (begin < end) {
        first = smaller(first, begin);
        last = larger(last, end);
      }
    }

    for (int64_t t0 = first; t0 < last; t0 += key_tile) {
      const int64_t t1 = smaller(t0 + key_tile, last);
      if (!direct) {
        for (int64_t i = 0; i < (t1 - t0) * dim; i += 8) store8(s.keys + i, load8(k + t0 * dim + i));
      }
      for (int64_t row = 0; row < n_rows; row += kRowGroup) {
        const int64_t group = smaller(kRowGroup, n_rows - row);
        const float* q[kRowGroup];
        int64_t begin = t1, end = t0;
        for (int64_t r = 0; r < group; ++r) {
          q[r] = query(row + r);
          const Span one = clip(s, row + r, t0, t1);
          if (one.begin >= one.end) continue;
          begin = smaller(begin, one.begin);
          end = larger(end, one.end);
        }
        if (begin >= end) continue;
        float* scores = s.scores + row * kScoreStride + begin;
        if (direct) {
          score_some_rows(q, group, k + begin * dim, end - begin, dim, scores);
        } else {
          score_some_rows(q, group, s.keys + (begin - t0) * dim, end - begin, dim, scores);
        }
      }
    }

    for (int64_t i = 0; i < n_rows * o_stride; i += 8) store8(s.partial + i, zero8());
    for (int64_t row = 0; row < n_rows; ++row) {
      if (s.begin[row] >= s.end[row]) continue;
      const MaxSum c = softmax_chunk(s.scores + row * kScoreStride, s.begin[row], s.end[row]);
      s.chunk_max[row] = c.max;
      s.chunk_sum[row] = c.sum;
    }

    for (int64_t t0 = first; t0 < last; t0 += kValueTile) {
      const int64_t t1 = smaller(t0 + kValueTile, last);
      if (direct) {
        for (int64_t row = 0; row < n_rows; row += kRowGroup) {
          const int64_t group = smaller(kRowGroup, n_rows - row);
          float* o = s.partial + row * o_stride;
          int64_t d = 0;
          for (; d + kPanel <= dim; d += kPanel) {
            value_some_rows<2>(s, row, group, t0, t1, v + t0 * dim + d, dim, o + d, o_stride);
          }
          if (d < dim) value_some_rows<1>(s, row, group, t0, t1, v + t0 * dim + d, dim, o + d, o_stride);
        }
        continue;
      }
      for (int64_t i = 0; i < t1 - t0; ++i) {
        const Kv* from = v + (t0 + i) * dim;
        float* to = s.values + i * kPanel;
        for (int64_t d = 0; d < dim; d += 8) {
          store8(to + d / kPanel * kPanel * kValueTile + d % kPanel, load8(from + d));
        }
        if (dim < o_stride) store8(to + dim / kPanel * kPanel * kValueTile + 8, zero8());
      }
      for (int64_t d = 0; d < dim; d += kPanel) {
        for (int64_t row = 0; row < n_rows; row += kRowGroup) {
          value_some_rows<2>(s, row, smaller(kRowGroup, n_rows - row), t0, t1, s.values + d * kValueTile,
                             kPanel, s.partial + row * o_stride + d, o_stride);
        }
      }
    }

    for (int64_t row = 0; row < n_rows; ++row) {
      if (s.begin[row] >= s.end[row]) continue;
      float* o = args.out + row / heads * args.out_stride + (args.head_begin + row % heads) * dim;
      const float* partial = s.partial + row * o_stride;
      const float m2 = s.chunk_max[row], l2 = s.chunk_sum[row];
      if (args.lo[row / heads] >= base) {  // the first chunk of this row
        for (int64_t d = 0; d < dim; d += 8) store8(o + d, load8(partial + d));
        s.max[row] = m2;
        s.sum[row] = l2;
      } else {
        const float m1 = s.max[row], top = m1 > m2 ? m1 : m2;
        float e[8] = {m1 - top, m2 - top};
        store8(e, exp8(load8(e)));
        combine_rows(o, partial, e[0], e[1], dim);
        s.max[row] = top;
        s.sum[row] = fma_lane(s.sum[row], e[0], l2 * e[1]);
      }
      if (args.hi[row / heads] <= base + kAttendChunk) {  // its last chunk
        const F8 l = set1(s.sum[row]);
        for (int64_t d = 0; d < dim; d += 8) store8(o + d, div(load8(o + d), l));
      }
    }
  }
}

inline void attend(const AttendArgs& args) noexcept {
  if (args.kv_f16) {
    attend_rows<Half>(args);
  } else {
    attend_rows<float>(args);
  }
}

}  // namespace
}  // namespace gemmule
