// The formats of 32 elements; a lane is a block. Without importance they are the encoders everybody uses, by
// bits: the codes come from the f32 scale, while the block stores it rounded to f16. With importance the
// scale is searched, and the codes come from the stored one. Q8_0 is so fine that importance does not change
// it.

namespace gemmule {
namespace {

struct Lanes32 {
  F x[32];
  F unit_x[32];      // x * inverse
  F importance[32];  // filled if there is one
  F inverse;         // 1 / a power of two near the largest magnitude
  F peak;            // the first element of largest magnitude, with its sign
  F rms;             // of the row, in units
  bool weighted;
};

// x ~ d * (code - zero) + m
struct Coded32 {
  F code[32];  // whole numbers >= 0, or -127..127 in Q8_0
  I d, m;      // f16 bits
  float zero;
};

static inline F inverse_or_zero(F d) {
  const F inverse = 1.0f / d;
  return pick(vabs(inverse) <= 3.402823466e+38f, inverse, F{});
}

static void plain_q8_0(const Lanes32& in, Coded32& out) {
  const F d = saturate(vabs(in.peak) / 127.0f);
  const F inverse = inverse_or_zero(d);
  for (int j = 0; j < 32; ++j) {
    const F scaled = in.x[j] * inverse;
    const F magnitude = vmin(vabs(scaled), splat(127.0f));
    const F whole = to_float(to_int(magnitude));
    const F code = whole + pick(magnitude - whole >= 0.5f, splat(1.0f), F{});  // half away from zero
    out.code[j] = pick(scaled < 0.0f, F{} - code, code);
  }
  out.d = to_f16(d);
  out.zero = 0;
}

// The largest magnitude gets code 0; round half up.
static void plain_symmetric(const Lanes32& in, float n_max, Coded32& out) {
  const F d = saturate(in.peak / -n_max);
  const F inverse = inverse_or_zero(d);
  for (int j = 0; j < 32; ++j) {
    const F code = vmin(vmax(in.x[j] * inverse + (n_max + 0.5f), F{}), splat(2 * n_max - 1.0f));
    out.code[j] = to_float(to_int(code));
  }
  out.d = to_f16(d);
  out.zero = n_max;
}

// The codes spread over smallest..largest; round half up.
static void plain_affine(const Lanes32& in, float n_max, Coded32& out) {
  F low = in.x[0];
  F high = in.x[0];
  for (int j = 1; j < 32; ++j) {
    low = pick(in.x[j] < low, in.x[j], low);
    high = pick(in.x[j] > high, in.x[j], high);
  }
  const F d = saturate((high - low) / n_max);
  const F min = saturate(low);
  const F inverse = inverse_or_zero(d);
  for (int j = 0; j < 32; ++j) {
    const F code = vmin(vmax((in.x[j] - min) * inverse + 0.5f, F{}), splat(n_max));
    out.code[j] = to_float(to_int(code));
  }
  out.d = to_f16(d);
  out.m = to_f16(min);
  out.zero = 0;
}

static inline void search_weights(const Lanes32& in, F* w) {
  for (int j = 0; j < 32; ++j)
    w[j] = in.importance[j] * vsqrt(2.0f * in.rms * in.rms + in.unit_x[j] * in.unit_x[j]);
}
// The f16 of a scale in units; the smallest stands in for one that would vanish.
static inline I scale_f16(F scale, F inverse) {
  const I bits = to_f16(saturate(scale / inverse));
  return bits | (((bits & 0x7fff) == 0) & (vabs(scale) > 0.0f) & 1);
}

constexpr int kRounds32 = 2;  // of least squares with the rounded scales

static void search_symmetric(const Lanes32& in, float n_max, Coded32& out) {
  F w[32];
  search_weights(in, w);
  F scale = fit_symmetric<32>(in.unit_x, w, n_max, {-0.9f, 0.2f, 10, 2});
  F best = F{};
  F best_error = splat(__builtin_huge_valf());
  out.d = I{};
  for (int round = 0; round <= kRounds32; ++round) {
    const I bits = scale_f16(scale, in.inverse);
    const F d = from_f16(bits) * in.inverse;
    F sum_xq, sum_qq;
    const F error = symmetric_sums<32>(in.unit_x, w, d, n_max, sum_xq, sum_qq);
    const I better = error < best_error;
    best_error = pick(better, error, best_error);
    best = pick(better, d, best);
    out.d = (better & bits) | (~better & out.d);
    scale = pick(sum_qq > 0.0f, sum_xq / pick(sum_qq > 0.0f, sum_qq, splat(1.0f)), scale);
  }
  const F inverse = inverse_of(best);
  for (int j = 0; j < 32; ++j)
    out.code[j] = clamp_round(in.unit_x[j] * inverse, -n_max, n_max - 1.0f) + n_max;
  out.zero = n_max;
}

static void search_affine(const Lanes32& in, float n_max, Coded32& out) {
  F w[32];
  search_weights(in, w);
  Affine fit = fit_affine<32, false>(in.unit_x, w, n_max, {-0.9f, 0.1f, 19, 2});
  F sum_w{}, sum_x{};
  for (int j = 0; j < 32; ++j) {
    sum_w += w[j];
    sum_x += w[j] * in.unit_x[j];
  }
  Affine best{};
  F best_error = splat(__builtin_huge_valf());
  out.d = out.m = I{};
  for (int round = 0; round <= kRounds32; ++round) {
    const I d_bits = scale_f16(fit.scale, in.inverse);
    const I m_bits = to_f16(saturate(fit.low / in.inverse));
    const F d = from_f16(d_bits) * in.inverse;
    const F low = from_f16(m_bits) * in.inverse;
    AffineSums s;
    const F error = affine_sums<32>(in.unit_x, w, d, low, n_max, s);
    const I better = error < best_error;
    best_error = pick(better, error, best_error);
    best.scale = pick(better, d, best.scale);
    best.low = pick(better, low, best.low);
    out.d = (better & d_bits) | (~better & out.d);
    out.m = (better & m_bits) | (~better & out.m);
    Affine next;
    const I solved = solve_affine(s, sum_w, sum_x, F{}, false, next) > 0.0f;
    fit.scale = pick(solved, next.scale, fit.scale);
    fit.low = pick(solved, next.low, fit.low);
  }
  const F inverse = inverse_of(best.scale);
  for (int j = 0; j < 32; ++j) out.code[j] = clamp_round((in.unit_x[j] - best.low) * inverse, 0.0f, n_max);
  out.zero = 0;
}

// Lanes that may lie on a Q4_0 lattice: the ratio of their first elements to the largest is a quotient of
// codes. Ordinary blocks fail here with a probability of 1 - 1e-6.
static I maybe_lattice(const Lanes32& in, uint32_t src_type) {
  constexpr uint32_t kF16 = 1, kBf16 = 30;
  const I some = vabs(in.peak) > 0.0f;
  const F inverse = 1.0f / pick(some, vabs(in.peak), splat(1.0f));
  const float relative = src_type == kBf16 ? 0x1.2p-7f : src_type == kF16 ? 0x1.2p-10f : 0x1p-20f;
  const F slack = src_type == kF16 ? 0x1p-21f * inverse : F{};  // f16 has an absolute step near zero
  I possible{};
  for (int code = 1; code <= 8; ++code) {
    I fits = some;
    for (int j = 0; j < 4; ++j) {
      const F ratio = vabs(in.x[j]) * inverse * static_cast<float>(code);
      const F off = vabs(ratio - ((ratio + kRound) - kRound));
      fits &= off <= ratio * relative + slack;
    }
    possible |= fits;
  }
  return possible;
}

static void pack_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int j = 0; j < 16; j += 8)
    store8((load8(codes + j) & 15 * kBytes) | (load8(codes + 16 + j) & 15 * kBytes) << 4, qs + j);
}
// Bit 4 of code j is bit j of the field.
static void pack_fifth(const uint8_t* codes, uint8_t* qh) {
  for (int i = 0; i < 4; ++i)
    qh[i] = static_cast<uint8_t>((load8(codes + 8 * i) >> 4 & kBytes) * 0x0102040810204080u >> 56);
}
static void pack(const uint8_t* codes, uint16_t d, uint16_t, BlockQ8_0& block) {
  block.d = d;
  __builtin_memcpy(block.q, codes, 32);
}
static void pack(const uint8_t* codes, uint16_t d, uint16_t, BlockQ4_0& block) {
  block.d = d;
  pack_nibbles(codes, block.qs);
}
static void pack(const uint8_t* codes, uint16_t d, uint16_t m, BlockQ4_1& block) {
  block.d = d;
  block.m = m;
  pack_nibbles(codes, block.qs);
}
static void pack(const uint8_t* codes, uint16_t d, uint16_t, BlockQ5_0& block) {
  block.d = d;
  pack_nibbles(codes, block.qs);
  pack_fifth(codes, block.qh);
}
static void pack(const uint8_t* codes, uint16_t d, uint16_t m, BlockQ5_1& block) {
  block.d = d;
  block.m = m;
  pack_nibbles(codes, block.qs);
  pack_fifth(codes, block.qh);
}

// Replaces a block of src [32] that lies on a lattice, and adds its errors to those of the row.
static bool store_lattice(const float* src, const float* importance, uint32_t src_type, uint8_t* out,
                          double* row) {
  BlockQ4_0 block;
  uint8_t bytes[sizeof block];
  if (!encode_lattice_q4_0(src, src_type, bytes)) return false;
  __builtin_memcpy(&block, bytes, sizeof block);
  __builtin_memcpy(out, bytes, sizeof block);
  const float d = scale_value(block.d);
  for (int j = 0; j < 32; ++j) {
    const int code = (block.qs[j % 16] >> (j < 16 ? 0 : 4)) & 15;
    const double x = static_cast<double>(src[j]);
    const double diff = x - static_cast<double>(d * static_cast<float>(code - 8));
    const double w = importance != nullptr ? static_cast<double>(importance[j]) : 1.0;
    row[0] += diff * diff;
    row[1] += x * x;
    row[2] += w * (diff * diff);
    row[3] += w * (x * x);
  }
  return true;
}

// The first element of largest magnitude of x [32]: of each quarter, which do not wait for each other, then
// of all.
static inline F first_peak(const F* x) {
  F peak[4] = {x[0], x[8], x[16], x[24]};
  for (int j = 1; j < 8; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) peak[c] = pick(vabs(x[8 * c + j]) > vabs(peak[c]), x[8 * c + j], peak[c]);
#pragma GCC unroll 4
  for (int c = 1; c < 4; ++c) peak[0] = pick(vabs(peak[c]) > vabs(peak[0]), peak[c], peak[0]);
  return peak[0];
}

// encode(lanes, coded) fills the codes and the scales of kLanes blocks.
template <class Block, class Encode>
static void for_blocks(const EncodeJob& job, bool lattice, Encode encode) {
  const int64_t row_blocks = job.n_cols / 32;
  const int64_t n_blocks = job.n_rows * row_blocks;
  int64_t row = 0;
  int64_t block_of_row = 0;
  for (int64_t first = 0; first < n_blocks; first += kLanes) {
    const int n = n_blocks - first < kLanes ? static_cast<int>(n_blocks - first) : kLanes;
    const float* groups[kLanes];
    const float* columns[kLanes];
    double* rows[kLanes];
    alignas(64) float rms[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      groups[lane] = lane < n ? job.x + (first + lane) * 32 : kZeros;
      columns[lane] = lane < n && job.importance != nullptr ? job.importance + block_of_row * 32 : kZeros;
      rows[lane] = job.sums + 4 * row;
      rms[lane] = lane < n && job.importance != nullptr ? job.row_rms[row] : 0.0f;
      if (lane < n && ++block_of_row == row_blocks) ++row, block_of_row = 0;
    }
    Lanes32 in;
    in.weighted = job.importance != nullptr;
    gather_groups(groups, 32, in.x);
    if (in.weighted) gather_groups(columns, 32, in.importance);
    in.peak = first_peak(in.x);
    in.inverse = inverse_unit(vabs(in.peak));
    in.rms = vmin(load(rms) * in.inverse, splat(0x1p40f));
    for (int j = 0; j < 32; ++j) in.unit_x[j] = in.x[j] * in.inverse;

    Coded32 coded;
    coded.m = I{};
    encode(in, coded);
    const F d = from_f16(coded.d) * in.inverse;
    const F m = from_f16(coded.m) * in.inverse;
    LaneSums sums{};
    alignas(64) int32_t words[8][kLanes];
    for (int j = 0; j < 32; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        add_square(sums, in.unit_x[j + i], d * (coded.code[j + i] - coded.zero) + m,
                   in.weighted ? &in.importance[j + i] : nullptr);
      const F* q = coded.code + j;
      store(
          (to_int(q[0]) & 255) | (to_int(q[1]) & 255) << 8 | (to_int(q[2]) & 255) << 16 | to_int(q[3]) << 24,
          words[j / 4]);
    }
    const I suspects = lattice ? maybe_lattice(in, job.src_type) & (sums.error2 > 0.0f) : I{};
    for (int lane = 0; lane < n; ++lane) {
      uint8_t* out = job.out + (first + lane) * static_cast<int64_t>(sizeof(Block));
      if (lattice && suspects[lane] != 0 &&
          store_lattice(groups[lane], in.weighted ? columns[lane] : nullptr, job.src_type, out, rows[lane]))
        continue;
      uint8_t codes[32];
      for (int k = 0; k < 8; ++k) __builtin_memcpy(codes + 4 * k, &words[k][lane], 4);
      Block block;
      pack(codes, static_cast<uint16_t>(coded.d[lane]), static_cast<uint16_t>(coded.m[lane]), block);
      __builtin_memcpy(out, &block, sizeof block);
      flush_lane(sums, lane, in.inverse[lane], in.weighted, rows[lane]);
    }
  }
}

static void encode_q8_0(const EncodeJob& job) {
  for_blocks<BlockQ8_0>(job, false, [](const Lanes32& in, Coded32& out) { plain_q8_0(in, out); });
}
template <class Block>
static void encode_symmetric_32(const EncodeJob& job, float n_max, bool lattice) {
  for_blocks<Block>(job, lattice, [n_max](const Lanes32& in, Coded32& out) {
    in.weighted ? search_symmetric(in, n_max, out) : plain_symmetric(in, n_max, out);
  });
}
template <class Block>
static void encode_affine_32(const EncodeJob& job, float n_max) {
  for_blocks<Block>(job, false, [n_max](const Lanes32& in, Coded32& out) {
    in.weighted ? search_affine(in, n_max, out) : plain_affine(in, n_max, out);
  });
}
static void encode_q4_0(const EncodeJob& job) { encode_symmetric_32<BlockQ4_0>(job, 8, true); }
static void encode_q5_0(const EncodeJob& job) { encode_symmetric_32<BlockQ5_0>(job, 16, false); }
static void encode_q4_1(const EncodeJob& job) { encode_affine_32<BlockQ4_1>(job, 15); }
static void encode_q5_1(const EncodeJob& job) { encode_affine_32<BlockQ5_1>(job, 31); }

}  // namespace
}  // namespace gemmule
