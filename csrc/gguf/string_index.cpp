// The hash runs over the bytes one by one, h <- mix((h ^ byte) * key), so that the hashes of all parts of a
// text that begin at one place come from a single pass.
#include "gguf/string_index.h"

#include <algorithm>
#include <bit>
#include <random>
#include <stdexcept>
#include <utility>

#include "core/utf8.h"

namespace gemmule {
namespace {

constexpr size_t kMaxItems = size_t{1} << 24;
constexpr uint32_t kBatch = 64;
// Bytes that are compared before the rest of a longer item: one long item must not slow every search.
constexpr size_t kHead = 256;

uint64_t make_key() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device() | 1;  // odd: multiplying loses no bit
}

// One key for the process; what is found does not depend on it.
uint64_t hash_key() {
  static const uint64_t key = make_key();
  return key;
}

inline uint64_t add_byte(uint64_t hash, char byte, uint64_t key) {
  hash = (hash ^ static_cast<uint8_t>(byte)) * key;
  return hash ^ (hash >> 32);
}

uint64_t hash_of(std::string_view text, uint64_t key) {
  uint64_t hash = key;
  for (const char c : text) hash = add_byte(hash, c, key);
  return hash;
}

bool is_ascii(std::string_view text) {
  uint8_t seen = 0;  // no branch in the loop, which most tokens pass
  for (const char c : text) seen |= static_cast<uint8_t>(c);
  return seen < 0x80;
}

bool begins_character(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) != 0x80; }

}  // namespace

StringIndex::StringIndex(std::vector<std::string_view> items, std::shared_ptr<const void> owner)
    : items_(std::move(items)), owner_(std::move(owner)) {
  if (items_.size() > kMaxItems) throw std::invalid_argument("an index takes at most 2^24 strings");
  slots_.assign(std::bit_ceil(2 * items_.size() + 2), 0);
  position_mask_ = std::bit_ceil(static_cast<uint32_t>(items_.size()) + 1) - 1;  // holds 1..n
  const uint64_t key = hash_key();
  const uint32_t n = static_cast<uint32_t>(items_.size());
  // A slot is most likely not in the cache; a batch of them is fetched while the next hashes are computed.
  uint64_t hashes[kBatch];
  for (uint32_t first = 0; first < n; first += kBatch) {
    const uint32_t end = std::min(n, first + kBatch);
    for (uint32_t i = first; i < end; ++i) {
      hashes[i - first] = hash_of(items_[i], key);
      __builtin_prefetch(&slots_[slot_of(hashes[i - first])], 1);
      longest_ = std::max(longest_, items_[i].size());
      if (items_[i].size() > kHead) heads_.push_back(hash_of(items_[i].substr(0, kHead), key));
    }
    for (uint32_t i = first; i < end; ++i) insert(i, hashes[i - first]);
  }
  std::sort(heads_.begin(), heads_.end());
}

void StringIndex::insert(uint32_t i, uint64_t hash) {
  uint64_t slot = slot_of(hash);
  for (; slots_[slot] != 0; slot = slot_of(slot + 1)) {
    const uint32_t other = (slots_[slot] & position_mask_) - 1;
    if ((slots_[slot] & ~position_mask_) != tag_of(hash) || items_[other] != items_[i]) continue;
    first_repeated_ = std::min(first_repeated_.value_or(other), other);
    break;
  }
  slots_[slot] = tag_of(hash) | (i + 1);
}

std::optional<uint32_t> StringIndex::probe(uint64_t hash, std::string_view text) const {
  for (uint64_t slot = slot_of(hash); slots_[slot] != 0; slot = slot_of(slot + 1)) {
    const uint32_t i = (slots_[slot] & position_mask_) - 1;
    if ((slots_[slot] & ~position_mask_) == tag_of(hash) && items_[i] == text) return i;
  }
  return std::nullopt;
}

std::optional<uint32_t> StringIndex::find(std::string_view text) const {
  return probe(hash_of(text, hash_key()), text);
}

std::vector<uint32_t> StringIndex::find_inside(std::string_view text) const {
  const uint64_t key = hash_key();
  std::vector<uint32_t> found;
  for (size_t start = 0; start < text.size(); ++start) {
    if (!begins_character(text[start])) continue;
    const size_t end = start + std::min(longest_, text.size() - start);
    uint64_t hash = key;
    for (size_t i = start; i < end; ++i) {
      hash = add_byte(hash, text[i], key);
      const bool is_cut = i + 1 == text.size() || begins_character(text[i + 1]);
      if (is_cut)
        if (const auto at = probe(hash, text.substr(start, i + 1 - start))) found.push_back(*at);
      if (i + 1 - start == kHead && !std::binary_search(heads_.begin(), heads_.end(), hash)) break;
    }
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::optional<uint32_t> StringIndex::first_not_utf8() const {
  for (uint32_t i = 0; i < items_.size(); ++i)
    if (!is_ascii(items_[i]) && !is_utf8(items_[i])) return i;
  return std::nullopt;
}

}  // namespace gemmule
