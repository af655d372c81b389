// A file mapped read-only into memory.
#pragma once

#include <cstdint>
#include <string>

namespace gemmule {

class MappedFile {
 public:
  // Throws ModelNotFoundError when the path is not a readable regular file, FormatError when it is empty.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

  // Gives the memory of the whole pages inside [begin, begin + n_bytes) back to the system. They are read
  // from the file again when somebody touches them.
  void release(const uint8_t* begin, int64_t n_bytes) const noexcept;
  // For files of which parts are released: no huge page, which would come back whole, 2 MB, for any byte of
  // it.
  void use_small_pages() const noexcept;

  // Throws FormatError when the file on disk has become shorter than the mapping: reading on would raise
  // SIGBUS.
  void check_not_truncated() const;

 private:
  std::string path_;
  int fd_ = -1;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gemmule
