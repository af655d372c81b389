// A string array of a GGUF file that can be searched without copying it: by position, by text, and for all
// items that occur inside a given text. 262144 strings are indexed in some milliseconds.
//
// Table: a power of two of at least 2n slots of 32 bits: position + 1 in the low bits, bits of the hash above
// them, 0 when empty; collisions go to the next slot. The hash is keyed per process, so that no file can be
// made to collide.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace gemmule {

class StringIndex {
 public:
  // `owner` keeps the bytes of the items alive. At most 2^24 items, as a GGUF getter copies out.
  StringIndex(std::vector<std::string_view> items, std::shared_ptr<const void> owner);

  size_t size() const { return items_.size(); }
  std::string_view operator[](size_t i) const { return items_[i]; }

  // The position of an item; the last one where it occurs more than once.
  std::optional<uint32_t> find(std::string_view text) const;

  // Positions, ascending, of all items that are a part of `text` which begins and ends between two UTF-8
  // characters. Empty items are left out, of equal ones the last is given.
  std::vector<uint32_t> find_inside(std::string_view text) const;

  // The first item that is not UTF-8, and the first that occurs again later on.
  std::optional<uint32_t> first_not_utf8() const;
  std::optional<uint32_t> first_repeated() const { return first_repeated_; }

 private:
  uint64_t slot_of(uint64_t hash) const { return hash & (slots_.size() - 1); }
  uint32_t tag_of(uint64_t hash) const { return static_cast<uint32_t>(hash >> 32) & ~position_mask_; }
  void insert(uint32_t i, uint64_t hash);
  std::optional<uint32_t> probe(uint64_t hash, std::string_view text) const;

  std::vector<std::string_view> items_;
  std::shared_ptr<const void> owner_;
  std::vector<uint32_t> slots_;
  uint32_t position_mask_ = 0;
  std::optional<uint32_t> first_repeated_;
  size_t longest_ = 0;  // bytes of the longest item
  // Hashes of how very long items begin, ascending: in other places the search for them ends there.
  std::vector<uint64_t> heads_;
};

}  // namespace gemmule
