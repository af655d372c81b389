// Weights that change their order while they are used: nobody may notice, and nothing may be there twice.
#include "backend/cpu/packed_weights.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/levels.h"
#include "core/error.h"
#include "quant/codec.h"
#include "quant/packed.h"

using namespace gemmule;

namespace {

struct Matrix {
  Matrix(DType dtype, int64_t rows, int64_t cols, unsigned seed)
      : bytes(static_cast<size_t>(rows * row_bytes(dtype, cols))) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(rows * cols));
    for (float& v : x) v = normal(rng);
    codec(dtype).quantize_row(x.data(), bytes.data(), rows * cols);
    tensor = {dtype, rows, cols, bytes.data()};
  }
  std::vector<uint8_t> bytes;
  Tensor tensor;
};

Rows random_rows(Backend& be, int64_t n, int64_t cols, unsigned seed) {
  const Rows rows = be.alloc(n, cols);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < n * cols; ++i) rows.data[i] = normal(rng);
  return rows;
}

bool same_bits(Rows a, Rows b) {
  return std::memcmp(a.data, b.data, static_cast<size_t>(a.n * a.cols) * sizeof(float)) == 0;
}

// What the backend gave back, as ranges in the order of time.
struct Released {
  std::vector<std::pair<const uint8_t*, int64_t>> ranges;

  int64_t bytes_of(const Matrix& m) const {
    int64_t n = 0;
    for (const auto& [begin, n_bytes] : ranges)
      if (begin >= m.bytes.data() && begin < m.bytes.data() + m.bytes.size()) n += n_bytes;
    return n;
  }
  Repacking permit(bool may_take = true) {
    return {[may_take](int64_t) { return may_take; },
            [this](const uint8_t* begin, int64_t n_bytes) { ranges.emplace_back(begin, n_bytes); }};
  }
};

}  // namespace

TEST_CASE("products keep their bits while the matrix they read is packed, step by step or at once") {
  const Matrix q4(DType::Q4_K, 200, 512, 1), q8(DType::Q8_0, 8 * 64, 512, 2), odd(DType::Q8_0, 9, 512, 3);
  for (const KernelTable* level : testing::usable_levels()) {
    const std::string isa = level->name;
    for (const int64_t n : {int64_t{1}, int64_t{3}, int64_t{100}}) {
      CAPTURE(isa);
      CAPTURE(n);
      const auto plain = open_cpu(isa, 2), packing = open_cpu(isa, 2);
      for (Backend* be : {plain.get(), packing.get()}) be->reserve(100, 512, 64);
      Released released;
      packing->allow_repacking(std::vector{q4.tensor, odd.tensor, q8.tensor}, released.permit());
      const Rows x = random_rows(*plain, n, 512, 4);
      const Rows expected[] = {plain->alloc(n, 200), plain->alloc(n, 9), plain->alloc(n, 512)};
      const Product wanted[] = {
          {expected[0], q4.tensor}, {expected[1], odd.tensor}, {expected[2], q8.tensor}};
      plain->matmul(wanted, x);
      const Rows y[] = {packing->alloc(n, 200), packing->alloc(n, 9), packing->alloc(n, 512)};
      const Product products[] = {{y[0], q4.tensor}, {y[1], odd.tensor}, {y[2], q8.tensor}};
      int64_t before = -1;
      for (int step = 0; step < 12; ++step) {  // a panel each
        packing->begin_step(n);
        packing->matmul(products, x);
        for (size_t i = 0; i < 3; ++i) CHECK(same_bits(y[i], expected[i]));
        const int64_t packed = packing->repacked_bytes();
        CHECK(packed >= before);
        if (n >= 64) CHECK(packed == q4.tensor.size_bytes() + q8.tensor.size_bytes());
        before = packed;
      }
      CHECK(before == q4.tensor.size_bytes() + q8.tensor.size_bytes());  // 9 rows have no packed form
      CHECK(released.bytes_of(q4) >= q4.tensor.size_bytes());
      CHECK(released.bytes_of(odd) == 0);
    }
  }
}

TEST_CASE("what is given back lies inside the matrices and was packed before") {
  const Matrix m(DType::Q8_0, 64 * 5, 4096, 5);
  const auto be = open_cpu("", 2);
  be->reserve(64, 4096, 64);
  Released released;
  be->allow_repacking(std::vector{m.tensor}, released.permit());
  const Rows x = random_rows(*be, 1, 4096, 6), y = be->alloc(1, m.tensor.rows);
  int64_t given_back = 0;
  for (int step = 0; step < 5; ++step) {
    be->begin_step(1);
    be->matmul(y, m.tensor, x);
    REQUIRE(released.ranges.size() == static_cast<size_t>(step) + 1);
    const auto [begin, n_bytes] = released.ranges.back();
    CHECK(begin >= m.bytes.data());
    CHECK(begin <= m.bytes.data() + given_back);
    given_back = begin + n_bytes - m.bytes.data();
    CHECK(given_back == be->repacked_bytes());
  }
  CHECK(given_back == m.tensor.size_bytes());
}

TEST_CASE("a second file joins later, with its own permission and its own pages to give back") {
  const Matrix first(DType::Q8_0, 128, 512, 1), second(DType::Q4_K, 128, 512, 2);
  for (const bool may_take : {false, true}) {
    const auto plain = open_cpu("", 2), be = open_cpu("", 2);
    for (Backend* each : {plain.get(), be.get()}) each->reserve(64, 512, 64);
    Released of_first, of_second;
    be->allow_repacking(std::vector{first.tensor}, of_first.permit());
    const Rows x = random_rows(*be, 1, 512, 3), y = be->alloc(1, 128), expected = plain->alloc(1, 128);
    be->begin_step(1);
    be->matmul(y, first.tensor, x);
    be->allow_repacking(std::vector{second.tensor}, of_second.permit(may_take));
    for (int step = 0; step < 4; ++step) {
      be->begin_step(1);
      for (const Matrix* m : {&first, &second}) {
        be->matmul(y, m->tensor, x);
        plain->matmul(expected, m->tensor, x);
        CHECK(same_bits(y, expected));
      }
    }
    const int64_t taken = may_take ? second.tensor.size_bytes() : 0;
    CHECK(be->repacked_bytes() == first.tensor.size_bytes() + taken);
    CHECK(of_first.bytes_of(first) >= first.tensor.size_bytes());
    CHECK(of_first.bytes_of(second) == 0);
    CHECK(of_second.bytes_of(second) >= taken);
    CHECK(of_second.bytes_of(first) == 0);
  }
}

TEST_CASE("nothing is packed without permission, and an embedding is read from either order") {
  const Matrix table(DType::Q6_K, 128, 256, 7);
  const std::vector<int32_t> tokens = {3, 127, 0, 64, 63, 100};
  for (const bool may_take : {false, true}) {
    const auto be = open_cpu("", 2);
    be->place(table.tensor);
    be->reserve(8, 256, 64);
    Released released;
    be->allow_repacking(std::vector{table.tensor}, released.permit(may_take));
    const Rows expected = be->alloc(6, 256), y = be->alloc(6, 256), x = random_rows(*be, 1, 256, 8);
    be->embed(expected, table.tensor, tokens, 2.0f);
    const Rows out = be->alloc(1, 128);
    for (int step = 0; step < 3; ++step) {  // after the first, half of the rows are packed
      be->begin_step(1);
      be->matmul(out, table.tensor, x);
      be->embed(y, table.tensor, tokens, 2.0f);
      CHECK(same_bits(y, expected));
    }
    CHECK(be->repacked_bytes() == (may_take ? table.tensor.size_bytes() : 0));
    CHECK(released.ranges.empty() == !may_take);
  }
}

TEST_CASE("a tensor in panels is multiplied and looked up without anybody's permission") {
  const Matrix m(DType::Q5_K, 72, 512, 9);
  std::vector<uint8_t> bytes(m.bytes.size());
  pack_rows(DType::Q5_K, 72, 512, m.bytes.data(), bytes.data());
  Tensor packed = m.tensor;
  packed.data = bytes.data();
  packed.layout = Layout::R8P64;
  for (const KernelTable* level : testing::usable_levels()) {
    const std::string isa = level->name;
    CAPTURE(isa);
    const auto be = open_cpu(isa, 2);
    be->place(packed);
    be->reserve(30, 512, 64);
    const std::vector<int32_t> tokens = {0, 71, 64, 8};
    const Rows a = be->alloc(4, 512), b = be->alloc(4, 512);
    be->embed(a, m.tensor, tokens, 1.0f);
    be->embed(b, packed, tokens, 1.0f);
    CHECK(same_bits(a, b));
    const Rows x = random_rows(*be, 30, 512, 10), y = be->alloc(30, 72), z = be->alloc(30, 72);
    be->matmul(y, m.tensor, x);
    be->matmul(z, packed, x);
    CHECK(same_bits(y, z));
  }
}

TEST_CASE("parts of a matrix keep their bits: those of whole panels are packed with it, others are not") {
  constexpr int64_t kExperts = 3, kCols = 512, kTokens = 20;
  for (const int64_t half : {int64_t{64}, int64_t{96}}) {  // rows of gate and up of an expert: panels, or not
    const Matrix m(DType::Q8_0, kExperts * 2 * half, kCols, 11);
    for (const KernelTable* level : testing::usable_levels()) {
      const std::string isa = level->name;
      CAPTURE(isa);
      CAPTURE(half);
      const auto plain = open_cpu(isa, 2), packing = open_cpu(isa, 2);
      for (Backend* be : {plain.get(), packing.get()}) be->reserve(kTokens, kCols, 64);
      Released released;
      packing->allow_repacking(std::vector{m.tensor}, released.permit());
      const Rows x = random_rows(*plain, kTokens, kCols, 12), y = plain->alloc(kTokens, half),
                 z = packing->alloc(kTokens, half), all = packing->alloc(kTokens, m.tensor.rows);
      const auto check_parts = [&] {
        for (int64_t part = 0; part < 2 * kExperts; ++part) {
          Tensor w = m.tensor;
          w.data = m.tensor.row(part * half);
          w.rows = half;
          packing->begin_step(1);
          plain->matmul(y, w, x);
          packing->matmul(z, w, x);
          CHECK(same_bits(y, z));
        }
      };
      check_parts();
      CHECK(packing->repacked_bytes() == (half % kPanelRows == 0 ? m.tensor.size_bytes() : 0));
      for (int64_t panel = 0; panel < m.tensor.rows; panel += kPanelRows) {
        packing->begin_step(1);
        packing->matmul(all, m.tensor, x);
      }
      CHECK(packing->repacked_bytes() == m.tensor.size_bytes());
      check_parts();
    }
  }
}

TEST_CASE("what matrices that were begun will take counts where another one asks for memory") {
  const Matrix a(DType::Q8_0, 64 * 4, 256, 13), b(DType::Q8_0, 64 * 4, 256, 14);
  const auto be = open_cpu("", 2);
  be->reserve(1, 256, 64);
  const int64_t free = a.tensor.size_bytes() + b.tensor.size_bytes() - 1;
  Released released;
  Repacking repacking = released.permit();
  repacking.may_take = [&](int64_t n_bytes) { return n_bytes <= free - be->repacked_bytes(); };
  be->allow_repacking(std::vector{a.tensor, b.tensor}, repacking);
  const Rows x = random_rows(*be, 1, 256, 15), y = be->alloc(1, a.tensor.rows);
  for (int step = 0; step < 9; ++step) {
    be->begin_step(1);
    be->matmul(y, step % 2 == 0 ? a.tensor : b.tensor, x);
  }
  CHECK(be->repacked_bytes() == a.tensor.size_bytes());
}
