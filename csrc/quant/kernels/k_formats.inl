// The K formats: which search each uses, and how its bits are packed, eight codes of a byte at a time.
// Layouts: blocks.h.

namespace gemmule {
namespace {

// Eight codes at a time.
static inline uint64_t load8(const uint8_t* p) {
  uint64_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline void store8(uint64_t v, uint8_t* p) { __builtin_memcpy(p, &v, sizeof v); }
constexpr uint64_t kBytes = 0x0101010101010101u;

// Calls encode(first, n, coded) and pack(coded, b, block) for all super-blocks of the job. A dead block is
// zero.
template <class Block, int G, class Encode, class Pack>
static void for_super_blocks(const EncodeJob& job, Encode encode, Pack pack) {
  const int64_t n_blocks = job.n_rows * (job.n_cols / 256);
  for (int64_t first = 0; first < n_blocks; first += kBatch) {
    const int n = n_blocks - first < kBatch ? static_cast<int>(n_blocks - first) : kBatch;
    Coded<G> coded;
    encode(first, n, coded);
    for (int b = 0; b < n; ++b) {
      Block block;
      __builtin_memset(&block, 0, sizeof block);
      if (!coded.dead[b]) pack(coded, b, block);
      __builtin_memcpy(job.out + (first + b) * static_cast<int64_t>(sizeof block), &block, sizeof block);
    }
  }
}

template <class Block>
static void pack_pairs(const Coded<32>& coded, int b, Block& block) {
  ScaleMin pairs[8];
  for (int s = 0; s < 8; ++s)
    pairs[s] = {static_cast<uint8_t>(coded.scale[8 * b + s]), static_cast<uint8_t>(coded.min[8 * b + s])};
  pack_scale_mins(pairs, block.scales);
  block.d = coded.d[b];
  block.dmin = coded.dmin[b];
  const uint8_t* codes = coded.codes + 256 * b;
  for (int c = 0; c < 4; ++c)
    for (int l = 0; l < 32; l += 8)
      store8((load8(codes + 64 * c + l) & 15 * kBytes) | (load8(codes + 64 * c + 32 + l) & 15 * kBytes) << 4,
             block.qs + 32 * c + l);
}

static void encode_q4_k(const EncodeJob& job) {
  const Steps steps = job.importance != nullptr ? Steps{-0.9f, 0.1f, 19, 3} : Steps{-1.0f, 0.1f, 21, 3};
  for_super_blocks<BlockQ4_K, 32>(
      job,
      [&](int64_t first, int n, Coded<32>& coded) {
        encode_affine<32>(job, first, n, 15, 63, steps, 3, coded);
      },
      [](const Coded<32>& coded, int b, BlockQ4_K& block) { pack_pairs(coded, b, block); });
}

static void encode_q5_k(const EncodeJob& job) {
  const Steps steps = job.importance != nullptr ? Steps{-0.9f, 0.1f, 19, 3} : Steps{-0.5f, 0.1f, 16, 3};
  for_super_blocks<BlockQ5_K, 32>(
      job,
      [&](int64_t first, int n, Coded<32>& coded) {
        encode_affine<32>(job, first, n, 31, 63, steps, 3, coded);
      },
      [](const Coded<32>& coded, int b, BlockQ5_K& block) {
        pack_pairs(coded, b, block);
        const uint8_t* codes = coded.codes + 256 * b;
        for (int l = 0; l < 32; l += 8) {
          uint64_t fifth = 0;
          for (int s = 0; s < 8; ++s) fifth |= (load8(codes + 32 * s + l) >> 4 & kBytes) << s;
          store8(fifth, block.qh + l);
        }
      });
}

// Bits 0..1 of the codes: element 128h + 32c + l is bits 2c..2c+1 of qs[32h + l].
static void pack_twos(const uint8_t* codes, uint8_t* qs) {
  for (int h = 0; h < 2; ++h)
    for (int l = 0; l < 32; l += 8) {
      uint64_t twos = 0;
      for (int c = 0; c < 4; ++c) twos |= (load8(codes + 128 * h + 32 * c + l) & 3 * kBytes) << (2 * c);
      store8(twos, qs + 32 * h + l);
    }
}

static void encode_q2_k(const EncodeJob& job) {
  const Steps steps{-0.9f, 0.1f, 19, 3};
  for_super_blocks<BlockQ2_K, 16>(
      job,
      [&](int64_t first, int n, Coded<16>& coded) {
        encode_affine<16>(job, first, n, 3, 15, steps, 4, coded);
      },
      [](const Coded<16>& coded, int b, BlockQ2_K& block) {
        for (int s = 0; s < 16; ++s)
          block.scales[s] = static_cast<uint8_t>(coded.scale[16 * b + s] | coded.min[16 * b + s] << 4);
        block.d = coded.d[b];
        block.dmin = coded.dmin[b];
        pack_twos(coded.codes + 256 * b, block.qs);
      });
}

static void encode_q3_k(const EncodeJob& job) {
  const Steps steps{-0.9f, 0.2f, 10, 3};
  for_super_blocks<BlockQ3_K, 16>(
      job,
      [&](int64_t first, int n, Coded<16>& coded) {
        encode_symmetric<16>(job, first, n, 4, 32, Weight::kMagnitude, steps, 3, coded);
      },
      [](const Coded<16>& coded, int b, BlockQ3_K& block) {
        int8_t scales[16];
        for (int s = 0; s < 16; ++s) scales[s] = static_cast<int8_t>(coded.scale[16 * b + s]);
        pack_scales_q3(scales, block.scales);
        block.d = coded.d[b];
        const uint8_t* codes = coded.codes + 256 * b;
        pack_twos(codes, block.qs);
        for (int l = 0; l < 32; l += 8) {
          uint64_t third = 0;
          for (int p = 0; p < 8; ++p) third |= (load8(codes + 32 * p + l) >> 2 & kBytes) << p;
          store8(third, block.hmask + l);
        }
      });
}

static void encode_q6_k(const EncodeJob& job) {
  const Steps steps{-0.9f, 0.2f, 10, 3};
  for_super_blocks<BlockQ6_K, 16>(
      job,
      [&](int64_t first, int n, Coded<16>& coded) {
        encode_symmetric<16>(job, first, n, 32, 128, Weight::kSquare, steps, 3, coded);
      },
      [](const Coded<16>& coded, int b, BlockQ6_K& block) {
        for (int s = 0; s < 16; ++s) block.scales[s] = static_cast<int8_t>(coded.scale[16 * b + s]);
        block.d = coded.d[b];
        for (int h = 0; h < 2; ++h)
          for (int l = 0; l < 32; l += 8) {
            const uint8_t* codes = coded.codes + 256 * b + 128 * h + l;
            uint64_t top = 0;
            for (int c = 0; c < 4; ++c) top |= (load8(codes + 32 * c) >> 4 & 3 * kBytes) << (2 * c);
            store8(top, block.qh + 32 * h + l);
            for (int c = 0; c < 2; ++c)
              store8((load8(codes + 32 * c) & 15 * kBytes) | (load8(codes + 32 * c + 64) & 15 * kBytes) << 4,
                     block.ql + 64 * h + 32 * c + l);
          }
      });
}

}  // namespace
}  // namespace gemmule
