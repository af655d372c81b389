// One block of zeroed, 64-byte aligned memory. Pages are taken from the system when they are first touched.
#pragma once

#include <cstdint>

namespace gemmule {

class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t n_bytes);  // throws NotEnoughMemoryError
  // For large memory that is read in one stream: asks for pages of 2 MiB, where the system has them.
  static Arena huge(int64_t n_bytes);
  ~Arena();
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;

  uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  int64_t before_ = 0;  // bytes mapped before data_, for its alignment
  int64_t mapped_ = 0;  // bytes in all
};

// Gives the whole pages inside [begin, begin + n_bytes) of an arena back to the system. What they held is
// lost.
void release_pages(uint8_t* begin, int64_t n_bytes);

}  // namespace gemmule
