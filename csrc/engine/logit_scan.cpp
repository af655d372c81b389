// The vector types are those of GCC and Clang: loops over arrays of lanes stay in memory at -O2.
#include "engine/logit_scan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>

namespace gemmule {
namespace {

constexpr size_t kBlock = 64;  // entries: two words of bits
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

using F4 = float __attribute__((vector_size(16)));
using I4 = int32_t __attribute__((vector_size(16)));

inline bool any(I4 v) {
  uint64_t half[2];
  std::memcpy(half, &v, sizeof half);
  return (half[0] | half[1]) != 0;
}

inline F4 load(const float* x) {
  F4 v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

inline F4 max(F4 a, F4 b) { return a > b ? a : b; }

inline I4 bits(F4 v) { return std::bit_cast<I4>(v); }

// Remembers whether all numbers seen were finite: x - x is zero for those and not a number for the others.
class FiniteCheck {
 public:
  void see(F4 a, F4 b) {
    bad_[0] |= bits(a - a);
    bad_[1] |= bits(b - b);
  }
  void see(float x) { bad_scalar_ |= std::bit_cast<int32_t>(x - x); }
  bool ok() const { return !any(bad_[0] | bad_[1]) && bad_scalar_ == 0; }

 private:
  I4 bad_[2] = {};
  int32_t bad_scalar_ = 0;
};

// The largest of the kBlock numbers at x.
inline float block_max(const float* x, FiniteCheck& check) {
  const F4 lowest = {kMinusInf, kMinusInf, kMinusInf, kMinusInf};
  F4 max_a = lowest, max_b = lowest;
  for (size_t i = 0; i < kBlock; i += 8) {
    const F4 a = load(x + i), b = load(x + i + 4);
    max_a = max(max_a, a);
    max_b = max(max_b, b);
    check.see(a, b);
  }
  const F4 m = max(max_a, max_b);
  return std::max(std::max(m[0], m[1]), std::max(m[2], m[3]));
}

// visit(token, logit) for the entries in [begin, end) that take part.
template <class Visit>
void each_entry(const LogitRow& row, size_t begin, size_t end, Visit&& visit) {
  for (; begin < end; begin += 32) {
    const size_t n = std::min<size_t>(32, end - begin);
    for (uint32_t word = row.word(begin / 32); word != 0; word &= word - 1) {
      const auto bit = static_cast<size_t>(std::countr_zero(word));
      if (bit >= n) break;
      visit(static_cast<int32_t>(begin + bit), row.logits[begin + bit]);
    }
  }
}

// visit(begin, end, largest) for every block; the largest of those that take part, -inf where none does.
template <class Visit>
bool each_block(const LogitRow& row, Visit&& visit) {
  const size_t n = row.logits.size();
  const bool all = row.allowed.empty() && row.without.empty();
  FiniteCheck check;
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t end = std::min(begin + kBlock, n);
    float largest = kMinusInf;
    const bool is_full = end - begin == kBlock;
    if (is_full)
      largest = block_max(row.logits.data() + begin, check);
    else
      for (size_t i = begin; i < end; ++i) check.see(row.logits[i]);
    if (!is_full || (!all && (row.word(begin / 32) & row.word(begin / 32 + 1)) != ~0u)) {
      largest = kMinusInf;
      each_entry(row, begin, end, [&](int32_t, float logit) { largest = logit > largest ? logit : largest; });
    }
    visit(begin, end, largest);
  }
  return check.ok();
}

}  // namespace

bool is_finite(std::span<const float> x) {
  FiniteCheck check;
  size_t i = 0;
  for (; i + 8 <= x.size(); i += 8) check.see(load(x.data() + i), load(x.data() + i + 4));
  for (; i < x.size(); ++i) check.see(x[i]);
  return check.ok();
}

Candidate largest(const LogitRow& row, bool& finite) {
  Candidate best{kMinusInf, -1};
  size_t best_begin = 0, best_end = 0;
  finite = each_block(row, [&](size_t begin, size_t end, float max) {
    if (!(max > best.logit)) return;
    best.logit = max;
    best_begin = begin;
    best_end = end;
  });
  each_entry(row, best_begin, best_end, [&](int32_t token, float logit) {
    if (best.token < 0 && logit == best.logit) best.token = token;
  });
  return best;
}

void collect_top(const LogitRow& row, size_t k, std::vector<Candidate>& out, bool& finite) {
  std::vector<float> maxima;
  maxima.reserve(row.logits.size() / kBlock + 1);
  finite = each_block(row, [&](size_t, size_t, float max) { maxima.push_back(max); });
  float threshold = kMinusInf;
  if (k <= maxima.size()) {
    std::vector<float> sorted = maxima;
    const auto kth = sorted.begin() + static_cast<ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>());
    threshold = *kth;
  }
  out.clear();
  for (size_t block = 0; block < maxima.size(); ++block) {
    if (maxima[block] < threshold || maxima[block] == kMinusInf) continue;
    const size_t begin = block * kBlock, end = std::min(begin + kBlock, row.logits.size());
    each_entry(row, begin, end, [&](int32_t token, float logit) {
      if (logit >= threshold && logit > kMinusInf) out.push_back({logit, token});
    });
  }
}

void collect_all(const LogitRow& row, std::vector<Candidate>& out, bool& finite) {
  out.clear();
  finite = is_finite(row.logits);
  each_entry(row, 0, row.logits.size(), [&](int32_t token, float logit) {
    if (logit > kMinusInf) out.push_back({logit, token});
  });
}

void keep_best(std::vector<Candidate>& candidates, size_t k) {
  if (k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(k), candidates.end(),
                     better);
    candidates.resize(k);
  }
  std::sort(candidates.begin(), candidates.end(), better);
}

}  // namespace gemmule
