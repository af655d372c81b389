// Finding the largest of 262,144 logits by the largest of every 64: the k-th largest of those bounds the k-th
// largest of all from below, so that few blocks are looked into.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemmule {

struct Candidate {
  float logit;
  int32_t token;
};
// The order of candidates: by logit, the lower token first among equals.
inline constexpr auto better = [](const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
};

// Some of the entries of a row. Bit t % 32 of word t / 32 says that token t takes part (`allowed`; empty: all
// do) or does not, whatever `allowed` says (`without`; empty: none). A span of bits has (n + 31) / 32 words.
struct LogitRow {
  std::span<const float> logits;
  std::span<const uint32_t> allowed;
  std::span<const uint32_t> without;

  uint32_t word(size_t w) const {  // of the tokens that take part
    return (allowed.empty() ? ~0u : allowed[w]) & ~(without.empty() ? 0u : without[w]);
  }
};

bool is_finite(std::span<const float> x);

// The largest entry above -inf, the first of equals; {-inf, -1} where there is none. Sets `finite` to whether
// all entries of the row are, those that take no part included.
Candidate largest(const LogitRow& row, bool& finite);

// Candidates that hold the k >= 1 largest entries above -inf (all of them where there are fewer) and perhaps
// more, in no order. Sets `finite` as above.
void collect_top(const LogitRow& row, size_t k, std::vector<Candidate>& out, bool& finite);

// All entries above -inf, in the order of tokens.
void collect_all(const LogitRow& row, std::vector<Candidate>& out, bool& finite);

// Cuts to the k best, best first.
void keep_best(std::vector<Candidate>& candidates, size_t k);

}  // namespace gemmule
