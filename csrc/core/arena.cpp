#include "core/arena.h"

#include <sys/mman.h>

#include <utility>

#include "core/error.h"

namespace gemmule {

Arena::Arena(int64_t n_bytes) : size_(n_bytes) {
  if (n_bytes == 0) return;
  void* block = mmap(nullptr, static_cast<size_t>(n_bytes), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED)
    throw NotEnoughMemoryError(
        cat("the system refused ", n_bytes, " bytes; use a smaller context or another model"));
  data_ = static_cast<uint8_t*>(block);
}

Arena::~Arena() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_));
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace gemmule
