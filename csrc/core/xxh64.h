// XXH64: a fast 64-bit checksum, fed in pieces. It finds damage, not forgery.
// Source: the XXH64 section of the xxHash specification, seed 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemmule {

class Xxh64 {
 public:
  void update(const void* data, size_t size);
  uint64_t digest() const;  // of everything so far; more may follow

 private:
  static constexpr uint64_t kPrime1 = 0x9e3779b185ebca87u;
  static constexpr uint64_t kPrime2 = 0xc2b2ae3d27d4eb4fu;
  static constexpr uint64_t kPrime3 = 0x165667b19e3779f9u;
  static constexpr uint64_t kPrime4 = 0x85ebca77c2b2ae63u;
  static constexpr uint64_t kPrime5 = 0x27d4eb2f165667c5u;
  static uint64_t mix(uint64_t lane, uint64_t word);

  uint64_t lanes_[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  uint64_t total_ = 0;
  uint8_t pending_[32] = {};  // the last total_ % 32 bytes
};

}  // namespace gemmule
