// What the backend adds to the kernels: splitting into jobs, choosing the form of the input, placing rows.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernel_select.h"
#include "core/thread_pool.h"
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

// A random matrix in a tensor type, with the f32 values its codes stand for.
struct Matrix {
  Matrix(DType dtype, int64_t rows, int64_t cols, unsigned seed)
      : bytes(static_cast<size_t>(rows * row_bytes(dtype, cols))), values(static_cast<size_t>(rows * cols)) {
    const auto x = gaussian(rows * cols, seed);
    codec(dtype).quantize_row(x.data(), bytes.data(), rows * cols);
    codec(dtype).dequantize_row(bytes.data(), values.data(), rows * cols);
    tensor = {dtype, rows, cols, bytes.data()};
  }
  std::vector<uint8_t> bytes;
  std::vector<float> values;  // [rows][cols]
  Tensor tensor;
};

Rows filled(Backend& be, int64_t n, int64_t cols, unsigned seed) {
  const Rows rows = be.alloc(n, cols);
  const auto x = gaussian(n * cols, seed);
  std::memcpy(rows.data, x.data(), x.size() * sizeof(float));
  return rows;
}

}  // namespace

TEST_CASE("products of mixed types share one input and are right, for one and many rows") {
  for (const int n_threads : {1, 3}) {
    const auto be = open_cpu("", n_threads);
    be->reserve(40, 512, 64);
    const Matrix a(DType::Q4_K, 70, 512, 1), b(DType::Q8_0, 9, 512, 2), c(DType::F16, 33, 512, 3);
    for (const int64_t n : {1, 2, 5, 40}) {
      const Rows x = filled(*be, n, 512, 4);
      const Rows ya = be->alloc(n, 70), yb = be->alloc(n, 9), yc = be->alloc(n, 33);
      const Product products[] = {{ya, a.tensor}, {yb, b.tensor}, {yc, c.tensor}};
      be->matmul(products, x);
      for (const auto& [y, m] : {std::pair(ya, &a), std::pair(yb, &b), std::pair(yc, &c)}) {
        for (int64_t t = 0; t < n; ++t) {
          for (int64_t r = 0; r < y.cols; ++r) {
            double dot = 0, norm = 0;
            for (int64_t i = 0; i < 512; ++i) {
              const double product =
                  static_cast<double>(m->values[static_cast<size_t>(r * 512 + i)]) * x.data[t * 512 + i];
              dot += product;
              norm += product * product;
            }
            // 8-bit inputs: each product is off by less than about 2 %, with random signs
            CHECK(std::abs(y.data[t * y.cols + r] - dot) < 0.05 * std::sqrt(norm) + 1e-4);
          }
        }
      }
    }
  }
}

TEST_CASE("chosen rows of a product have the bits of the whole one, and the others stay") {
  const auto be = open_cpu("", 3);
  be->reserve(3, 512, 64);
  std::vector<int32_t> chosen;
  for (int32_t i = 0; i < 200; ++i) chosen.push_back(i * 77 % 300);  // in no order, some twice
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_K, DType::Q6_K}) {
    const Matrix w(dtype, 300, 512, 1);
    for (const int64_t n : {1, 3}) {
      const Rows x = filled(*be, n, 512, 2), all = be->alloc(n, 300), some = be->alloc(n, 300);
      be->matmul(all, w.tensor, x);
      be->matmul_rows(some, w.tensor, x, chosen);
      for (int64_t i = 0; i < n * 300; ++i) {
        const bool is_chosen = std::count(chosen.begin(), chosen.end(), i % 300) > 0;
        CHECK(some.data[i] == (is_chosen ? all.data[i] : 0.0f));
      }
    }
  }
}

TEST_CASE("gated_gelu is the product of its parts") {
  const auto be = open_cpu("", 2);
  be->reserve(8, 256, 64);
  const Matrix gate(DType::Q5_0, 96, 256, 5), up(DType::Q6_K, 96, 256, 6);
  const Rows x = filled(*be, 8, 256, 7);
  const Rows y = be->alloc(8, 96), tmp = be->alloc(8, 96), g = be->alloc(8, 96), u = be->alloc(8, 96);
  be->gated_gelu(y, tmp, gate.tensor, up.tensor, x);
  be->matmul(g, gate.tensor, x);
  be->matmul(u, up.tensor, x);
  for (int64_t i = 0; i < 8 * 96; ++i) {
    const double v = g.data[i];
    const double gelu = 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    CHECK(y.data[i] == doctest::Approx(gelu * u.data[i]).epsilon(1e-5));
  }
}

TEST_CASE("embed scales the rows it is asked for") {
  const auto be = open_cpu("", 2);
  be->reserve(6, 64, 64);
  const Matrix table(DType::Q8_0, 20, 64, 8);
  const std::vector<int32_t> tokens = {3, 19, 0, 3, 7, 11};
  const Rows y = be->alloc(6, 64);
  be->embed(y, table.tensor, tokens, 8.0f);
  for (size_t t = 0; t < tokens.size(); ++t)
    for (size_t i = 0; i < 64; ++i)
      CHECK(y.data[t * 64 + i] == 8.0f * table.values[static_cast<size_t>(tokens[t]) * 64 + i]);
}

TEST_CASE("rows can be written, get a vector added and be normalised, each by itself") {
  const auto be = open_cpu("", 2);
  const auto numbers = gaussian(6 * 48, 12), w = gaussian(48, 13), b = gaussian(48, 14);
  const auto vector = [](const std::vector<float>& x) {
    return Tensor{DType::F32, 1, 48, reinterpret_cast<const uint8_t*>(x.data())};
  };
  const Rows x = be->alloc(8, 48).first(6), y = be->alloc(6, 48);
  be->write(x, numbers.data());
  CHECK(std::memcmp(x.data, numbers.data(), numbers.size() * sizeof(float)) == 0);
  be->add_vector(x, vector(b));
  for (size_t i = 0; i < numbers.size(); ++i) CHECK(x.data[i] == numbers[i] + b[i % 48]);
  be->layer_norm(y, x, vector(w), vector(b), 1e-5f);
  for (int64_t row = 0; row < 6; ++row) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < 48; ++i) mean += x.data[row * 48 + i] / 48.0;
    for (int64_t i = 0; i < 48; ++i) variance += std::pow(x.data[row * 48 + i] - mean, 2) / 48;
    for (int64_t i = 0; i < 48; ++i) {
      const auto at = static_cast<size_t>(i);
      const double expected = (x.data[row * 48 + i] - mean) / std::sqrt(variance + 1e-5) * w[at] + b[at];
      CHECK(std::abs(y.data[row * 48 + i] - expected) < 1e-5);
    }
  }
}

TEST_CASE("what was reserved may grow, and never shrinks") {
  const auto be = open_cpu("", 2);
  be->reserve(2, 64, 64);
  be->reserve(3, 1024, 0);
  be->reserve(1, 32, 8);
  const Matrix m(DType::Q8_0, 5, 1024, 15);
  const Rows x = filled(*be, 3, 1024, 16), y = be->alloc(3, 5);
  be->matmul(y, m.tensor, x);
  for (int64_t i = 0; i < 15; ++i) {
    double dot = 0;
    for (int64_t c = 0; c < 1024; ++c)
      dot += static_cast<double>(m.values[static_cast<size_t>(i % 5 * 1024 + c)]) * x.data[i / 5 * 1024 + c];
    CHECK(std::abs(y.data[i] - dot) < 1.0);
  }
}

TEST_CASE("kv_append puts positions into their slots, heads apart, around the ring") {
  const auto be = open_cpu("", 2);
  be->reserve(8, 64, 16);
  constexpr int64_t kRing = 256, kHeads = 2, kDim = 16;
  std::vector<float> k(kHeads * kRing * kDim), v(k.size());
  const KvView view{DType::F32,
                    kHeads,
                    kDim,
                    kRing,
                    reinterpret_cast<uint8_t*>(k.data()),
                    reinterpret_cast<uint8_t*>(v.data())};
  const KvRun run{1, 3, view};
  const std::vector<int64_t> pos = {99, 254, 255, 256};
  const Rows rows_k = filled(*be, 4, kHeads * kDim, 9), rows_v = filled(*be, 4, kHeads * kDim, 10);
  be->kv_append(std::span(&run, 1), rows_k, rows_v, pos);
  for (int64_t row = 1; row < 4; ++row) {
    const int64_t slot = pos[static_cast<size_t>(row)] % kRing;
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t i = 0; i < kDim; ++i) {
        const auto at = static_cast<size_t>((h * kRing + slot) * kDim + i);
        CHECK(k[at] == rows_k.data[row * kHeads * kDim + h * kDim + i]);
        CHECK(v[at] == rows_v.data[row * kHeads * kDim + h * kDim + i]);
      }
    }
  }
  CHECK(k[static_cast<size_t>(99 * kDim)] == 0.0f);  // row 0 belongs to another sequence
}

TEST_CASE("absurd numbers of threads are refused") {
  CHECK_THROWS_AS(open_cpu("", -1), std::invalid_argument);
  CHECK_THROWS_AS(open_cpu("", kMaxThreads + 1), std::invalid_argument);
}

TEST_CASE("heads smaller than the largest one have the scratch they need") {
  for (const int64_t largest : {16, 24, 32, 64}) {
    const auto be = open_cpu("", 2);
    be->reserve(300, 64, largest);
    for (int64_t head_dim = 8; head_dim <= largest; head_dim += 8) {
      std::vector<float> k(static_cast<size_t>(512 * head_dim)), v(k.size(), 1.0f);
      const KvView view{DType::F32,
                        1,
                        head_dim,
                        512,
                        reinterpret_cast<uint8_t*>(k.data()),
                        reinterpret_cast<uint8_t*>(v.data())};
      const KvRun run{0, 300, view};
      std::vector<int64_t> lo(300), hi(300);
      for (int64_t i = 0; i < 300; ++i) hi[static_cast<size_t>(i)] = i + 1;
      const Rows q = filled(*be, 300, 8 * head_dim, 11), y = be->alloc(300, 8 * head_dim);
      be->attend(y, q, std::span(&run, 1), lo, hi);
      for (int64_t i = 0; i < 300 * 8 * head_dim; ++i) REQUIRE(y.data[i] == doctest::Approx(1.0f));
    }
  }
}

namespace {

// Attention of n tokens that end at the end of a cache that kv_append filled, by a backend with so many
// threads. split: rows of one call.
std::vector<float> attend_last(int n_threads, DType dtype, int64_t positions, int64_t n, int64_t split) {
  constexpr int64_t kDim = 512, kHeads = 16;
  const auto be = open_cpu("", n_threads);
  be->reserve(256, kHeads * kDim, kDim);
  KvView view{dtype, 1, kDim, (positions + 255) / 256 * 256, nullptr, nullptr, 64};
  std::vector<uint8_t> k(static_cast<size_t>(view.ring * view.k_row())),
      v(static_cast<size_t>(view.ring * view.v_row()));
  view.k = k.data();
  view.v = v.data();
  const Rows keys = filled(*be, 256, kDim, 21), values = filled(*be, 256, kDim, 22);
  for (int64_t p = 0; p < positions; p += 256) {
    std::vector<int64_t> pos(static_cast<size_t>(std::min<int64_t>(256, positions - p)));
    for (size_t i = 0; i < pos.size(); ++i) pos[i] = p + static_cast<int64_t>(i);
    keys.data[p % 1000] += 1;  // no two chunks are alike
    values.data[p % 777] -= 1;
    const KvRun run{0, static_cast<int64_t>(pos.size()), view};
    be->kv_append(std::span(&run, 1), keys, values, pos);
  }
  const Rows q = filled(*be, n, kHeads * kDim, 23), y = be->alloc(n, kHeads * kDim);
  be->scale(q, 0.1f);
  std::vector<int64_t> lo(static_cast<size_t>(n), 0), hi;
  for (int64_t i = 0; i < n; ++i) hi.push_back(positions - n + 1 + i);
  for (int64_t first = 0; first < n; first += split) {
    const KvRun run{first, std::min(split, n - first), view};
    be->attend(y, q, std::span(&run, 1), lo, hi);
  }
  return {y.data, y.data + n * kHeads * kDim};
}

}  // namespace

TEST_CASE(
    "attention gives the same bits for any number of threads and rows, over more chunks than wait at once") {
  for (const DType dtype : {DType::F16, DType::Q8_0}) {
    const std::vector<float> alone = attend_last(1, dtype, 80 * 256 + 9, 6, 1);
    CHECK(attend_last(2, dtype, 80 * 256 + 9, 6, 1) == alone);
    CHECK(attend_last(3, dtype, 80 * 256 + 9, 6, 4) == alone);  // 64 rows: rounds of 62 chunks
    CHECK(attend_last(2, dtype, 80 * 256 + 9, 6, 6) == alone);  // 96 rows: tiles
  }
  const std::vector<float> few = attend_last(1, DType::F16, 300, 2, 2);
  CHECK(attend_last(24, DType::F16, 300, 2, 1) == few);  // more threads than chunks
}

namespace {

// Multiply-adds of attention since the last look at a stop token, the most between two looks, and all of
// them.
struct Work {
  int64_t now = 0, most = 0, all = 0;
} work;

void add_work(const AttendArgs& a, int64_t begin, int64_t end) noexcept {
  for (int t = 0; t < a.n_tokens; ++t)
    work.now += 2 * (a.head_end - a.head_begin) * a.head_dim *
                std::max<int64_t>(0, std::min(end, a.hi[t]) - std::max(begin, a.lo[t]));
}

}  // namespace

TEST_CASE("attention over 256K positions looks at the stop token every half a billion multiply-adds") {
  constexpr int64_t kPositions = 262144, kDim = 512, kHeads = 16;
  KernelTable counting = select_kernels(detect_cpu_features(), "scalar");
  counting.attend = [](const AttendArgs& a) noexcept { add_work(a, a.begin, a.end); };
  counting.attend_chunk = [](const AttendArgs& a, int64_t base, float*) noexcept {
    add_work(a, base, base + kAttendChunk);
  };
  counting.attend_join = [](float*, float*, const float*, int64_t, int64_t, int64_t, bool) noexcept {};
  CpuBackend be(counting, 1);
  be.reserve(256, kHeads * kDim, kDim);
  StopToken stop;
  stop.set_poll([] {
    work.most = std::max(work.most, work.now);
    work.all += work.now;
    work.now = 0;
  });
  be.watch(&stop);
  const KvView cache{DType::F16, 1, kDim, kPositions, nullptr, nullptr, 64};
  const Rows q = be.alloc(256, kHeads * kDim), y = be.alloc(256, kHeads * kDim);
  for (const int64_t n_rows : {1, 4, 5, 16, 256}) {
    CAPTURE(n_rows);
    const std::vector<int64_t> lo(static_cast<size_t>(n_rows), 0);
    std::vector<int64_t> hi;
    int64_t seen = 0;
    for (int64_t i = 0; i < n_rows; ++i) seen += hi.emplace_back(kPositions - n_rows + 1 + i);
    const KvRun run{0, n_rows, cache};
    work = {};
    be.attend(y.first(n_rows), q.first(n_rows), std::span(&run, 1), lo, hi);
    stop.check();
    CHECK(work.most <= 1 << 29);
    CHECK(work.all == 2 * kHeads * kDim * seen);
  }
}
