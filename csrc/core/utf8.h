// UTF-8: a strict check (no overlong forms, no surrogates, nothing above U+10FFFF: RFC 3629), and a form of
// untrusted bytes that is safe inside a one-line message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace gemmule {

// Bytes of the well-formed character that starts `s`; 0 when there is none.
inline size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
  const auto continues = [&](size_t n) {
    if (s.size() < n) return false;
    for (size_t i = 1; i < n; ++i)
      if ((byte(i) & 0xc0) != 0x80) return false;
    return true;
  };
  if (s.empty()) return 0;
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xc2) return 0;  // a continuation byte, or an overlong form of ASCII
  if (first < 0xe0) return continues(2) ? 2 : 0;
  if (first < 0xf0) {
    if (!continues(3)) return 0;
    const bool overlong = first == 0xe0 && byte(1) < 0xa0;
    const bool surrogate = first == 0xed && byte(1) >= 0xa0;
    return overlong || surrogate ? 0 : 3;
  }
  if (first > 0xf4 || !continues(4)) return 0;
  const bool overlong = first == 0xf0 && byte(1) < 0x90;
  const bool too_large = first == 0xf4 && byte(1) >= 0x90;
  return overlong || too_large ? 0 : 4;
}

inline bool is_utf8(std::string_view s) {
  while (!s.empty()) {
    const size_t n = utf8_length(s);
    if (n == 0) return false;
    s.remove_prefix(n);
  }
  return true;
}

// `s` with control characters and broken bytes written as \xNN, cut after about `max_bytes`.
inline std::string printable(std::string_view s, size_t max_bytes = 80) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  while (!s.empty()) {
    if (out.size() >= max_bytes) return out + "...";
    const size_t n = utf8_length(s);
    const uint8_t first = static_cast<uint8_t>(s[0]);
    const bool is_c1 = n == 2 && first == 0xc2 && static_cast<uint8_t>(s[1]) < 0xa0;
    if (n == 0 || first < 0x20 || first == 0x7f || is_c1) {
      const size_t n_escaped = n == 0 ? 1 : n;
      for (size_t i = 0; i < n_escaped; ++i) {
        const uint8_t b = static_cast<uint8_t>(s[i]);
        out += {'\\', 'x', kHex[b >> 4], kHex[b & 15]};
      }
      s.remove_prefix(n_escaped);
    } else {
      out.append(s.substr(0, n));
      s.remove_prefix(n);
    }
  }
  return out;
}

}  // namespace gemmule
