// MappedFile: what it maps, and every path it refuses.
#include "core/mapped_file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace gemmule {
namespace {

namespace fs = std::filesystem;

// A folder that is removed with its content at the end of its scope.
struct TempFolder {
  fs::path path;
  TempFolder() {
    static int n_made = 0;
    path = fs::temp_directory_path() /
           ("gemmule-mapped-" + std::to_string(::getpid()) + "-" + std::to_string(n_made++));
    fs::create_directory(path);
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  std::string file(const std::string& name, const std::string& content) const {
    std::ofstream(path / name, std::ios::binary) << content;
    return (path / name).string();
  }
};

template <class Exception>
void expect_refused(const std::string& path, const std::string& words) {
  std::string message;
  try {
    const MappedFile file(path);
    FAIL_CHECK("nothing was thrown");
  } catch (const Exception& e) {
    message = e.what();
  }
  INFO(message);
  CHECK(message.find(words) != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
}

int count_descriptors() {
  int n = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

TEST_CASE("mapped_file: the bytes of a file") {
  const TempFolder folder;
  const std::string path = folder.file("model.bin", std::string("abc\0def", 7));
  const MappedFile file(path);
  CHECK(file.path() == path);
  CHECK(file.size() == 7);
  CHECK(file.data()[3] == 0);
  CHECK(file.data()[6] == 'f');
  CHECK_NOTHROW(file.check_not_truncated());
}

TEST_CASE("mapped_file: a symbolic link is followed") {
  const TempFolder folder;
  fs::create_symlink(folder.file("model.bin", "abc"), folder.path / "link");
  CHECK(MappedFile((folder.path / "link").string()).size() == 3);
}

TEST_CASE("mapped_file: a cut while mapped is found, growth is allowed") {
  const TempFolder folder;
  const std::string path = folder.file("model.bin", std::string(10000, 'x'));
  const MappedFile file(path);
  fs::resize_file(path, 20000);
  CHECK_NOTHROW(file.check_not_truncated());
  fs::resize_file(path, 9999);
  CHECK_THROWS_AS(file.check_not_truncated(), FormatError);
}

TEST_CASE("mapped_file: a deleted file stays usable") {
  const TempFolder folder;
  const std::string path = folder.file("model.bin", "abc");
  const MappedFile file(path);
  fs::remove(path);
  CHECK_NOTHROW(file.check_not_truncated());
  CHECK(file.data()[2] == 'c');
}

TEST_CASE("mapped_file refuses: missing files") {
  const TempFolder folder;
  expect_refused<ModelNotFoundError>((folder.path / "none").string(), "no such file");
  expect_refused<ModelNotFoundError>(folder.file("file", "x") + "/below", "no such file");
  expect_refused<ModelNotFoundError>("", "no file was named");
  expect_refused<ModelNotFoundError>(std::string("a\0b", 3), "zero byte");
  expect_refused<ModelNotFoundError>((folder.path / "new\nline").string(), "new\\x0aline");
}

TEST_CASE("mapped_file refuses: folders, pipes and devices, without waiting") {
  const TempFolder folder;
  expect_refused<ModelNotFoundError>(folder.path.string(), "a directory");
  const std::string pipe = (folder.path / "pipe").string();
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  expect_refused<ModelNotFoundError>(pipe, "a pipe");
  expect_refused<ModelNotFoundError>("/dev/null", "a device");
}

TEST_CASE("mapped_file refuses: an unreadable file") {
  if (::geteuid() == 0) return;  // root reads every file, so there is nothing to refuse
  const TempFolder folder;
  const std::string path = folder.file("secret", "x");
  REQUIRE(::chmod(path.c_str(), 0) == 0);
  expect_refused<ModelNotFoundError>(path, "may not read");
}

TEST_CASE("mapped_file refuses: an empty file") {
  const TempFolder folder;
  expect_refused<FormatError>(folder.file("empty", ""), "empty");
}

TEST_CASE("mapped_file: no descriptor is left, neither after success nor after a refusal") {
  const TempFolder folder;
  const std::string path = folder.file("model.bin", "abc");
  const std::string empty = folder.file("empty", "");
  const int n_before = count_descriptors();
  for (int i = 0; i < 10; ++i) {
    const MappedFile file(path);
    CHECK_THROWS_AS(MappedFile{empty}, FormatError);
    CHECK_THROWS_AS(MappedFile{folder.path.string()}, ModelNotFoundError);
  }
  CHECK(count_descriptors() == n_before);
}

}  // namespace
}  // namespace gemmule
