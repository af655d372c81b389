// StringIndex: against plain loops over random strings, and in the cases that a vocabulary may hold.
#include "gguf/string_index.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>

namespace gemmule {
namespace {

using Strings = std::vector<std::string>;

StringIndex make_index(const Strings& items) {
  const auto owned = std::make_shared<const Strings>(items);
  return StringIndex(std::vector<std::string_view>(owned->begin(), owned->end()), owned);
}

std::string random_text(std::mt19937& rng, size_t n_chars) {
  static const Strings kChars = {"a", "b", " ", "\xc3\xa9", "\xe2\x96\x81", "\xf0\x9f\x99\x82"};
  std::string text;
  for (size_t i = 0; i < n_chars; ++i) text += kChars[rng() % kChars.size()];
  return text;
}

TEST_CASE("an index finds what a plain loop finds") {
  std::mt19937 rng(1);
  Strings items;
  for (int i = 0; i < 3000; ++i) items.push_back(random_text(rng, rng() % 7));
  const StringIndex index = make_index(items);
  CHECK(index.size() == items.size());
  for (int round = 0; round < 200; ++round) {
    const std::string text = random_text(rng, rng() % 30);
    const auto at = std::find(items.rbegin(), items.rend(), text);
    const auto found = index.find(text);
    REQUIRE(found.has_value() == (at != items.rend()));
    if (found) CHECK(*found == static_cast<uint32_t>(items.rend() - at) - 1);
    std::vector<uint32_t> inside;
    for (uint32_t i = 0; i < items.size(); ++i) {
      const bool is_last = std::find(items.begin() + i + 1, items.end(), items[i]) == items.end();
      if (is_last && !items[i].empty() && text.find(items[i]) != std::string::npos) inside.push_back(i);
    }
    CHECK(index.find_inside(text) == inside);
  }
}

TEST_CASE("parts of a text begin and end between characters") {
  const StringIndex index = make_index({"\xa9", "\xc3", "\xc3\xa9", "x"});
  CHECK(index.find_inside("x\xc3\xa9") == std::vector<uint32_t>{2, 3});
}

TEST_CASE("items longer than the head that is looked at first are found, and cost nothing elsewhere") {
  std::mt19937 rng(2);
  const std::string text = random_text(rng, 2000);
  Strings items = {"a", std::string(1 << 20, 'x')};
  for (size_t n : {255, 256, 257, 300, 1000}) {
    // Whole characters of about n bytes, as they are in the text and changed at the end.
    for (size_t start : {0, 500}) {
      std::string part = text.substr(start, n);
      while (part.size() > 1 && (static_cast<uint8_t>(text[start + part.size()]) & 0xc0) == 0x80)
        part.pop_back();
      while ((static_cast<uint8_t>(part[0]) & 0xc0) == 0x80) part.erase(0, 1);
      items.push_back(part);
      items.push_back(part + "#");
    }
  }
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
  std::vector<uint32_t> inside;
  for (uint32_t i = 0; i < items.size(); ++i)
    if (text.find(items[i]) != std::string::npos) inside.push_back(i);
  CHECK(inside.size() >= 9);
  CHECK(make_index(items).find_inside(text) == inside);
  // Looking for the long item from every place on would take minutes.
  CHECK(make_index(items).find_inside(std::string(1 << 16, 'b')).empty());
}

TEST_CASE("an index names repeated and broken strings") {
  const StringIndex good = make_index({"a", "", "b", "\xc3\xa9"});
  CHECK_FALSE(good.first_repeated().has_value());
  CHECK_FALSE(good.first_not_utf8().has_value());
  CHECK(good.find("") == 1u);
  const StringIndex bad = make_index({"a", "b", "\xff", "c", "c", "b", "b", "\xfe"});
  CHECK(bad.first_repeated() == 1u);
  CHECK(bad.first_not_utf8() == 2u);
  CHECK(bad.find("b") == 6u);
}

TEST_CASE("an empty index holds nothing") {
  const StringIndex index = make_index({});
  CHECK(index.size() == 0);
  CHECK_FALSE(index.find("a").has_value());
  CHECK(index.find_inside("abc").empty());
}

}  // namespace
}  // namespace gemmule
