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
// positions. A piece of K or V is widened to f32 once and used by all rows; where one micro-tile holds all
// rows, it reads the cache itself.
#pragma once

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/attention_tile.inl"
#include "backend/cpu/kernels/math.inl"
#include "quant/blocks.h"

namespace gemmule {
namespace {

inline constexpr int64_t kKeyFloats = 4096;  // widened keys used by all rows in turn, half of the L1 cache
inline constexpr int64_t kValueTile = 128;   // positions whose widened values are used by all rows in turn
inline constexpr int64_t kLine = 64;         // bytes of a cache line

// A weight below e^-64 (2^-92) cannot change a sum that begins with 1, but its products with small values
// would be subnormal, and an instruction with subnormal numbers takes a hundred cycles instead of one.
inline constexpr float kVanish = -64.0f;
inline F8 exp_weight8(F8 x) noexcept { return zero_below(exp8(x), x, set1(kVanish)); }

inline int64_t smaller(int64_t a, int64_t b) noexcept { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) noexcept { return a > b ? a : b; }
inline int64_t padded_dim(int64_t head_dim) noexcept { return (head_dim + kPanel - 1) / kPanel * kPanel; }

// A part is o of a row and chunk [padded_dim], then m and l; l = 0: the row sees nothing of the chunk.
inline int64_t attend_part_floats(int64_t head_dim) noexcept { return padded_dim(head_dim) + 16; }

// The visible part [begin, end) of one row in a tile of positions [t0, t1).
struct Span {
  int64_t begin, end;
};

// The positions of [t0, t1) that all rows of a group see; ragged if some row sees others, too.
struct Joint {
  int64_t begin, end;
  bool ragged;
};

// All buffers of one call, cut out of the scratch. rows is rounded up to 16, so that every size is a multiple
// of 64 bytes.
struct AttendScratch {
  float* scores;        // f32 [rows][kScoreStride]: scores of the chunk, then their exponentials
  float* rows;          // f32 [rows][padded(head_dim)]: copies of q, where there are many
  float* keys;          // f32 [key_tile / 2][padded(head_dim) / 8][2][8]
  float* values;        // f32 [kValueTile][kPanel]
  const float** query;  // [rows]: where q of the row lies
  int64_t* begin;       // [rows]: first and last + 1 visible position inside the chunk
  int64_t* end;         // [rows]
  Joint* joint;         // [rows]: of the group that starts at this row
  float* parts;         // f32 [rows][attend_part_floats]; used by `attend` only, as is the next one
  float** out;          // [rows]: where the result of the row goes
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

inline AttendScratch cut_scratch(uint8_t* at, int64_t head_dim, int64_t n_rows) noexcept {
  const int64_t rows = padded_rows(n_rows);
  AttendScratch s;
  s.scores = take<float>(at, rows * kScoreStride);
  s.rows = take<float>(at, rows * padded(head_dim));
  s.keys = take<float>(at, key_tile(head_dim) * padded(head_dim));
  s.values = take<float>(at, kValueTile * kPanel);
  s.parts = take<float>(at, rows * attend_part_floats(head_dim));
  s.query = take<const float*>(at, rows);
  s.out = take<float*>(at, rows);
  s.begin = take<int64_t>(at, rows);
  s.end = take<int64_t>(at, rows);
  s.joint = take<Joint>(at, rows);
  return s;
}

inline size_t attend_scratch_bytes(int64_t head_dim, int64_t n_rows) noexcept {
  const int64_t rows = padded_rows(n_rows);
  const int64_t floats = rows * (kScoreStride + attend_part_floats(head_dim) + padded(head_dim)) +
                         key_tile(head_dim) * padded(head_dim) + kValueTile * kPanel;
  const size_t per_row = 2 * sizeof(float*) + 2 * sizeof(int64_t) + sizeof(Joint);
  return sizeof(float) * static_cast<size_t>(floats) + per_row * static_cast<size_t>(rows);
}

// The numbers [begin, end) of two rows of the cache as f32, begin and end multiples of 8, into a tile of
// keys: the eight numbers from i on lie at to + 2 * i, those of the second row behind those of the first.
template <class Kv>
inline void widen_pair(const Kv* a, const Kv* b, int64_t begin, int64_t end, float* to) noexcept {
  for (int64_t i = begin; i < end; i += 8) wide_store(to + 2 * i, wide_widen(a + i, b + i));
}
inline void widen_pair(const BlockQ8_0* a, const BlockQ8_0* b, int64_t begin, int64_t end,
                       float* to) noexcept {
  for (int64_t i = begin; i < end;) {
    const BlockQ8_0 &block_a = a[i / 32], &block_b = b[i / 32];
    const Wide scales = wide_scales(Half{block_a.d}, Half{block_b.d});
    for (const int64_t stop = smaller(end, (i / 32 + 1) * 32); i < stop; i += 8)  // 11 bits times 7: exact
      wide_store(to + 2 * i, wide_mul(scales, wide_widen(block_a.q + i % 32, block_b.q + i % 32)));
  }
}

// The numbers [d, d + 32) of one row into a tile of values; those from `dim` on are 0.
template <class Kv>
inline void widen_panel(const Kv* row, int64_t d, int64_t dim, float* to) noexcept {
  if (d + kPanel <= dim) {
    wide_store(to, wide_widen(row + d));
    wide_store(to + 16, wide_widen(row + d + 16));
    return;
  }
  for (int64_t i = 0; i < kPanel; i += 8) store8(to + i, d + i < dim ? load8(row + d + i) : zero8());
}
inline void widen_panel(const BlockQ8_0* row, int64_t d, int64_t,
                        float* to) noexcept {  // 32 dims are a block
  const BlockQ8_0& block = row[d / 32];
  const Wide scale = wide_scales(Half{block.d}, Half{block.d});
  wide_store(to, wide_mul(scale, wide_widen(block.q)));
  wide_store(to + 16, wide_mul(scale, wide_widen(block.q + 16)));
}

template <class Kv>
inline const Kv* slot_of(const uint8_t* slots, int64_t slot, int64_t row_bytes) noexcept {
  return reinterpret_cast<const Kv*>(slots + slot * row_bytes);
}

// The visible part of one row of a group in a tile.
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

// Adds the values of the positions [t0, t1) of a chunk to kRows rows; `v` begins at position t0. The
// positions all rows see go through the shared micro-tile, the ragged rest row by row, each row in ascending
// order. (A masked position is skipped rather than given the weight 0, which could turn a -0 into +0.)
template <int kRows, class Values>
inline void value_rows(const AttendScratch& s, int64_t row, Span tile, const Values& v, int64_t n_dims,
                       float* o, int64_t o_stride) noexcept {
  const Joint& all = s.joint[row];
  const float* p = s.scores + row * kScoreStride;
  const auto alone = [&](int64_t r, int64_t begin, int64_t end) noexcept {
    if (begin >= end) return;
    value_all<1>(p + r * kScoreStride + begin, v.from(begin - tile.begin, 0), end - begin, n_dims,
                 o + r * o_stride, o_stride);
  };
  if (all.ragged) {
    for (int64_t r = 0; r < kRows; ++r) {
      const Span one = clip(s, row + r, tile.begin, tile.end);
      alone(r, one.begin, smaller(one.end, all.begin));
    }
  }
  if (all.begin < all.end)
    value_all<kRows>(p + all.begin, v.from(all.begin - tile.begin, 0), all.end - all.begin, n_dims, o,
                     o_stride);
  if (all.ragged) {
    for (int64_t r = 0; r < kRows; ++r) {
      const Span one = clip(s, row + r, tile.begin, tile.end);
      alone(r, larger(one.begin, all.end), one.end);
    }
  }
}

template <class Values>
inline void value_group(int64_t group, const AttendScratch& s, int64_t row, Span tile, const Values& v,
                        int64_t n_dims, float* o, int64_t o_stride) noexcept {
  switch (group) {
    case 1:
      value_rows<1>(s, row, tile, v, n_dims, o, o_stride);
      break;
    case 2:
      value_rows<2>(s, row, tile, v, n_dims, o, o_stride);
      break;
    case 3:
      value_rows<3>(s, row, tile, v, n_dims, o, o_stride);
      break;
    case 4:
      value_rows<4>(s, row, tile, v, n_dims, o, o_stride);
      break;
    default:
      value_rows<6>(s, row, tile, v, n_dims, o, o_stride);
      break;
  }
}

// Turns the scores [begin, end) of one row into exponentials; sums[0] is their maximum, sums[1] their sum.
inline void softmax_chunk(float* s, int64_t begin, int64_t end, float* sums) noexcept {
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
  sums[0] = m;
  sums[1] = sum8(lanes);
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

// Widens the keys of two slots into a pair of the tile.
template <class Kv>
inline void widen_keys(const AttendArgs& args, int64_t slot_a, int64_t slot_b, float* to) noexcept {
  const int64_t dim = args.head_dim, turned = args.n_turned, half = dim / 2;
  const auto key_a = slot_of<Kv>(args.k, slot_a, args.k_row), key_b = slot_of<Kv>(args.k, slot_b, args.k_row);
  if (turned == 0) {
    widen_pair(key_a, key_b, 0, dim, to);
    return;
  }
  const auto value_a = slot_of<Kv>(args.v, slot_a, args.v_row),
             value_b = slot_of<Kv>(args.v, slot_b, args.v_row);
  widen_pair(key_a, key_b, 0, turned, to);
  widen_pair(value_a, value_b, turned, half, to);
  widen_pair(key_a, key_b, turned, 2 * turned, to + 2 * (half - turned));
  widen_pair(value_a, value_b, half + turned, dim, to);
}

// Asks for n rows of the cache.
inline void prefetch_rows(const uint8_t* slots, int64_t slot, int64_t n, int64_t row_bytes) noexcept {
  const uint8_t* at = slots + slot * row_bytes;
  for (int64_t i = 0; i < n * row_bytes; i += kLine) __builtin_prefetch(at + i, 0, 2);
}

// Before the scores of the tile [t0, t1) of slots: what comes next. That is the keys of the next tile, up to
// `end`, and the values of this one, or those that are part of the next keys.
inline void prefetch_next(const AttendArgs& args, int64_t t0, int64_t t1, int64_t end) noexcept {
  const int64_t n = smaller(t1 - t0, end - t1);
  prefetch_rows(args.k, t1, n, args.k_row);
  if (args.n_turned > 0)
    prefetch_rows(args.v, t1, n, args.v_row);
  else
    prefetch_rows(args.v, t0, t1 - t0, args.v_row);
}

// Whether one micro-tile has all rows, and the cache holds numbers that it can read.
template <class Kv>
inline bool is_direct(const AttendArgs& args, int64_t n_rows) noexcept {
  constexpr int64_t kRun = sizeof(Kv) <= sizeof(float) ? 16 : 32;  // numbers read together
  return group_of(n_rows) == n_rows && args.n_turned == 0 && args.head_dim % kRun == 0;
}

// Scores of the chunk whose first slot is `slot`, straight from the cache.
template <class Kv>
inline void score_direct(const AttendArgs& args, const AttendScratch& s, int64_t n_rows, Span seen,
                         int64_t slot) noexcept {
  constexpr int64_t kTile = 16;
  const int64_t dim = args.head_dim, row = args.k_row / static_cast<int64_t>(sizeof(Kv));
  for (int64_t t0 = seen.begin; t0 < seen.end; t0 += kTile) {
    const int64_t t1 = smaller(t0 + kTile, seen.end), n = t1 - t0, n_pairs = n / 2;
    const Kv* keys = slot_of<Kv>(args.k, slot + t0, args.k_row);
    prefetch_next(args, slot + t0, slot + t1, slot + seen.end);
    score_group(n_rows, s.query, SlotKeys<Kv>{keys, row, row}, n_pairs, dim, s.scores + t0);
    if (n % 2 != 0)
      score_group(n_rows, s.query, SlotKeys<Kv>{keys + 2 * n_pairs * row, row, 0}, 1, dim,
                  s.scores + t0 + 2 * n_pairs);
  }
}

// The same with keys that are widened tile by tile.
template <class Kv>
inline void score_chunk(const AttendArgs& args, const AttendScratch& s, int64_t n_rows, Span seen,
                        int64_t slot) noexcept {
  const int64_t dim = args.head_dim, tile = key_tile(dim);
  for (int64_t t0 = seen.begin; t0 < seen.end; t0 += tile) {
    const int64_t t1 = smaller(t0 + tile, seen.end), n = t1 - t0;
    prefetch_next(args, slot + t0, slot + t1, slot + seen.end);
    for (int64_t j = 0; j < n; j += 2)  // a last key without a partner is paired with itself
      widen_keys<Kv>(args, slot + t0 + j, slot + t0 + smaller(j + 1, n - 1), s.keys + j * padded(dim));
    for (int64_t row = 0, group; row < n_rows; row += group) {
      group = group_of(n_rows - row);
      int64_t begin = n, end = 0;  // in the tile
      for (int64_t r = row; r < row + group; ++r) {
        const Span one = clip(s, r, t0, t1);
        if (one.begin >= one.end) continue;
        begin = smaller(begin, one.begin - t0);
        end = larger(end, one.end - t0);
      }
      if (begin >= end) continue;
      const int64_t first = begin / 2, n_pairs = (end + 1) / 2 - first;
      score_group(group, s.query + row, TileKeys{s.keys, 2 * padded(dim)}.from(first), n_pairs, dim,
                  s.scores + row * kScoreStride + t0 + 2 * first);
    }
  }
}

// o of the chunk whose first slot is `slot`, from its exponentials, straight from the cache.
template <class Kv>
inline void value_direct(const AttendArgs& args, const AttendScratch& s, int64_t n_rows, Span seen,
                         int64_t slot, float* parts) noexcept {
  const int64_t stride = attend_part_floats(args.head_dim);
  s.joint[0] = joint_span(s, 0, n_rows, seen.begin, seen.end);
  const SlotValues<Kv> values{slot_of<Kv>(args.v, slot + seen.begin, args.v_row),
                              args.v_row / static_cast<int64_t>(sizeof(Kv))};
  value_group(n_rows, s, 0, seen, values, args.head_dim, parts, stride);
}

// The same with values that are widened tile by tile.
template <class Kv>
inline void value_chunk(const AttendArgs& args, const AttendScratch& s, int64_t n_rows, Span seen,
                        int64_t slot, float* parts) noexcept {
  const int64_t dim = padded_dim(args.head_dim), stride = attend_part_floats(args.head_dim);
  for (int64_t t0 = seen.begin; t0 < seen.end; t0 += kValueTile) {
    const Span tile{t0, smaller(t0 + kValueTile, seen.end)};
    for (int64_t row = 0, group; row < n_rows; row += group) {
      group = group_of(n_rows - row);
      s.joint[row] = joint_span(s, row, group, tile.begin, tile.end);
    }
    for (int64_t d = 0; d < dim; d += kPanel) {
      for (int64_t i = t0; i < tile.end; ++i)
        widen_panel(slot_of<Kv>(args.v, slot + i, args.v_row), d, args.head_dim,
                    s.values + (i - t0) * kPanel);
      for (int64_t row = 0, group; row < n_rows; row += group) {
        group = group_of(n_rows - row);
        value_group(group, s, row, tile, PanelValues{s.values}, kPanel, parts + row * stride + d, stride);
      }
    }
  }
}

inline int64_t row_count(const AttendArgs& args) noexcept {
  return static_cast<int64_t>(args.n_tokens) * (args.head_end - args.head_begin);
}

template <class Kv>
inline void attend_chunk_of(const AttendArgs& args, const AttendScratch& s, int64_t base,
                            float* parts) noexcept {
  const int64_t n_rows = row_count(args), stride = attend_part_floats(args.head_dim);
  const int64_t slot = base % args.ring;  // the ring is whole chunks, so a chunk never wraps
  const Span seen = clip_to_chunk(args, s, base);
  const bool direct = is_direct<Kv>(args, n_rows) && seen.begin < seen.end;
  if (direct)
    score_direct<Kv>(args, s, n_rows, seen, slot);
  else
    score_chunk<Kv>(args, s, n_rows, seen, slot);
  for (int64_t row = 0; row < n_rows; ++row) {
    float* sums = parts + row * stride + padded_dim(args.head_dim);
    sums[0] = sums[1] = 0.0f;
    for (int64_t d = 0; d < padded_dim(args.head_dim); d += 16)
      wide_store(parts + row * stride + d, wide_zero());
    if (s.begin[row] < s.end[row])
      softmax_chunk(s.scores + row * kScoreStride, s.begin[row], s.end[row], sums);
  }
  if (direct)
    value_direct<Kv>(args, s, n_rows, seen, slot, parts);
  else
    value_chunk<Kv>(args, s, n_rows, seen, slot, parts);
}

inline void attend_chunk_with(const AttendArgs& args, const AttendScratch& s, int64_t base,
                              float* parts) noexcept {
  switch (args.kind) {
    case KvKind::F32:
      attend_chunk_of<float>(args, s, base, parts);
      break;
    case KvKind::F16:
      attend_chunk_of<Half>(args, s, base, parts);
      break;
    case KvKind::Q8_0:
      attend_chunk_of<BlockQ8_0>(args, s, base, parts);
      break;
  }
}

inline AttendScratch prepare_rows(const AttendArgs& args) noexcept {
  const int64_t heads = args.head_end - args.head_begin;
  const AttendScratch s = cut_scratch(static_cast<uint8_t*>(args.scratch), args.head_dim, row_count(args));
  const bool is_copied = group_of(row_count(args)) < row_count(args);
  for (int64_t t = 0, row = 0; t < args.n_tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h, ++row) {
      const float* q = args.q + t * args.q_stride + (args.head_begin + h) * args.head_dim;
      float* copy = s.rows + row * padded(args.head_dim);
      s.query[row] = is_copied ? copy : q;
      for (int64_t d = 0; is_copied && d < args.head_dim; d += 8) store8(copy + d, load8(q + d));
    }
  }
  return s;
}

inline void attend_chunk(const AttendArgs& args, int64_t base, float* parts) noexcept {
  attend_chunk_with(args, prepare_rows(args), base, parts);
}

inline void attend_join(float* out, float* sums, const float* parts, int64_t step, int64_t n, int64_t dim,
                        bool last) noexcept {
  for (const float* part = parts; n > 0; --n, part += step) {
    const float* chunk = part + padded_dim(dim);
    if (chunk[1] == 0.0f) continue;
    if (sums[1] == 0.0f) {
      sums[0] = chunk[0];
      sums[1] = chunk[1];
      for (int64_t d = 0; d < dim; d += 8) store8(out + d, load8(part + d));
      continue;
    }
    const float top = sums[0] > chunk[0] ? sums[0] : chunk[0];
    float e[8] = {sums[0] - top, chunk[0] - top};
    store8(e, exp_weight8(load8(e)));
    sums[0] = top;
    sums[1] = fma_lane(sums[1], e[0], chunk[1] * e[1]);
    const F8 e1 = set1(e[0]), e2 = set1(e[1]);
    for (int64_t d = 0; d < dim; d += 8) store8(out + d, fma(load8(out + d), e1, mul(load8(part + d), e2)));
  }
  if (!last) return;
  const F8 l = set1(sums[1]);
  for (int64_t d = 0; d < dim; d += 8) store8(out + d, div(load8(out + d), l));
}

inline void attend(const AttendArgs& args) noexcept {
  const int64_t heads = args.head_end - args.head_begin, n_rows = row_count(args);
  if (n_rows <= 0) return;
  int64_t lo = args.lo[0], hi = args.hi[0];
  for (int64_t t = 1; t < args.n_tokens; ++t) {
    lo = smaller(lo, args.lo[t]);
    hi = larger(hi, args.hi[t]);
  }
  const int64_t begin = larger(lo / kAttendChunk * kAttendChunk, args.begin), end = smaller(hi, args.end);
  if (begin >= end) return;
  const AttendScratch s = prepare_rows(args);
  for (int64_t row = 0; row < n_rows; ++row)
    s.out[row] = args.out + row / heads * args.out_stride + (args.head_begin + row % heads) * args.head_dim;
  const int64_t stride = attend_part_floats(args.head_dim);
  for (int64_t base = begin; base < end; base += kAttendChunk) {
    attend_chunk_with(args, s, base, s.parts);
    const bool last = base + kAttendChunk >= hi;
    for (int64_t row = 0; row < n_rows; ++row)
      attend_join(s.out[row], args.sums + 2 * row, s.parts + row * stride, stride, 1, args.head_dim, last);
  }
}

}  // namespace
}  // namespace gemmule
