// One block of zeroed, 64-byte aligned memory. Pages are taken from the system when they are first touched.
#pragma once

#include <cstdint>

namespace gemmule {

class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t n_bytes);  // throws NotEnoughMemoryError
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
};

}  // namespace gemmule
