// The levels avx512 and avx_vnni on processors without their instructions: the same kernel sources, compiled
// against emulated intrinsics (and avx_vnni with AVX-512's encoding, where that runs), give the bits of the
// scalar level.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "core/dtype.h"
#include "quant/packed.h"
#include "quant/random_blocks.h"

#if defined(GEMMULE_TEST_EMULATION)

namespace gemmule {

const KernelTable& kernels_avx512_emulated() noexcept;
const KernelTable& kernels_avx_vnni_emulated() noexcept;
const KernelTable& kernels_avx_vnni_evex() noexcept;

namespace {

using Rng = std::mt19937;

std::vector<const KernelTable*> emulated_levels() {
  const CpuFeatures features = detect_cpu_features();
  std::vector<const KernelTable*> levels;
  if (features.avx2) levels = {&kernels_avx512_emulated(), &kernels_avx_vnni_emulated()};
  if (features.avx512_vnni) levels.push_back(&kernels_avx_vnni_evex());
  return levels;
}

class Aligned {
 public:
  explicit Aligned(size_t n) : memory_(new (std::align_val_t{64}) uint8_t[n]) {}
  ~Aligned() { ::operator delete[](memory_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  uint8_t* data() const { return memory_; }

 private:
  uint8_t* memory_;
};

struct Activations {
  std::vector<int8_t> q;      // [n][k]
  std::vector<float> d;       // [n][k / block]
  std::vector<int16_t> sums;  // [n][k / 32] or [n][k / 16]
  ActRows rows(int64_t n, int64_t k) const { return {n, k, nullptr, q.data(), d.data(), sums.data()}; }
};

// Random codes; every third token is +-127 throughout, the worst case of the 16-bit sums.
Activations random_activations(DType dtype, int64_t n, int64_t k, Rng& rng) {
  const int64_t block = dtype_info(dtype).block_size, group = block == 256 ? 16 : 32;
  Activations a;
  a.q.resize(static_cast<size_t>(n * k));
  a.d.resize(static_cast<size_t>(n * k / block));
  a.sums.resize(static_cast<size_t>(n * k / group));
  for (int64_t i = 0; i < n * k; ++i) {
    const int extreme = i / k % 2 == 0 ? 127 : -127;
    const int code = i / k % 3 == 1 ? extreme : static_cast<int>(rng() % 255) - 127;
    a.q[static_cast<size_t>(i)] = static_cast<int8_t>(code);
    int16_t& sum = a.sums[static_cast<size_t>(i / group)];
    sum = static_cast<int16_t>(sum + code);
  }
  for (float& d : a.d) d = 0.001f + 0.03f * static_cast<float>(rng() % 4096) / 4096.0f;
  return a;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b, size_t n) {
  return std::memcmp(a.data(), b.data(), n * sizeof(float)) == 0;
}

TEST_CASE("emulated levels: packed and GGUF rows give the bits of the scalar level") {
  Rng rng(31);
  const KernelTable& scalar = select_kernels(CpuFeatures{}, "scalar");
  constexpr int64_t kTokens = 40, kRows = 88;  // a panel of 64 rows and one of 24
  for (const DType dtype : testing::kBlockTypes) {
    const auto type = static_cast<size_t>(dtype);
    for (const int64_t k : {int64_t{256}, int64_t{dtype_info(dtype).block_size == 32 ? 352 : 768}}) {
      const std::vector<uint8_t> w = testing::random_rows(dtype, kRows, k, rng);
      const Activations a = random_activations(dtype, kTokens, k, rng);
      const int64_t row_size = row_bytes(dtype, k);
      std::vector<float> expected(static_cast<size_t>(kRows * kTokens));
      scalar.matmul[type](w.data(), row_size, 0, kRows, a.rows(kTokens, k), expected.data(), kRows, nullptr);
      Aligned panels(w.size());
      pack_rows(dtype, kRows, k, w.data(), panels.data());
      for (const KernelTable* level : emulated_levels())
        for (const int64_t n : {1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 40}) {
          CAPTURE(level->name);
          CAPTURE(dtype_name(dtype));
          CAPTURE(k);
          CAPTURE(n);
          const auto used = static_cast<size_t>(kRows * n);
          Aligned scratch(level->matmul_scratch_bytes(n, k));
          std::vector<float> y(used, NAN);
          level->matmul_packed[type](panels.data(), kRows, 0, 40, a.rows(n, k), y.data(), kRows,
                                     scratch.data());
          level->matmul_packed[type](panels.data(), kRows, 40, kRows, a.rows(n, k), y.data(), kRows,
                                     scratch.data());
          REQUIRE(same_bits(y, expected, used));
          if (n != 5) continue;
          std::vector<float> from_rows(used, NAN);
          level->matmul[type](w.data(), row_size, 0, kRows, a.rows(n, k), from_rows.data(), kRows,
                              scratch.data());
          REQUIRE(same_bits(from_rows, expected, used));
        }
    }
  }
}

}  // namespace
}  // namespace gemmule

#endif
