// Attention: against double precision, and equal bits whatever the level, the company of other rows, the
// split of heads or of chunks, the ring size, the content of unused slots, and the number of tokens in a
// call; for every number format of the cache, with whole keys and with keys that are part of the values.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/levels.h"
#include "core/half.h"
#include "quant/blocks.h"

namespace gemmule {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint8_t kNanByte = 0xff;  // of every format

struct Range {
  int64_t lo, hi;
};

using Bytes = std::vector<uint8_t>;

// How a cache holds numbers.
struct Form {
  KvKind kind;
  bool is_shared;  // keys hold a fourth of their numbers, the others are those of the values
};
constexpr Form kForms[] = {{KvKind::F16, false}, {KvKind::F32, false}, {KvKind::Q8_0, false},
                           {KvKind::F16, true},  {KvKind::F32, true},  {KvKind::Q8_0, true}};
constexpr Form kF16 = kForms[0], kF32 = kForms[1];

// n numbers in the format of the cache, and back: `x` becomes what is stored.
Bytes encode(KvKind kind, float* x, int64_t n) {
  Bytes bytes;
  const auto put = [&](const auto& value) {
    const auto* at = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), at, at + sizeof(value));
  };
  for (int64_t i = 0; i < n; ++i) {
    if (kind == KvKind::F32) put(x[i]);
    if (kind == KvKind::F16) {
      const uint16_t bits = f32_to_f16(x[i]);
      put(bits);
      x[i] = f16_to_f32(bits);
    }
    if (kind != KvKind::Q8_0 || i % 32 != 0) continue;
    const int64_t end = std::min(n, i + 32);
    float top = 0;
    for (int64_t j = i; j < end; ++j) top = std::max(top, std::fabs(x[j]));
    BlockQ8_0 block{f32_to_f16(top / 127), {}};
    for (int64_t j = i; j < end; ++j) {
      block.q[j - i] = static_cast<int8_t>(std::nearbyint(x[j] * (127 / top)));
      x[j] = f16_to_f32(block.d) * block.q[j - i];
    }
    put(block);
  }
  return bytes;
}

// One sequence: queries of all tokens and the exact keys and values of all positions.
struct Problem {
  int64_t dim = 0, heads = 0, positions = 0, n_turned = 0;
  KvKind kind = KvKind::F16;
  std::vector<Range> see;   // [tokens]
  std::vector<float> q;     // f32 [tokens][heads][dim]
  std::vector<float> k, v;  // f32 [positions][dim], as the cache has them
  Bytes k_rows, v_rows;     // [positions][row], as the cache holds them
  int64_t k_row = 0, v_row = 0;
};

Problem make_problem(int64_t dim, int64_t heads, Form form, std::vector<Range> see, uint32_t seed = 1) {
  Problem p;
  p.dim = dim;
  p.heads = heads;
  p.kind = form.kind;
  p.n_turned = form.is_shared && dim % 64 == 0 ? dim / 8 : 0;
  p.see = std::move(see);
  for (const Range& r : p.see) p.positions = std::max(p.positions, r.hi);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  p.q.resize(p.see.size() * static_cast<size_t>(heads * dim));
  p.k.resize(static_cast<size_t>(p.positions * dim));
  p.v.resize(p.k.size());
  // scores with a spread of about 2, so that many positions count
  for (float& x : p.q) x = 2.0f * normal(rng) / std::sqrt(static_cast<float>(dim));
  for (float& x : p.k) x = normal(rng);
  for (float& x : p.v) x = normal(rng);
  for (int64_t i = 0; i < p.positions; ++i) {
    float *key = p.k.data() + i * dim, *value = p.v.data() + i * dim;
    const Bytes v_row = encode(p.kind, value, dim);
    std::vector<float> kept(key, key + dim);
    if (p.n_turned > 0) {
      kept.resize(static_cast<size_t>(p.n_turned));
      kept.insert(kept.end(), key + dim / 2, key + dim / 2 + p.n_turned);
    }
    const Bytes k_row = encode(p.kind, kept.data(), static_cast<int64_t>(kept.size()));
    std::copy_n(p.n_turned > 0 ? value : kept.data(), dim, key);
    if (p.n_turned > 0) {
      std::copy_n(kept.data(), p.n_turned, key);
      std::copy_n(kept.data() + p.n_turned, p.n_turned, key + dim / 2);
    }
    p.k_rows.insert(p.k_rows.end(), k_row.begin(), k_row.end());
    p.v_rows.insert(p.v_rows.end(), v_row.begin(), v_row.end());
    p.k_row = static_cast<int64_t>(k_row.size());
    p.v_row = static_cast<int64_t>(v_row.size());
  }
  return p;
}

// A window of `window` positions that ends with the token itself, for n tokens from position `first` on.
std::vector<Range> causal(int64_t first, int64_t n, int64_t window = 1 << 30) {
  std::vector<Range> see;
  for (int64_t p = first; p < first + n; ++p) see.push_back({std::max<int64_t>(0, p + 1 - window), p + 1});
  return see;
}

// A ring that holds the positions [lo, hi) of a problem; all else is NaN.
struct Ring {
  Bytes k, v;

  Ring(const Problem& p, int64_t ring, int64_t lo, int64_t hi)
      : k(static_cast<size_t>(ring * p.k_row), kNanByte), v(static_cast<size_t>(ring * p.v_row), kNanByte) {
    REQUIRE(hi - lo <= ring);
    for (int64_t i = lo; i < hi; ++i) {
      std::copy_n(p.k_rows.begin() + i * p.k_row, p.k_row, k.begin() + i % ring * p.k_row);
      std::copy_n(p.v_rows.begin() + i * p.v_row, p.v_row, v.begin() + i % ring * p.v_row);
    }
  }
};

// Memory for n bytes that begins at a cache line, full of NaN, with a guard behind it.
class Guarded {
 public:
  explicit Guarded(size_t n) : memory_(n + 128, kNanByte), n_(n) {}
  uint8_t* data() { return memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64; }
  bool is_intact() {
    return std::all_of<const uint8_t*>(data() + n_, memory_.data() + memory_.size(),
                                       [](uint8_t guard) { return guard == kNanByte; });
  }

 private:
  Bytes memory_;
  size_t n_;
};

// Runs the tokens [t0, t1) and the heads [h0, h1) with a ring that holds only what they see: one row at once,
// several by parts of two chunks. With per_round > 0, chunk by chunk, so many of them before they are
// combined.
void run_part(const KernelTable& table, const Problem& p, int64_t ring, size_t t0, size_t t1, int64_t h0,
              int64_t h1, std::vector<float>& out, int64_t per_round = 0) {
  std::vector<int64_t> los, his;
  for (size_t t = t0; t < t1; ++t) {
    los.push_back(p.see[t].lo);
    his.push_back(p.see[t].hi);
  }
  const int64_t lo = *std::min_element(los.begin(), los.end()),
                hi = *std::max_element(his.begin(), his.end());
  const Ring slots(p, ring, lo, hi);
  const int64_t n_rows = static_cast<int64_t>(t1 - t0) * (h1 - h0);
  Guarded scratch(table.attend_scratch_bytes(p.dim, n_rows));
  AttendArgs a{};
  a.q = p.q.data() + static_cast<int64_t>(t0) * p.heads * p.dim;
  a.q_stride = a.out_stride = p.heads * p.dim;
  a.out = out.data() + static_cast<int64_t>(t0) * p.heads * p.dim;
  a.n_tokens = static_cast<int32_t>(t1 - t0);
  a.head_begin = static_cast<int32_t>(h0);
  a.head_end = static_cast<int32_t>(h1);
  a.head_dim = static_cast<int32_t>(p.dim);
  a.n_turned = static_cast<int32_t>(p.n_turned);
  a.kind = p.kind;
  a.k = slots.k.data();
  a.v = slots.v.data();
  a.k_row = p.k_row;
  a.v_row = p.v_row;
  a.ring = ring;
  a.lo = los.data();
  a.hi = his.data();
  a.scratch = scratch.data();
  const int64_t part = table.attend_part_floats(p.dim), end = (hi + 255) / 256;
  std::vector<float> sums(static_cast<size_t>(2 * n_rows));
  a.sums = sums.data();
  const int64_t step = n_rows == 1 ? end * 256 : 512;
  for (a.begin = 0; per_round == 0 && a.begin < hi; a.begin = a.end) {
    a.end = a.begin + step;
    table.attend(a);
  }
  for (int64_t first = lo / 256, n; per_round > 0 && first < end; first += n) {
    n = std::min(per_round, end - first);
    Guarded parts(static_cast<size_t>(n * n_rows * part) * sizeof(float));
    auto* at = reinterpret_cast<float*>(parts.data());
    for (int64_t c = 0; c < n; ++c) table.attend_chunk(a, (first + c) * 256, at + c * n_rows * part);
    for (int64_t row = 0; row < n_rows; ++row) {
      float* to = a.out + row / (h1 - h0) * a.out_stride + (h0 + row % (h1 - h0)) * p.dim;
      table.attend_join(to, sums.data() + 2 * row, at + row * part, n_rows * part, n, p.dim,
                        first + n == end);
    }
    REQUIRE(parts.is_intact());
  }
  REQUIRE(scratch.is_intact());
}

int64_t full_ring(const Problem& p) { return (p.positions + 255) / 256 * 256; }

// All tokens and heads in calls of at most `tokens` tokens and `heads` heads.
std::vector<float> run(const KernelTable& table, const Problem& p, int64_t ring, size_t tokens = 1 << 20,
                       int64_t heads = 1 << 20, int64_t per_round = 0) {
  std::vector<float> out(p.q.size(), kNan);
  for (size_t t = 0; t < p.see.size(); t += tokens) {
    for (int64_t h = 0; h < p.heads; h += heads) {
      run_part(table, p, ring, t, std::min(p.see.size(), t + tokens), h, std::min(p.heads, h + heads), out,
               per_round);
    }
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

// Largest difference from double precision, relative to the largest sum of |p v| / l of the row: the size of
// what is added, as the sum itself may cancel.
// Relative to the largest result instead, one set of data whose terms cancel reached 2.17e-6.
double worst_error(const Problem& p, const std::vector<float>& out) {
  double worst = 0;
  std::vector<double> weight, sums(static_cast<size_t>(p.dim)), sizes(sums.size());
  for (size_t t = 0; t < p.see.size(); ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const size_t at =
          (t * static_cast<size_t>(p.heads) + static_cast<size_t>(h)) * static_cast<size_t>(p.dim);
      double top = -1e300, sum = 0;
      weight.clear();
      for (int64_t i = p.see[t].lo; i < p.see[t].hi; ++i) {
        const float *q = p.q.data() + at, *k = p.k.data() + i * p.dim;
        double lanes[8] = {};  // one chain of additions would wait for each
        for (int64_t d = 0; d < p.dim; ++d) lanes[d % 8] += static_cast<double>(q[d]) * k[d];
        weight.push_back(std::accumulate(lanes, lanes + 8, 0.0));
        top = std::max(top, weight.back());
      }
      std::fill(sums.begin(), sums.end(), 0.0);
      std::fill(sizes.begin(), sizes.end(), 0.0);
      const float* v = p.v.data() + p.see[t].lo * p.dim;
      for (double& w : weight) {
        sum += w = std::exp(w - top);
        for (size_t d = 0; d < sums.size(); ++d) {
          const double term = w * v[d];
          sums[d] += term;
          sizes[d] += std::fabs(term);
        }
        v += p.dim;
      }
      const double scale = *std::max_element(sizes.begin(), sizes.end()) / sum;
      for (size_t d = 0; d < sums.size(); ++d)
        worst = std::max(worst, std::fabs(out[at + d] - sums[d] / sum) / scale);
    }
  }
  return worst;
}

TEST_CASE("a position whose score is 64 below another one of its chunk has no weight at all") {
  Problem p = make_problem(64, 2, kF16, causal(600, 40), 3);
  for (float& x : p.q) x *= 20.0f;  // scores 40 apart
  for (const KernelTable* table : testing::usable_levels()) {
    const std::vector<float> out = run(*table, p, full_ring(p));
    CHECK(worst_error(p, out) <= 1e-5);  // scores of this size are exact to 1e-5
    CHECK(same_bits(out, run(testing::scalar_level(), p, full_ring(p))));
    size_t far = 0;
    for (size_t t = 0; t < p.see.size(); t += 13) {
      Problem other = p;
      other.see = {p.see[t]};
      other.heads = 1;
      other.q.assign(p.q.begin() + static_cast<int64_t>(t) * 2 * p.dim,
                     p.q.begin() + (static_cast<int64_t>(t) * 2 + 1) * p.dim);
      const std::vector<float> before = run(*table, other, full_ring(other));
      std::vector<double> scores;
      for (int64_t i = 0; i < p.positions; ++i) {
        scores.push_back(0);
        for (int64_t d = 0; d < p.dim; ++d)
          scores.back() += static_cast<double>(other.q[static_cast<size_t>(d)]) *
                           other.k[static_cast<size_t>(i * p.dim + d)];
      }
      for (int64_t i = 0; i < other.see[0].hi; ++i) {
        const int64_t chunk = i / 256 * 256, end = std::min(chunk + 256, other.see[0].hi);
        if (scores[static_cast<size_t>(i)] >
            *std::max_element(scores.begin() + chunk, scores.begin() + end) - 64.01)
          continue;
        ++far;
        std::vector<float> huge(static_cast<size_t>(p.dim), 60000.0f);
        std::ranges::copy(encode(p.kind, huge.data(), p.dim), other.v_rows.begin() + i * p.v_row);
      }
      CHECK(same_bits(before, run(*table, other, full_ring(other))));
    }
    CHECK(far > 100);
  }
}

TEST_CASE("attention is close to double precision") {
  const KernelTable& table = *testing::usable_levels().front();  // all of them have the same bits, see below
  double worst = 0;
  for (const Form form : kForms) {
    for (const int64_t dim : {64, 256, 512}) {
      for (const auto& see : {causal(0, 20), causal(700, 1), causal(500, 10), causal(1000, 3, 512)}) {
        const Problem p = make_problem(dim, 4, form, see);
        const double error = worst_error(p, run(table, p, full_ring(p)));
        worst = std::max(worst, error);
        CHECK(error <= 2e-6);
      }
    }
  }
  MESSAGE("attention: largest relative error ", worst);
}

// The contract, one row at a time and nothing shared.
std::vector<float> contract(const Problem& p, const KernelTable& scalar) {
  return run(scalar, p, full_ring(p), 1, 1);
}

TEST_CASE("attention has the same bits in every level and every grouping") {
  const KernelTable& scalar = select_kernels(detect_cpu_features(), "scalar");
  struct Case {
    int64_t dim, heads;
    std::vector<Range> see;
    int64_t ring;  // a small ring that still holds what any call needs
  };
  std::vector<Case> cases;
  cases.push_back({256, 4, causal(0, 17), 256});
  cases.push_back({256, 4, causal(250, 16), 512});       // crosses a chunk border
  cases.push_back({256, 1, causal(200, 64, 100), 256});  // a window, 64 rows of one head
  cases.push_back({512, 3, causal(900, 9, 512), 768});   // rows that start and end in different chunks
  cases.push_back({64, 2, causal(510, 6), 768});
  cases.push_back({72, 5, causal(60, 7), 256});  // half a panel of 16 dims
  cases.push_back({8, 2, causal(0, 40, 7), 256});
  cases.push_back({128, 1, causal(1023, 2, 256), 512});
  // a span of an image: every token sees the whole of it; and rows with nothing in common
  cases.push_back({64, 2, {{10, 80}, {10, 80}, {10, 80}, {10, 81}, {10, 82}}, 256});
  cases.push_back({64, 1, {{0, 3}, {250, 260}, {700, 701}, {3, 9}, {511, 513}, {600, 700}, {0, 701}}, 768});
  for (const Case& c : cases) {
    for (const Form form : kForms) {
      CAPTURE(c.dim);
      CAPTURE(static_cast<int>(form.kind));
      CAPTURE(form.is_shared);
      const Problem p = make_problem(c.dim, c.heads, form, c.see);
      const std::vector<float> expected = contract(p, scalar);
      CHECK(worst_error(p, expected) <= 2e-6);
      for (const KernelTable* table : testing::usable_levels()) {
        CAPTURE(table->name);
        CHECK(same_bits(run(*table, p, full_ring(p)), expected));
        for (const int64_t per_round : {1, 2, 64})
          CHECK(same_bits(run(*table, p, full_ring(p), 1 << 20, 1 << 20, per_round), expected));
        for (const size_t tokens : {1, 3, 5, 16}) {
          if (table == &scalar && tokens != 3) continue;  // slow, and what is expected comes from it
          for (int64_t heads = 1; heads <= c.heads; ++heads) {
            CAPTURE(tokens);
            CAPTURE(heads);
            CHECK(same_bits(run(*table, p, full_ring(p), tokens, heads), expected));
          }
        }
      }
    }
  }
}

TEST_CASE("attention does not depend on the ring, and never reads a slot outside the visible range") {
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    for (const Form form : kForms) {
      // window 400, up to 16 tokens: 415 positions at once
      const Problem p = make_problem(64, 2, form, causal(1300, 40, 400));
      const std::vector<float> expected = run(*table, p, full_ring(p), 1);
      for (const int64_t ring : {512, 768, 1024, 2048}) {
        for (const size_t tokens : {1, 2, 16}) {
          CAPTURE(ring);
          CAPTURE(tokens);
          CHECK(same_bits(run(*table, p, ring, tokens), expected));
        }
      }
    }
  }
}

TEST_CASE("attention of 64 tokens at once is that of one token at a time") {
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    for (const Form form : kForms) {
      const Problem p = make_problem(256, 2, form, causal(230, 64, 200));
      CHECK(same_bits(run(*table, p, 512), run(*table, p, 512, 1, 1)));
    }
  }
}

TEST_CASE("attention with extreme scores keeps to finite numbers") {
  for (const KernelTable* table : testing::usable_levels()) {
    Problem p = make_problem(64, 2, kF32, causal(300, 4));
    for (float& x : p.q) x *= 1e3f;  // one position takes all; most exponentials underflow
    const std::vector<float> out = run(*table, p, 512);
    for (const float x : out) CHECK(std::isfinite(x));
    CHECK(same_bits(out, run(*table, p, 512, 1, 1)));
    CHECK(same_bits(out, contract(p, select_kernels(detect_cpu_features(), "scalar"))));

    Problem one = make_problem(64, 1, kF16, {{5, 6}, {6, 7}});  // a single position: its value, exactly
    const std::vector<float> single = run(*table, one, 256);
    CHECK(std::memcmp(single.data(), one.v.data() + 5 * 64, 2 * 64 * 4) == 0);
  }
}

TEST_CASE("attention over eighty chunks is close to double precision, chunk by chunk and at once") {
  const KernelTable& table = *testing::usable_levels().front();
  for (const Form form : kForms) {
    const Problem p = make_problem(64, 2, form, causal(80 * 256 - 37, 2));
    const std::vector<float> out = run(table, p, full_ring(p));
    CHECK(worst_error(p, out) <= 2e-6);
    for (const int64_t per_round : {1, 7, 64})
      CHECK(same_bits(run(table, p, full_ring(p), 1 << 20, 1 << 20, per_round), out));
    CHECK(same_bits(run(testing::scalar_level(), p, full_ring(p), 1, 1), out));
  }
}

}  // namespace
}  // namespace gemmule
