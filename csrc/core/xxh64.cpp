// Four lanes eat stripes of 32 bytes; the digest merges them and then eats the rest in 8, 4 and 1 bytes.
#include "core/xxh64.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gemmule {

namespace {

// Little-endian numbers at any address; every machine gemmule supports is little endian.
uint64_t load64(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
uint32_t load32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

uint64_t Xxh64::mix(uint64_t lane, uint64_t word) { return std::rotl(lane + word * kPrime2, 31) * kPrime1; }

void Xxh64::update(const void* data, size_t size) {
  if (size == 0) return;  // data may be null
  const auto* p = static_cast<const uint8_t*>(data);
  size_t filled = static_cast<size_t>(total_ % 32);
  total_ += size;
  if (filled != 0) {
    const size_t take = std::min(size, 32 - filled);
    std::memcpy(pending_ + filled, p, take);
    p += take;
    size -= take;
    filled += take;
    if (filled < 32) return;
    for (int i = 0; i < 4; ++i) lanes_[i] = mix(lanes_[i], load64(pending_ + 8 * i));
  }
  uint64_t a = lanes_[0], b = lanes_[1], c = lanes_[2], d = lanes_[3];
  for (; size >= 32; p += 32, size -= 32) {
    a = mix(a, load64(p));
    b = mix(b, load64(p + 8));
    c = mix(c, load64(p + 16));
    d = mix(d, load64(p + 24));
  }
  lanes_[0] = a, lanes_[1] = b, lanes_[2] = c, lanes_[3] = d;
  if (size != 0) std::memcpy(pending_, p, size);
}

uint64_t Xxh64::digest() const {
  uint64_t hash = lanes_[2] + kPrime5;  // lane 2 still holds the seed when no stripe was eaten
  if (total_ >= 32) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ mix(0, lane)) * kPrime1 + kPrime4;
  }
  hash += total_;
  const uint8_t* p = pending_;
  size_t left = static_cast<size_t>(total_ % 32);
  for (; left >= 8; p += 8, left -= 8) hash = std::rotl(hash ^ mix(0, load64(p)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    hash = std::rotl(hash ^ load32(p) * kPrime1, 23) * kPrime2 + kPrime3;
    p += 4;
    left -= 4;
  }
  for (; left > 0; ++p, --left) hash = std::rotl(hash ^ *p * kPrime5, 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace gemmule
