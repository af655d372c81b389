// Float matmuls: the contract written out lane by lane must come back bit for bit, in every level, for every
// k with its tails, every number of rows and tokens, and strides larger than needed.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "core/half.h"

namespace gemmule {
namespace {

constexpr int kTypes[] = {0, 1, 30};  // DType of F32, F16, BF16
constexpr float kUntouched = -123.0f;

struct Problem {
  int type;
  int64_t rows, k, tokens, w_stride;
  std::vector<uint8_t> w;      // [rows][w_stride]
  std::vector<float> w_exact;  // f32 [rows][k]
  std::vector<float> x;        // f32 [tokens][k]
};

Problem make_problem(int type, int64_t rows, int64_t k, int64_t tokens) {
  std::mt19937 rng(static_cast<uint32_t>(rows * 1000 + k * 10 + tokens));
  std::normal_distribution<float> normal;
  Problem p{type, rows, k, tokens, 0, {}, {}, {}};
  const int64_t size = type == 0 ? 4 : 2;
  p.w_stride = k * size + 3 * size;  // padding full of NaN must not be read
  p.w.assign(static_cast<size_t>(rows * p.w_stride), 0xff);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      const float v = normal(rng);
      uint8_t* at = p.w.data() + r * p.w_stride + i * size;
      if (type == 0) {
        std::memcpy(at, &v, 4);
        p.w_exact.push_back(v);
      } else {
        const uint16_t h = type == 1 ? f32_to_f16(v) : f32_to_bf16(v);
        std::memcpy(at, &h, 2);
        p.w_exact.push_back(type == 1 ? f16_to_f32(h) : bf16_to_f32(h));
      }
    }
  }
  for (int64_t i = 0; i < tokens * k; ++i) p.x.push_back(normal(rng));
  return p;
}

float contract_dot(const float* w, const float* x, int64_t k) {
  float lane[8] = {};
  for (int64_t i = 0; i < k; ++i) lane[i % 8] = std::fma(w[i], x[i], lane[i % 8]);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

void check_problem(const KernelTable& table, const Problem& p, int64_t begin, int64_t end) {
  const int64_t y_stride = p.rows + 5;
  std::vector<float> y(static_cast<size_t>(p.tokens * y_stride + 1), kUntouched), expected = y;
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t r = begin; r < end; ++r) {
      expected[static_cast<size_t>(t * y_stride + r)] =
          contract_dot(p.w_exact.data() + r * p.k, p.x.data() + t * p.k, p.k);
    }
  }
  ActRows x{};
  x.n = p.tokens;
  x.k = p.k;
  x.f32 = p.x.data();
  table.matmul[p.type](p.w.data(), p.w_stride, begin, end, x, y.data(), y_stride, nullptr);
  CHECK(std::memcmp(y.data(), expected.data(), y.size() * 4) == 0);
}

TEST_CASE("float matmuls follow the contract bit for bit in every level") {
  for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
    if (!level.supported) continue;
    CAPTURE(level.table->name);
    for (const int type : kTypes) {
      CAPTURE(type);
      for (int64_t k = 1; k <= 67; ++k) {
        CAPTURE(k);
        check_problem(*level.table, make_problem(type, 5, k, 4), 0, 5);
      }
      for (int64_t rows = 1; rows <= 9; ++rows) {
        for (int64_t tokens = 0; tokens <= 8; ++tokens) {
          CAPTURE(rows);
          CAPTURE(tokens);
          check_problem(*level.table, make_problem(type, rows, 43, tokens), rows / 3, rows);
        }
      }
      check_problem(*level.table, make_problem(type, 6, 4100, 37), 1, 6);  // several passes of tokens
      check_problem(*level.table, make_problem(type, 3, 70000, 4), 0,
                    3);  // fewer than three tokens fit in a pass
    }
  }
}

}  // namespace
}  // namespace gemmule
