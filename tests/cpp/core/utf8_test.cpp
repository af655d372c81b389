// UTF-8: what is well formed, and what a message shows.
#include "core/utf8.h"

#include <doctest/doctest.h>

#include <string>

namespace gemmule {
namespace {

// The bytes that the definition of UTF-8 gives for a code point, surrogates included.
std::string encode(uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | (c >> 6)), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xe0 | (c >> 12)), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | (c >> 18)), tail(12), tail(6), tail(0)};
}

TEST_CASE("utf8: every code point but the surrogates is well formed, and nothing above U+10FFFF") {
  int n_wrong = 0;
  for (uint32_t c = 0; c < 0x110000 + 0x1000; ++c) {
    const bool is_character = c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
    n_wrong += is_utf8(encode(c)) != is_character;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE("utf8: broken bytes are refused") {
  for (const char* bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf5\x80\x80\x80",
        "\xff", "a\xc3", "\xe2\x82", "\xe2\x82z", "\xf0\x9f\x98", "\xc3\xc3"})
    CHECK_FALSE(is_utf8(bad));
  CHECK(is_utf8(""));
}

TEST_CASE("utf8: a message shows control characters and broken bytes escaped, and long text cut") {
  CHECK(printable("plain \xc3\xa9") == "plain \xc3\xa9");
  CHECK(printable("a\nb\x7f\xff") == "a\\x0ab\\x7f\\xff");
  CHECK(printable("\xc2\x85") == "\\xc2\\x85");
  CHECK(printable(std::string(100, 'x'), 10) == "xxxxxxxxxx...");
  CHECK(printable(std::string("\0", 1)) == "\\x00");
}

}  // namespace
}  // namespace gemmule
