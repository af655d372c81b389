// Routing and the products of experts: the right choice, every pair once, and the bits of the plain product,
// whatever the company.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_select.h"
#include "quant/codec.h"

using namespace gemmule;

namespace {

std::vector<float> gaussian(int64_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

Tensor f32_vector(const std::vector<float>& values) {
  return {DType::F32, 1, static_cast<int64_t>(values.size()),
          reinterpret_cast<const uint8_t*>(values.data())};
}

Rows filled(Backend& be, int64_t n, int64_t cols, unsigned seed) {
  const Rows rows = be.alloc(n, cols);
  const auto x = gaussian(n * cols, seed);
  std::memcpy(rows.data, x.data(), x.size() * sizeof(float));
  return rows;
}

bool same_bits(Rows a, Rows b) {
  return a.n == b.n && a.cols == b.cols &&
         std::memcmp(a.data, b.data, static_cast<size_t>(a.n * a.cols) * sizeof(float)) == 0;
}

// n random matrices of one type, one after the other.
struct Stack {
  Stack(DType dtype, int64_t n, int64_t rows, int64_t cols, unsigned seed)
      : bytes(static_cast<size_t>(n * rows * row_bytes(dtype, cols))) {
    const auto x = gaussian(n * rows * cols, seed);
    codec(dtype).quantize_row(x.data(), bytes.data(), n * rows * cols);
    experts = {{dtype, rows, cols, bytes.data()}, rows * row_bytes(dtype, cols)};
  }
  std::vector<uint8_t> bytes;
  Experts experts;
};

// Routes of one row with these scores and scales of 1.
struct Choice {
  std::vector<int32_t> expert;
  std::vector<float> weight;
};
Choice choose(Backend& be, const std::vector<float>& scores, int64_t n_used) {
  const auto n = static_cast<int64_t>(scores.size());
  const std::vector<float> ones(scores.size(), 1.0f);
  Routes routes = be.alloc_routes(1, n, n_used);
  const Rows row = be.alloc(1, n);
  std::memcpy(row.data, scores.data(), scores.size() * sizeof(float));
  be.route(routes, row, f32_vector(ones));
  return {{routes.expert, routes.expert + n_used}, {routes.weight, routes.weight + n_used}};
}

}  // namespace

TEST_CASE("a row goes to its best experts, the lower number first among equals") {
  const auto be = open_cpu("", 1);
  CHECK(choose(*be, {1, 5, 3, 4}, 2).expert == std::vector<int32_t>{1, 3});
  CHECK(choose(*be, {2, 7, 7, 2, 7}, 4).expert == std::vector<int32_t>{1, 2, 4, 0});
  CHECK(choose(*be, {0.0f, -0.0f, 0.0f}, 2).expert == std::vector<int32_t>{0, 1});
  CHECK(choose(*be, {-3}, 1).expert == std::vector<int32_t>{0});
  const std::vector<float> alike(1024, 0.5f);
  const Choice all = choose(*be, alike, 1024);
  for (int32_t e = 0; e < 1024; ++e) {
    CHECK(all.expert[static_cast<size_t>(e)] == e);
    CHECK(all.weight[static_cast<size_t>(e)] == 1.0f / 1024);
  }
}

TEST_CASE("the weights are the softmax of the chosen scores times the scales of the experts") {
  const auto be = open_cpu("", 1);
  const std::vector<float> scores = gaussian(128, 1), scale = gaussian(128, 2);
  Routes routes = be->alloc_routes(1, 128, 8);
  const Rows row = be->alloc(1, 128);
  std::memcpy(row.data, scores.data(), scores.size() * sizeof(float));
  be->route(routes, row, f32_vector(scale));
  double all = 0, chosen = 0;
  for (const float s : scores) all += std::exp(static_cast<double>(s));
  for (int r = 0; r < 8; ++r)
    chosen += std::exp(static_cast<double>(scores[static_cast<size_t>(routes.expert[r])])) / all;
  for (int r = 0; r < 8; ++r) {
    const auto e = static_cast<size_t>(routes.expert[r]);
    const double p = std::exp(static_cast<double>(scores[e])) / all / chosen;
    CHECK(routes.weight[r] == doctest::Approx(p * scale[e]).epsilon(1e-6));
    if (r > 0) CHECK(scores[e] <= scores[static_cast<size_t>(routes.expert[r - 1])]);
  }
}

TEST_CASE("a score that is not finite makes every weight NaN, chosen or not") {
  const auto be = open_cpu("", 1);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, inf, -inf}) {
    for (const size_t at : {0, 3, 19}) {
      std::vector<float> scores = gaussian(20, 3);
      scores[at] = bad;
      const Choice choice = choose(*be, scores, 3);
      CHECK(choice.expert == std::vector<int32_t>{0, 1, 2});
      for (const float w : choice.weight) CHECK(std::isnan(w));
    }
  }
}

TEST_CASE("every level routes with the same bits") {
  std::vector<Choice> choices;
  for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
    if (!level.supported) continue;
    const auto be = open_cpu(level.table->name, 1);
    for (const int64_t n_used : {1, 3, 8, 13}) {
      const Choice choice = choose(*be, gaussian(40, 4), n_used);
      choices.push_back(choice);
      const size_t per_level = 4, i = choices.size() - 1;
      CHECK(choice.expert == choices[i % per_level].expert);
      CHECK(std::memcmp(choice.weight.data(), choices[i % per_level].weight.data(),
                        choice.weight.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("the places hold every pair once, sorted by expert and row") {
  const auto be = open_cpu("", 3);
  const std::vector<float> ones(9, 1.0f);
  Routes routes = be->alloc_routes(50, 9, 4);
  for (const int64_t n : {50, 1, 7}) {  // shrinking steps must leave nothing behind
    be->route(routes, filled(*be, n, 9, static_cast<unsigned>(n)), f32_vector(ones));
    REQUIRE(routes.n == n);
    CHECK(routes.first[0] == 0);
    CHECK(routes.first[9] == n * 4);
    int64_t n_busy = 0;
    for (int32_t e = 0; e < 9; ++e) {
      if (routes.first[e] == routes.first[e + 1]) continue;
      CHECK(routes.busy[n_busy++] == e);
      for (int32_t p = routes.first[e]; p < routes.first[e + 1]; ++p) {
        if (p > routes.first[e]) CHECK(routes.row[p] > routes.row[p - 1]);
        int found = 0;
        for (int64_t r = 0; r < 4; ++r) {
          const int64_t pair = routes.row[p] * 4 + r;
          if (routes.place[pair] == p && routes.expert[pair] == e) ++found;
        }
        CHECK(found == 1);
      }
    }
    CHECK(routes.n_busy == n_busy);
  }
}

TEST_CASE("expert products have the bits of the plain product, for every type and any company") {
  constexpr int64_t kExperts = 6, kUsed = 2, kCols = 256, kRows = 40, kOut = 72;
  const std::vector<float> ones(kExperts, 1.0f);
  for (const DTypeInfo& type : kDTypes) {
    const Stack gate(type.dtype, kExperts, kOut, kCols, 5), up(DType::Q8_0, kExperts, kOut, kCols, 6);
    for (const int n_threads : {1, 3}) {
      const auto be = open_cpu("", n_threads);
      be->reserve(kRows, kUsed * kCols, 64);
      for (const int64_t n : {kRows, int64_t{1}, int64_t{3}}) {
        Routes routes = be->alloc_routes(n, kExperts, kUsed);
        be->route(routes, filled(*be, n, kExperts, 7), f32_vector(ones));
        const Rows x = filled(*be, n, kCols, 8), pairs = be->alloc(n * kUsed, kCols);
        const Rows y = be->alloc(n * kUsed, kOut), z = be->alloc(n * kUsed, kOut),
                   tmp = be->alloc(n * kUsed, kOut);
        be->gather(pairs, x, routes);
        be->expert_matmul(y, gate.experts, pairs, routes);
        be->expert_gated_gelu(z, tmp, gate.experts, up.experts, pairs, routes);
        const Rows one = be->alloc(1, kOut), one_tmp = be->alloc(1, kOut);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t r = 0; r < kUsed; ++r) {
            const int64_t e = routes.expert[i * kUsed + r], place = routes.place[i * kUsed + r];
            be->matmul(one, gate.experts.of(e), x.from(i, 1));
            REQUIRE(same_bits(one, y.from(place, 1)));
            be->gated_gelu(one, one_tmp, gate.experts.of(e), up.experts.of(e), x.from(i, 1));
            REQUIRE(same_bits(one, z.from(place, 1)));
          }
        }
      }
    }
  }
}

TEST_CASE("expert_sum adds weighted rows, best expert first") {
  const auto be = open_cpu("", 2);
  const std::vector<float> scale = {0.5f, -2.0f, 1.5f, 1.0f};
  for (const int64_t n : {1, 9}) {
    Routes routes = be->alloc_routes(n, 4, 3);
    be->route(routes, filled(*be, n, 4, 9), f32_vector(scale));
    const Rows x = filled(*be, n * 3, 21, 10), y = filled(*be, n, 21, 11);
    be->expert_sum(y, x, routes);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < 21; ++c) {
        float sum = 0;
        for (int64_t r = i * 3; r < i * 3 + 3; ++r)
          sum = std::fma(x.data[routes.place[r] * 21 + c], routes.weight[r], sum);
        CHECK(y.data[i * 21 + c] == sum);
      }
    }
  }
}

TEST_CASE("gelu_mul takes its partner's columns from where it is told, add adds") {
  const auto be = open_cpu("", 2);
  const Rows gate = filled(*be, 5, 12, 12), up = filled(*be, 5, 40, 13), y = be->alloc(5, 12);
  be->gelu_mul(y, gate, up, 17);
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t c = 0; c < 12; ++c) {
      const double v = gate.data[i * 12 + c];
      const double gelu = 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
      CHECK(y.data[i * 12 + c] == doctest::Approx(gelu * up.data[i * 40 + 17 + c]).epsilon(1e-5));
    }
  }
  const Rows a = filled(*be, 5, 12, 14), b = filled(*be, 5, 12, 15), sum = filled(*be, 5, 12, 14);
  be->add(sum, b);
  for (int64_t i = 0; i < 60; ++i) CHECK(sum.data[i] == a.data[i] + b.data[i]);
}
