// The packed matmuls and packers of every instruction-set level: the bits of the scalar `matmul` on the same
// rows in GGUF's layout, and the bytes of the portable packer.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <new>
#include <random>
#include <vector>

#include "backend/cpu/levels.h"
#include "core/dtype.h"
#include "quant/packed.h"
#include "quant/random_blocks.h"

namespace gemmule {
namespace {

using testing::kBlockTypes;
using testing::random_rows;
using testing::scalar_level;
using testing::usable_levels;
using Rng = std::mt19937;

constexpr float kUntouched = -12345.5f;
constexpr int64_t kTokens = 100;
constexpr int64_t kGap = 3;  // floats between the rows of y that no kernel may touch

bool is_k_quant(DType dtype) { return dtype_info(dtype).block_size == 256; }

// n bytes that begin `offset` after a multiple of 64 and end less than 64 bytes before a page that nobody may
// touch: a kernel that steps outside dies in every build, also at the levels that the sanitizer builds leave
// out. Scratch is aligned to 64 bytes, panels only to 32.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t n, size_t offset = 0)
      : size_(n), mapped_((n + offset + 63 + kPage - 1) / kPage * kPage + kPage) {
    void* const block = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(block != MAP_FAILED);
    memory_ = static_cast<uint8_t*>(block);
    REQUIRE(mprotect(memory_ + mapped_ - kPage, kPage, PROT_NONE) == 0);
    at_ = (mapped_ - kPage - n - offset) / 64 * 64 + offset;
  }
  ~AlignedBytes() { munmap(memory_, mapped_); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  uint8_t* data() const { return memory_ + at_; }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kPage = 4096;
  size_t size_, mapped_, at_ = 0;
  uint8_t* memory_ = nullptr;
};

// Quantized rows of k codes; d is what the quantizers give, but for the special values of a test.
struct Activations {
  std::vector<int8_t> q;      // [n][k]
  std::vector<float> d;       // [n][k / block]
  std::vector<int16_t> sums;  // [n][k / 32] or [n][k / 16]
  ActRows rows(int64_t n, int64_t k) const { return {n, k, nullptr, q.data(), d.data(), sums.data()}; }
};

template <class CodeAt>
Activations make_activations(DType dtype, int64_t n, int64_t k, Rng& rng, const CodeAt& code_at) {
  const int64_t block = is_k_quant(dtype) ? 256 : 32, group = is_k_quant(dtype) ? 16 : 32;
  Activations a;
  a.q.resize(static_cast<size_t>(n * k));
  a.d.resize(static_cast<size_t>(n * k / block));
  a.sums.resize(static_cast<size_t>(n * k / group));
  for (int64_t i = 0; i < n * k; ++i) {
    const int code = code_at(i / k, i % k);
    a.q[static_cast<size_t>(i)] = static_cast<int8_t>(code);
    int16_t& sum = a.sums[static_cast<size_t>(i / group)];
    sum = static_cast<int16_t>(sum + code);
  }
  for (float& d : a.d) d = 0.001f + 0.03f * static_cast<float>(rng() % 4096) / 4096.0f;
  return a;
}

// Codes of all sizes. Of every seven tokens one has only codes +-127 and one only 127, the worst for 16-bit
// sums.
Activations random_activations(DType dtype, int64_t n, int64_t k, Rng& rng) {
  return make_activations(dtype, n, k, rng, [&](int64_t t, int64_t i) {
    if (t % 7 == 1) return i / 3 % 2 ? 127 : -127;
    if (t % 7 == 3) return 127;
    return static_cast<int>(rng() % 255) - 127;
  });
}

// y [n][rows] of the scalar level on GGUF rows.
std::vector<float> expected_y(DType dtype, const std::vector<uint8_t>& w, int64_t rows, const ActRows& x) {
  std::vector<float> y(static_cast<size_t>(rows * x.n), kUntouched);
  AlignedBytes scratch(scalar_level().matmul_scratch_bytes(x.n, x.k));
  scalar_level().matmul[static_cast<size_t>(dtype)](w.data(), row_bytes(dtype, x.k), 0, rows, x, y.data(),
                                                    rows, scratch.data());
  return y;
}

bool same_number(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}

// y [n][rows + kGap] of a level; scratch starts as NaN, whatever type it is read as.
std::vector<float> multiply(const KernelTable& kernels, DType dtype, const AlignedBytes& panels, int64_t rows,
                            int64_t begin, int64_t end, const ActRows& x) {
  AlignedBytes scratch(kernels.matmul_scratch_bytes(x.n, x.k));
  std::memset(scratch.data(), 0xff, scratch.size());
  std::vector<float> y(static_cast<size_t>((rows + kGap) * x.n), kUntouched);
  kernels.matmul_packed[static_cast<size_t>(dtype)](panels.data(), rows, begin, end, x, y.data(), rows + kGap,
                                                    scratch.data());
  return y;
}

// Whether rows [begin, end) of such a y hold the expected numbers [n][rows] and everything else is untouched.
bool same_range(const std::vector<float>& y, const std::vector<float>& expected, int64_t n, int64_t rows,
                int64_t begin, int64_t end) {
  for (int64_t t = 0; t < n; ++t)
    for (int64_t r = 0; r < rows + kGap; ++r) {
      const float wanted = r >= begin && r < end ? expected[static_cast<size_t>(t * rows + r)] : kUntouched;
      if (!same_number(y[static_cast<size_t>(t * (rows + kGap) + r)], wanted)) return false;
    }
  return true;
}

std::vector<int64_t> test_widths(DType dtype) {
  if (is_k_quant(dtype)) return {256, 512, 1280};
  return {32, 96, 640};
}

// All levels on one matrix, for the given numbers of tokens and ranges of rows.
struct Range {
  int64_t begin, end;
};
void check_levels(DType dtype, const std::vector<uint8_t>& w, int64_t rows, int64_t k, const Activations& a,
                  const std::vector<int64_t>& tokens, const std::vector<Range>& ranges) {
  const int64_t n_max = *std::max_element(tokens.begin(), tokens.end());
  const std::vector<float> expected = expected_y(dtype, w, rows, a.rows(n_max, k));
  AlignedBytes panels(w.size(), 32);
  pack_rows(dtype, rows, k, w.data(), panels.data());
  for (const KernelTable* kernels : usable_levels())
    for (const int64_t n : tokens)
      for (const auto& [begin, end] : ranges) {
        CAPTURE(kernels->name);
        CAPTURE(dtype_name(dtype));
        CAPTURE(k);
        CAPTURE(rows);
        CAPTURE(n);
        CAPTURE(begin);
        CAPTURE(end);
        const std::vector<float> y = multiply(*kernels, dtype, panels, rows, begin, end, a.rows(n, k));
        REQUIRE(same_range(y, expected, n, rows, begin, end));
      }
}

TEST_CASE("packed matmul: every level has every block type and no other") {
  for (const KernelTable* kernels : usable_levels())
    for (const DTypeInfo& info : kDTypes) {
      CAPTURE(kernels->name);
      CAPTURE(info.name);
      const auto i = static_cast<size_t>(info.dtype);
      CHECK((kernels->pack[i] != nullptr) == (info.block_size > 1));
      CHECK((kernels->matmul_packed[i] != nullptr) == (info.block_size > 1));
    }
}

TEST_CASE("packed matmul: every level packs as the portable packer") {
  Rng rng(20);
  for (const DType dtype : kBlockTypes)
    for (const int64_t k : test_widths(dtype))
      for (int64_t rows = 8; rows <= 64; rows += 8) {
        const std::vector<uint8_t> w = random_rows(dtype, rows, k, rng);
        std::vector<uint8_t> expected(w.size());
        pack_rows(dtype, rows, k, w.data(), expected.data());
        for (const KernelTable* kernels : usable_levels()) {
          CAPTURE(kernels->name);
          CAPTURE(dtype_name(dtype));
          CAPTURE(k);
          CAPTURE(rows);
          AlignedBytes panel(w.size(), 32);
          std::memset(panel.data(), 0xee, panel.size());
          kernels->pack[static_cast<size_t>(dtype)](w.data(), rows, k, panel.data());
          REQUIRE(std::memcmp(panel.data(), expected.data(), expected.size()) == 0);
        }
      }
}

TEST_CASE("packed matmul: every level gives the bits of the scalar rows, for any number of tokens") {
  Rng rng(21);
  std::vector<int64_t> tokens;
  for (int64_t n = 1; n <= 17; ++n) tokens.push_back(n);
  for (const int64_t n : {31, 64, 100}) tokens.push_back(n);
  for (const DType dtype : kBlockTypes)
    for (const int64_t k : test_widths(dtype)) {
      const int64_t rows = 72;
      const Activations a = random_activations(dtype, kTokens, k, rng);
      check_levels(dtype, random_rows(dtype, rows, k, rng), rows, k, a, tokens, {{0, rows}});
    }
}

TEST_CASE("packed matmul: every number of rows, and ranges inside and across panels") {
  Rng rng(22);
  const std::vector<int64_t> tokens = {1, 2, 3, 4, 7, 8, 13};
  for (const DType dtype : kBlockTypes) {
    const int64_t k = test_widths(dtype)[1];
    const Activations a = random_activations(dtype, 13, k, rng);
    for (int64_t rows = 8; rows <= 200; rows += 8)
      check_levels(dtype, random_rows(dtype, rows, k, rng), rows, k, a, tokens, {{0, rows}});
    const int64_t rows = 200;  // panels at 64, 128; the last has 8 rows
    check_levels(dtype, random_rows(dtype, rows, k, rng), rows, k, a, tokens,
                 {{0, 0},
                  {8, 8},
                  {0, 8},
                  {8, 16},
                  {24, 56},
                  {56, 64},
                  {56, 72},
                  {64, 128},
                  {40, 176},
                  {120, 200},
                  {192, 200},
                  {184, 192}});
  }
}

TEST_CASE("packed matmul: the largest codes and scales, with the largest activations") {
  Rng rng(23);
  for (const DType dtype : kBlockTypes)
    for (const int fill : {0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0, 0x55, 0xaa}) {
      const int64_t rows = 16, k = is_k_quant(dtype) ? 512 : 640;
      std::vector<uint8_t> w(static_cast<size_t>(rows * row_bytes(dtype, k)), static_cast<uint8_t>(fill));
      testing::set_halves(dtype, w,
                          [&] { return static_cast<uint16_t>(rng() % 2 ? 0x3c00 : 0xb400); });  // 1, -0.25
      const Activations a = make_activations(dtype, 16, k, rng, [](int64_t t, int64_t i) {
        switch (t % 6) {
          case 0:
            return 127;
          case 1:
            return -127;
          case 2:
            return i % 2 ? 127 : -127;
          case 3:
            return i / 4 % 2 ? 127 : -127;
          case 4:
            return i / 16 % 2 ? 127 : -127;
          default:
            return 0;
        }
      });
      CAPTURE(fill);
      check_levels(dtype, w, rows, k, a, {1, 2, 3, 4, 6, 8, 12, 16}, {{0, rows}});
    }
}

TEST_CASE("packed matmul: scales that are zero, subnormal, infinite or NaN") {
  Rng rng(24);
  const uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x7bff, 0xfbff, 0x7c00,
                             0xfc00, 0x7e00, 0x7d00, 0xffff, 0x3c00, 0x2000, 0xa000};
  for (const DType dtype : kBlockTypes) {
    const int64_t rows = 72, k = test_widths(dtype)[1];
    std::vector<uint8_t> w = random_rows(dtype, rows, k, rng);
    testing::set_halves(dtype, w,
                        [&] { return rng() % 2 ? uint16_t{0x3000} : halves[rng() % std::size(halves)]; });
    Activations a = random_activations(dtype, 17, k, rng);
    const float specials[] = {0.0f, -0.0f, INFINITY, NAN, 1e-42f, 3e38f};
    for (float& d : a.d)
      if (rng() % 8 == 0) d = specials[rng() % std::size(specials)];
    check_levels(dtype, w, rows, k, a, {1, 2, 3, 4, 5, 8, 9, 17}, {{0, rows}});
  }
}

TEST_CASE("packed matmul: more tokens than a tile holds, and long rows") {
  Rng rng(26);
  for (const DType dtype : kBlockTypes) {
    const int64_t k = is_k_quant(dtype) ? 256 : 288;
    check_levels(dtype, random_rows(dtype, 24, k, rng), 24, k, random_activations(dtype, 1031, k, rng),
                 {513, 1031}, {{0, 24}});
    check_levels(dtype, random_rows(dtype, 16, 10240, rng), 16, 10240,
                 random_activations(dtype, 9, 10240, rng), {1, 2, 3, 4, 9}, {{0, 16}});
  }
}

TEST_CASE("packed matmul: no token or no element gives nothing or zeros") {
  Rng rng(25);
  const ActRows no_token{0, 256, nullptr, nullptr, nullptr, nullptr},
      no_element{2, 0, nullptr, nullptr, nullptr, nullptr};
  const std::vector<float> zeros(16, 0.0f);
  for (const DType dtype : kBlockTypes) {
    AlignedBytes panels(static_cast<size_t>(8 * row_bytes(dtype, 256)), 32);
    const std::vector<uint8_t> w = random_rows(dtype, 8, 256, rng);
    pack_rows(dtype, 8, 256, w.data(), panels.data());
    for (const KernelTable* kernels : usable_levels()) {
      CAPTURE(kernels->name);
      CAPTURE(dtype_name(dtype));
      CHECK(multiply(*kernels, dtype, panels, 8, 0, 8, no_token).empty());
      CHECK(same_range(multiply(*kernels, dtype, panels, 8, 0, 8, no_element), zeros, 2, 8, 0, 8));
    }
  }
}

}  // namespace
}  // namespace gemmule
