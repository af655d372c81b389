// Maps a whole regular file with mmap(PROT_READ, MAP_SHARED). The descriptor stays open so that a file that
// was cut after it was mapped can be told from the mapping's own length.
#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/error.h"
#include "core/utf8.h"

namespace gemmule {
namespace {

std::string shown(const std::string& path) { return printable(path, 1024); }

std::string error_text(int code) { return std::generic_category().message(code); }

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

// Owns a descriptor until the mapping exists.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

int open_read_only(const std::string& path) {
  if (path.empty()) throw ModelNotFoundError("no file was named; give the path of a model file");
  if (path.find('\0') != std::string::npos)
    throw ModelNotFoundError(cat(shown(path), ": the path holds a zero byte; check the path"));
  int fd;
  do {
    // Without O_NONBLOCK, opening a pipe would wait for a writer.
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (fd < 0 && errno == EINTR);
  if (fd >= 0) return fd;
  const int code = errno;
  if (code == ENOENT || code == ENOTDIR)
    throw ModelNotFoundError(cat(shown(path), ": there is no such file; check the path"));
  if (code == EACCES || code == EPERM)
    throw ModelNotFoundError(cat(shown(path), ": this user may not read the file; change its permissions"));
  throw ModelNotFoundError(cat(shown(path), ": the file cannot be opened (", error_text(code), ")"));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  Descriptor descriptor{open_read_only(path)};
  struct stat info {};
  if (::fstat(descriptor.fd, &info) != 0)
    throw ModelNotFoundError(cat(shown(path), ": the file cannot be examined (", error_text(errno), ")"));
  if (!S_ISREG(info.st_mode))
    throw ModelNotFoundError(
        cat(shown(path), ": this is ", kind_of(info.st_mode), ", not a file; give the path of a model file"));
  if (info.st_size == 0)
    throw FormatError(cat(shown(path), ": the file is empty; download or convert it again"));

  void* mapping = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, descriptor.fd, 0);
  if (mapping == MAP_FAILED) {
    const int code = errno;
    if (code == ENOMEM)
      throw NotEnoughMemoryError(cat(shown(path), ": no address space is left to map ", info.st_size,
                                     " bytes; raise the limit on virtual memory (ulimit -v)"));
    throw ModelNotFoundError(cat(shown(path), ": the file cannot be mapped (", error_text(code),
                                 "); copy it to an ordinary disk"));
  }
  data_ = static_cast<const uint8_t*>(mapping);
  size_ = info.st_size;
  fd_ = descriptor.fd;
  descriptor.fd = -1;
}

MappedFile::~MappedFile() {
  ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  ::close(fd_);
}

void MappedFile::release(const uint8_t* begin, int64_t n_bytes) const noexcept {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t from = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(n_bytes)) / page * page;
  if (from < to) ::madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

void MappedFile::use_small_pages() const noexcept {
#ifdef MADV_NOHUGEPAGE
  ::madvise(const_cast<uint8_t*>(data_), static_cast<size_t>(size_), MADV_NOHUGEPAGE);
  release(data_, size_);  // also what is mapped already
#endif
}

void MappedFile::check_not_truncated() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0)
    throw FormatError(
        cat(shown(path_), ": the file can no longer be examined (", error_text(errno), "); load it again"));
  if (info.st_size < size_)
    throw FormatError(cat(shown(path_), ": the file was cut from ", size_, " to ", info.st_size,
                          " bytes while it was in use; restore it and load it again"));
}

}  // namespace gemmule
