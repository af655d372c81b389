#include "engine/prompt_lookup.h"

#include <algorithm>
#include <bit>

namespace gemmule {
namespace {

constexpr size_t kMinSlots = 1 << 12, kMaxSlots = 1 << 19;  // the largest takes 2 MB

}  // namespace

int32_t& PromptLookup::slot(const int32_t* end, int64_t length) {
  auto hash = static_cast<uint64_t>(length);
  for (const int32_t* token = end - length; token < end; ++token)
    hash = (hash ^ static_cast<uint32_t>(*token)) * 0x9e3779b97f4a7c15ull;
  return ends_[(hash >> 32) & (ends_.size() - 1)];
}

// A run is known only once something has followed it.
void PromptLookup::take_up(std::span<const int32_t> tokens) {
  const auto last = static_cast<int64_t>(tokens.size()) - 1;
  const size_t wanted = std::clamp(std::bit_ceil(4 * tokens.size()), kMinSlots, kMaxSlots);
  if (ends_.size() < wanted) {  // grows by doubling, so each token is taken up a few times at most
    ends_.assign(std::min(2 * wanted, kMaxSlots), 0);
    n_indexed_ = 0;
  }
  for (int64_t end = std::min(n_indexed_, last) + 1; end <= last; ++end)
    for (const int64_t length : kLengths)
      if (length <= end) slot(tokens.data() + end, length) = static_cast<int32_t>(end);
  n_indexed_ = std::max<int64_t>(0, last);
}

PromptLookup::Match PromptLookup::find(std::span<const int32_t> tokens) {
  take_up(tokens);
  const auto n = static_cast<int64_t>(tokens.size());
  const int32_t* const tail = tokens.data() + n;
  for (size_t level = 0; level < kLevels; ++level) {
    const int64_t length = kLengths[level];
    if (length >= n) continue;
    const int64_t end = slot(tail, length);
    // What a rewind left behind may lie beyond the end, or say something else.
    if (end < length || end >= n) continue;
    if (std::equal(tail - length, tail, tokens.data() + end - length)) return {level, end};
  }
  return {};
}

std::vector<int32_t> PromptLookup::continuation(std::span<const int32_t> tokens, const Match& match,
                                                int64_t n) {
  const auto rest = tokens.subspan(static_cast<size_t>(match.next));
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(rest[static_cast<size_t>(i) % rest.size()]);
  return out;
}

}  // namespace gemmule
