// Fewer than eight numbers at the end of a vector, on the 8 lanes of whichever level includes this.
#pragma once

namespace gemmule {
namespace {

// The first n < 8 elements; the other lanes are zero and the other elements are not touched.
template <class T>
inline F8 load_tail(const T* p, int64_t n) noexcept {
  T buffer[8] = {};
  __builtin_memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load8(buffer);
}
template <class T>
inline void store_tail(T* p, F8 a, int64_t n) noexcept {
  T buffer[8];
  store8(buffer, a);
  __builtin_memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace
}  // namespace gemmule
