#include "engine/prompt_lookup.h"

#include <doctest/doctest.h>

#include <random>

using namespace gemmule;

namespace {

std::vector<int32_t> random_tokens(size_t n, uint32_t seed, uint32_t n_vocab) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % n_vocab);
  return tokens;
}

// The definition, in the plainest form.
PromptLookup::Match search(std::span<const int32_t> tokens) {
  const auto n = static_cast<int64_t>(tokens.size());
  for (size_t level = 0; level < PromptLookup::kLevels; ++level)
    for (int64_t length = PromptLookup::kLengths[level], end = n - 1; end >= length; --end)
      if (std::equal(tokens.end() - length, tokens.end(), tokens.begin() + end - length)) return {level, end};
  return {};
}

}  // namespace

TEST_CASE("the longest and latest earlier place is found, as a plain search finds it") {
  const auto tokens = random_tokens(3000, 1, 6);
  PromptLookup lookup;
  int64_t n_found = 0;
  for (size_t n = 1; n <= tokens.size(); n += 1 + n % 3) {
    const auto so_far = std::span(tokens).first(n);
    const auto found = lookup.find(so_far), expected = search(so_far);
    // A run that shares its slot with a later one is forgotten: rare, and only a draft less.
    if (found.next == expected.next && found.level == expected.level) ++n_found;
    if (found.next == 0) continue;
    const int64_t length = PromptLookup::kLengths[found.level];
    CHECK(std::equal(so_far.end() - length, so_far.end(), so_far.begin() + found.next - length));
  }
  CHECK(n_found > 1400);
}

TEST_CASE("what a rewind took back is never given as a match beyond the end") {
  auto tokens = random_tokens(500, 2, 4);
  PromptLookup lookup;
  lookup.find(tokens);
  for (const size_t keep : {400, 20, 3, 1}) {
    tokens.resize(keep);
    for (const int32_t token : random_tokens(30, static_cast<uint32_t>(keep), 4)) {
      tokens.push_back(token);
      const auto found = lookup.find(tokens);
      CHECK(found.next < static_cast<int64_t>(tokens.size()));
      if (found.next == 0) continue;
      const int64_t length = PromptLookup::kLengths[found.level];
      CHECK(std::equal(tokens.end() - length, tokens.end(), tokens.begin() + found.next - length));
    }
  }
}

TEST_CASE("a continuation goes on as a repetition") {
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 1, 2, 3};
  PromptLookup lookup;
  const auto match = lookup.find(tokens);
  CHECK(match.level == 2);
  CHECK(match.next == 3);
  CHECK(PromptLookup::continuation(tokens, match, 7) == std::vector<int32_t>{4, 5, 1, 2, 3, 4, 5});
  const std::vector<int32_t> same(20, 7);
  CHECK(PromptLookup::continuation(same, PromptLookup().find(same), 3) == std::vector<int32_t>{7, 7, 7});
}

TEST_CASE("a long timeline is taken up in time and memory that do not grow with each token") {
  const auto tokens = random_tokens(200000, 3, 262144);
  PromptLookup lookup;
  CHECK(lookup.find(tokens).next == 0);
  std::vector<int32_t> more(tokens);
  more.insert(more.end(), tokens.end() - 100, tokens.end() - 50);
  CHECK(lookup.find(more).next == 200000 - 50);
}
