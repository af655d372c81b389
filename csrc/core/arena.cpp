#include "core/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "core/error.h"

namespace gemmule {
namespace {

uint8_t* map_memory(int64_t n_bytes) {
  void* block = mmap(nullptr, static_cast<size_t>(n_bytes), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED)
    throw NotEnoughMemoryError(
        cat("the system refused ", n_bytes, " bytes; use a smaller context or another model"));
  return static_cast<uint8_t*>(block);
}

}  // namespace

Arena::Arena(int64_t n_bytes) : size_(n_bytes) {
  if (n_bytes == 0) return;
  data_ = map_memory(n_bytes);
  mapped_ = n_bytes;
}

Arena Arena::huge(int64_t n_bytes) {
  constexpr int64_t kHugePage = 2 << 20;
  Arena arena;
  uint8_t* const block = map_memory(n_bytes + kHugePage);
  arena.before_ =
      (kHugePage - static_cast<int64_t>(reinterpret_cast<uintptr_t>(block) % kHugePage)) % kHugePage;
  arena.data_ = block + arena.before_;
  arena.size_ = n_bytes;
  arena.mapped_ = n_bytes + kHugePage;
#if defined(MADV_HUGEPAGE)
  madvise(arena.data_, static_cast<size_t>(n_bytes), MADV_HUGEPAGE);  // a wish: small pages do as well
#endif
  return arena;
}

Arena::~Arena() {
  if (data_ != nullptr) munmap(data_ - before_, static_cast<size_t>(mapped_));
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      before_(std::exchange(other.before_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(before_, other.before_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

void release_pages(uint8_t* begin, int64_t n_bytes) {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  const auto address = reinterpret_cast<intptr_t>(begin);
  const int64_t skip = (page - address % page) % page, n_pages = (n_bytes - skip) / page;
  if (n_pages > 0) madvise(begin + skip, static_cast<size_t>(n_pages * page), MADV_DONTNEED);
}

}  // namespace gemmule
