// Attention of the query heads of one key/value head for some tokens: softmax(q k^T) v over the range each
// sees. Order of every number, whatever the company: chunks of 256 positions anchored at position 0; inside a
// chunk
//   s_i = q . k_i (8 lanes, fixed tree), m = max s_i, p_i = exp(s_i - m), l = sum p_i (lane i mod 8, fixed
//   tree), o_d = ascending fma(p_i, v_i[d], o_d) from +0;
// chunks combine ascending: M = max(m1, m2), l = fma(l1, e1, l2 * e2), o = fma(o1, e1, o2 * e2), e = exp(m -
// M). Here exp(x) is 0 for x < kVanish. A position outside a row's range never enters its sums; one outside
// the range of all rows is never read.
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
inline constexpr int64_t kValueTile = 128;   // positions whose converted values are used by all rows in turn
inline constexpr int64_t kPanel = 16;        // dims of one panel of converted values
inline constexpr int64_t kPanelStride = kValueTile * kPanel + kPanel;  // again no power of two
inline constexpr int64_t kDirectRows = 16;  // up to so many rows work straight from the cache
inline constexpr int64_t kRowGroup = 6;     // most rows of one micro-tile: 6 x 2 accumulators

// A weight below e^-64 (2^-92) cannot change a sum that begins with 1, but its products with small values
// would be subnormal, and an instruction with subnormal numbers takes a hundred cycles instead of one.
inline constexpr float kVanish = -64.0f;
inline F8 exp_weight8(F8 x) noexcept { return zero_below(exp8(x), x, set1(kVanish)); }

inline int64_t smaller(int64_t a, int64_t b) noexcept { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) noexcept { return a > b ? a : b; }
inline int64_t padded_dim(int64_t head_dim) noexcept { return (head_dim + kPanel - 1) / kPanel * kPanel; }

// The visible part [begin, end) of one row in a tile of positions [t0, t1).
struct Span {
  int64_t begin, end;
};

// The positions of [t0, t1) that all rows of a group see; ragged if some row sees others, too.
struct Joint {
  int64_t begin, end;
  bool ragged;
};

// Of one row in one chunk.
struct MaxSum {
  float max, sum;
};

// All buffers of one call, cut out of the scratch. rows is rounded up to 16, so that every size is a multiple
// of 64 bytes.
struct AttendScratch {
  float* scores;        // f32 [rows][kScoreStride]: scores of the chunk, then their exponentials
  float* partial;       // f32 [rows][padded_dim]: o of the chunk
  float* keys;          // f32 [key_tile][head_dim]
  float* values;        // f32 [padded_dim / 16][kPanelStride], each [kValueTile][16]
  float* max;           // f32 [rows]: m so far
  float* sum;           // f32 [rows]: l so far
  MaxSum* chunk;        // [rows]: m and l of the chunk
  const float** query;  // [rows]: where q of the row lies
  float** out;          // [rows]: where its result goes
  int64_t* begin;       // [rows]: first and last + 1 visible position inside the chunk
  int64_t* end;         // [rows]
  Joint* joint;         // [rows]: of the group that starts at this row
};

inline int64_t padded_rows(int64_t n_rows) noexcept { return (n_rows + 15) / 16 * 16; }
inline int64_t key_tile(int64_t head_dim) noexcept { return larger(kKeyFloats / head_dim / 8 * 8, 8); }

// Gives the next n elements at `at`, and moves it behind them.
template <class T>
inline T* take(uint8_t*& at, int64_t n) noexcept {
  T* here = reinterpret_cast<T*>(at);
  at += n * static_cast<int64_t>(sizeof(T));
  return here;
}

inline AttendScratch cut_scratch(uint8_t*& at, int64_t head_dim, int64_t n_rows) noexcept {
  const int64_t rows = padded_rows(n_rows), dim = padded_dim(head_dim);
  AttendScratch s;
  s.scores = take<float>(at, rows * kScoreStride);
  s.partial = take<float>(at, rows * dim);
  s.keys = take<float>(at, key_tile(head_dim) * dim);
  s.values = take<float>(at, dim / kPanel * kPanelStride);
  s.max = take<float>(at, rows);
  s.sum = take<float>(at, rows);
  s.chunk = take<MaxSum>(at, rows);
  s.query = take<const float*>(at, rows);
  s.out = take<float*>(at, rows);
  s.begin = take<int64_t>(at, rows);
  s.end = take<int64_t>(at, rows);
  s.joint = take<Joint>(at, rows);
  return s;
}

inline size_t attend_scratch_bytes(int64_t head_dim, int64_t n_rows) noexcept {
  const int64_t rows = padded_rows(n_rows), dim = padded_dim(head_dim);
  const int64_t floats =
      rows * (kScoreStride + dim + 2) + key_tile(head_dim) * dim + dim / kPanel * kPanelStride;
  const size_t per_row = sizeof(MaxSum) + 2 * sizeof(float*) + 2 * sizeof(int64_t) + sizeof(Joint);
  return sizeof(float) * static_cast<size_t>(floats) + per_row * static_cast<size_t>(rows);
}

// out[i] = sum8(a[i]), eight at a time where possible.
template <int kCount>
inline void sum_lanes(const F8 (&a)[kCount], float* out) noexcept {
  constexpr int kEights = kCount / 8 * 8, kFours = kCount / 4 * 4;
  if constexpr (kEights > 0) store8(out, sum8_of_8(a));
  if constexpr (kFours > kEights) sum8_of_4(a + kEights, out + kEights);
#pragma GCC unroll 4
  for (int i = kFours; i < kCount; ++i) out[i] = sum8(a[i]);
}

// s[r * kScoreStride + j] = q[r] . k[j] for kRows rows and kKeys keys; k [kKeys][k_stride].
template <int kRows, int kKeys, class Key>
inline void score_tile(const float* const* q, const Key* k, int64_t dim, float* s) noexcept {
  const float* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = q[r];
  F8 acc[kRows * kKeys];
#pragma GCC unroll 16
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
  float total[kRows * kKeys];
  sum_lanes(acc, total);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) __builtin_memcpy(s + r * kScoreStride, total + r * kKeys, 4 * kKeys);
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

inline Span clip(const AttendScratch& s, int64_t row, int64_t t0, int64_t t1) noexcept {
  return {larger(s.begin[row], t0), smaller(s.end[row], t1)};
}

inline Joint joint_span(const AttendScratch& s, int64_t row, int64_t n_rows, int64_t t0,
                        int64_t t1) noexcept {
  const Span first = clip(s, row, t0, t1);
  Joint all{first.begin, first.end, false};
  for (int64_t r = 1; r < n_rows; ++r) {
    const Span one = clip(s, row + r, t0, t1);
    all.ragged |= one.begin != first.begin || one.end != first.end;
    all.begin = larger(all.begin, one.begin);
    all.end = smaller(all.end, one.end);
  }
  all.end = larger(all.begin, all.end);
  return all;
}

// Adds the values of the positions [t0, t1) of a chunk to kRows rows, 8 * kWidth dims; `v` points at position
// t0. The positions all rows see go through the shared micro-tile, the ragged rest row by row, each row in
// ascending order. (A masked position is skipped rather than given the weight 0, which could turn a -0 into
// +0.)
template <int kRows, int kWidth, class Value>
inline void value_rows(const AttendScratch& s, const Joint& all, int64_t row, int64_t t0, int64_t t1,
                       const Value* v, int64_t v_stride, float* o, int64_t o_stride) noexcept {
  const float* p = s.scores + row * kScoreStride;
  const auto alone = [&](int64_t r, int64_t begin, int64_t end) noexcept {
    if (begin >= end) return;
    value_tile<1, kWidth>(p + r * kScoreStride + begin, v + (begin - t0) * v_stride, v_stride, end - begin,
                          o + r * o_stride, o_stride);
  };
  if (all.ragged) {
    for (int64_t r = 0; r < kRows; ++r) {
      const Span one = clip(s, row + r, t0, t1);
      alone(r, one.begin, smaller(one.end, all.begin));
    }
  }
  if (all.begin < all.end) {
    value_tile<kRows, kWidth>(p + all.begin, v + (all.begin - t0) * v_stride, v_stride, all.end - all.begin,
                              o, o_stride);
  }
  if (all.ragged) {
    for (int64_t r = 0; r < kRows; ++r) {
      const Span one = clip(s, row + r, t0, t1);
      alone(r, larger(one.begin, all.end), one.end);
    }
  }
}

// The micro-tile for the next of n rows: 6, 4, 3, 2 or 1 rows.
inline int64_t group_of(int64_t n) noexcept { return n >= kRowGroup ? kRowGroup : smaller(n, 4); }

template <class Value>
inline void value_group(int64_t group, const AttendScratch& s, const Joint& all, int64_t row, int64_t t0,
                        int64_t t1, const Value* v, int64_t v_stride, float* o, int64_t o_stride) noexcept {
  switch (group) {
    case 1:
      value_rows<1, 2>(s, all, row, t0, t1, v, v_stride, o, o_stride);
      break;
    case 2:
      value_rows<2, 2>(s, all, row, t0, t1, v, v_stride, o, o_stride);
      break;
    case 3:
      value_rows<3, 2>(s, all, row, t0, t1, v, v_stride, o, o_stride);
      break;
    case 4:
      value_rows<4, 2>(s, all, row, t0, t1, v, v_stride, o, o_stride);
      break;
    default:
      value_rows<6, 2>(s, all, row, t0, t1, v, v_stride, o, o_stride);
      break;
  }
}

template <class Key>
inline void score_group(int64_t group, const float* const* q, const Key* k, int64_t n, int64_t dim,
                        float* s) noexcept {
  switch (group) {
    case 1:
      score_rows<1>(q, k, n, dim, s);
      break;
    case 2:
      score_rows<2>(q, k, n, dim, s);
      break;
    case 3:
      score_rows<3>(q, k, n, dim, s);
      break;
    case 4:
      score_rows<4>(q, k, n, dim, s);
      break;
    default:
      score_rows<6>(q, k, n, dim, s);
      break;
  }
}

// The rows of a group straight from the cache, all dims: as many accumulators as registers allow.
template <int kRows, int kWidth, class Value>
inline void value_direct_rows(const AttendScratch& s, int64_t row, int64_t t0, int64_t t1, const Value* v,
                              int64_t dim, float* o, int64_t o_stride) noexcept {
  const Joint all = joint_span(s, row, kRows, t0, t1);
  int64_t d = 0;
  for (; d + 8 * kWidth <= dim; d += 8 * kWidth) {
    value_rows<kRows, kWidth>(s, all, row, t0, t1, v + d, dim, o + d, o_stride);
  }
  for (; d < dim; d += 8) value_rows<kRows, 1>(s, all, row, t0, t1, v + d, dim, o + d, o_stride);
}

template <class Value>
inline void value_direct(int64_t group, const AttendScratch& s, int64_t row, int64_t t0, int64_t t1,
                         const Value* v, int64_t dim, float* o, int64_t o_stride) noexcept {
  switch (group) {
    case 1:
      value_direct_rows<1, 8>(s, row, t0, t1, v, dim, o, o_stride);
      break;
    case 2:
      value_direct_rows<2, 4>(s, row, t0, t1, v, dim, o, o_stride);
      break;
    case 3:
      value_direct_rows<3, 2>(s, row, t0, t1, v, dim, o, o_stride);
      break;
    case 4:
      value_direct_rows<4, 2>(s, row, t0, t1, v, dim, o, o_stride);
      break;
    default:
      value_direct_rows<6, 2>(s, row, t0, t1, v, dim, o, o_stride);
      break;
  }
}

// Turns the scores [begin, end) of one row into exponentials; returns their maximum and their sum.
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
    const F8 p = exp_weight8(sub(load8(s + i), set1(m)));
    store8(s + i, p);
    lanes = add(lanes, p);
  }
  return {m, sum8(lanes)};
}

// The positions of the chunk at `base` that each row sees, and those that some row sees (empty: begin > end).
inline Span clip_to_chunk(const AttendArgs& args, const AttendScratch& s, int64_t base) noexcept {
  const int64_t heads = args.head_end - args.head_begin;
  Span seen{kAttendChunk, 0};
  for (int64_t t = 0; t < args.n_tokens; ++t) {
    const int64_t begin = smaller(larger(args.lo[t] - base, 0), kAttendChunk);
    const int64_t end = larger(smaller(args.hi[t] - base, kAttendChunk), begin);
    for (int64_t row = t * heads; row < (t + 1) * heads; ++row) {
      s.begin[row] = begin;
      s.end[row] = end;
    }
    if (begin == end) continue;
    seen.begin = smaller(seen.begin, begin);
    seen.end = larger(seen.end, end);
  }
  return seen;
}

// Scores of a chunk; k [256][dim] is its slots.
template <class Key>
inline void score_chunk(const AttendScratch& s, int64_t n_rows, Span seen, const Key* k,
                        int64_t dim) noexcept {
  const bool direct = n_rows <= kDirectRows;
  const int64_t tile = direct ? kAttendChunk : key_tile(dim);
  for (int64_t t0 = seen.begin; t0 < seen.end; t0 += tile) {
    const int64_t t1 = smaller(t0 + tile, seen.end);
    if (!direct) {
      for (int64_t i = 0; i < (t1 - t0) * dim; i += 8) store8(s.keys + i, load8(k + t0 * dim + i));
    }
    for (int64_t row = 0, group; row < n_rows; row += group) {
      group = group_of(n_rows - row);
      int64_t begin = t1, end = t0;
      for (int64_t r = row; r < row + group; ++r) {
        const Span one = clip(s, r, t0, t1);
        if (one.begin >= one.end) continue;
        begin = smaller(begin, one.begin);
        end = larger(end, one.end);
      }
      if (begin >= end) continue;
      float* scores = s.scores + row * kScoreStride + begin;
      if (direct) {
        score_group(group, s.query + row, k + begin * dim, end - begin, dim, scores);
      } else {
        score_group(group, s.query + row, s.keys + (begin - t0) * dim, end - begin, dim, scores);
      }
    }
  }
}

// o of a chunk from its exponentials; v [256][dim] is its slots.
template <class Value>
inline void value_chunk(const AttendScratch& s, int64_t n_rows, Span seen, const Value* v,
                        int64_t dim) noexcept {
  const int64_t o_stride = padded_dim(dim);
  for (int64_t i = 0; i < n_rows * o_stride; i += 8) store8(s.partial + i, zero8());
  for (int64_t t0 = seen.begin; t0 < seen.end; t0 += kValueTile) {
    const int64_t t1 = smaller(t0 + kValueTile, seen.end);
    if (n_rows <= kDirectRows) {
      for (int64_t row = 0, group; row < n_rows; row += group) {
        group = group_of(n_rows - row);
        value_direct(group, s, row, t0, t1, v + t0 * dim, dim, s.partial + row * o_stride, o_stride);
      }
      continue;
    }
    for (int64_t i = 0; i < t1 - t0; ++i) {
      const Value* from = v + (t0 + i) * dim;
      float* to = s.values + i * kPanel;
      int64_t d = 0;
      for (; d + kPanel <= dim; d += kPanel, to += kPanelStride) {
        store8(to, load8(from + d));
        store8(to + 8, load8(from + d + 8));
      }
      if (d < dim) {
        store8(to, load8(from + d));
        store8(to + 8, zero8());
      }
    }
    for (int64_t row = 0, group; row < n_rows; row += group) {
      group = group_of(n_rows - row);
      s.joint[row] = joint_span(s, row, group, t0, t1);
    }
    for (int64_t d = 0; d < o_stride; d += kPanel) {
      for (int64_t row = 0, group; row < n_rows; row += group) {
        group = group_of(n_rows - row);
        value_group(group, s, s.joint[row], row, t0, t1, s.values + d / kPanel * kPanelStride, kPanel,
                    s.partial + row * o_stride + d, o_stride);
      }
    }
  }
}

// Adds the chunk of one row to what its earlier chunks gave.
inline void combine_chunk(const AttendScratch& s, int64_t row, MaxSum chunk, bool first, bool last,
                          int64_t dim) noexcept {
  float* o = s.out[row];
  const float* partial = s.partial + row * padded_dim(dim);
  if (first) {
    s.max[row] = chunk.max;
    s.sum[row] = chunk.sum;
    for (int64_t d = 0; d < dim; d += 8) store8(o + d, load8(partial + d));
  } else {
    const float before = s.max[row], top = before > chunk.max ? before : chunk.max;
    float e[8] = {before - top, chunk.max - top};
    store8(e, exp_weight8(load8(e)));
    s.max[row] = top;
    s.sum[row] = fma_lane(s.sum[row], e[0], chunk.sum * e[1]);
    const F8 e1 = set1(e[0]), e2 = set1(e[1]);
    for (int64_t d = 0; d < dim; d += 8) store8(o + d, fma(load8(o + d), e1, mul(load8(partial + d), e2)));
  }
  if (last) {
    const F8 l = set1(s.sum[row]);
    for (int64_t d = 0; d < dim; d += 8) store8(o + d, div(load8(o + d), l));
  }
}

template <class Kv>
inline void attend_rows(const AttendArgs& args) noexcept {
  const int64_t dim = args.head_dim, heads = args.head_end - args.head_begin, n_rows = args.n_tokens * heads;
  if (n_rows <= 0) return;
  uint8_t* memory = static_cast<uint8_t*>(args.scratch);
  const AttendScratch s = cut_scratch(memory, dim, n_rows);
  int64_t lo = args.lo[0], hi = args.hi[0];
  for (int64_t t = 0; t < args.n_tokens; ++t) {
    lo = smaller(lo, args.lo[t]);
    hi = larger(hi, args.hi[t]);
    for (int64_t h = 0; h < heads; ++h) {
      s.query[t * heads + h] = args.q + t * args.q_stride + (args.head_begin + h) * dim;
      s.out[t * heads + h] = args.out + t * args.out_stride + (args.head_begin + h) * dim;
    }
  }
  for (int64_t base = lo / kAttendChunk * kAttendChunk; base < hi; base += kAttendChunk) {
    const Span seen = clip_to_chunk(args, s, base);
    const int64_t slot = base % args.ring;  // the ring is whole chunks, so a chunk never wraps
    score_chunk(s, n_rows, seen, static_cast<const Kv*>(args.k) + slot * dim, dim);
    for (int64_t row = 0; row < n_rows; ++row) {
      if (s.begin[row] < s.end[row]) {
        s.chunk[row] = softmax_chunk(s.scores + row * kScoreStride, s.begin[row], s.end[row]);
      }
    }
    value_chunk(s, n_rows, seen, static_cast<const Kv*>(args.v) + slot * dim, dim);
    for (int64_t t = 0, row = 0; t < args.n_tokens; ++t) {
      const bool first = args.lo[t] >= base, last = args.hi[t] <= base + kAttendChunk;
      for (int64_t h = 0; h < heads; ++h, ++row) {
        if (s.begin[row] < s.end[row]) combine_chunk(s, row, s.chunk[row], first, last, dim);
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
