// The exceptions of the core. The core never prints and never aborts: every failure is one of these,
// with one sentence that names the file, key or tensor and says what to do.
// The bindings map each class to the Python class of the same name.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace gemmule {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ModelNotFoundError : Error {  // the path does not name a readable file
  using Error::Error;
};
struct FormatError : Error {  // the file breaks a rule of its format
  using Error::Error;
};
struct UnsupportedError : Error {  // the file is well formed, but asks for something not implemented
  using Error::Error;
};
struct NotEnoughMemoryError : Error {
  using Error::Error;
};
struct DeviceError : Error {  // an instruction set or device this machine or build does not have
  using Error::Error;
};
struct Cancelled : Error {
  using Error::Error;
};
struct ContextLengthError : Error {
  ContextLengthError(const std::string& what, int64_t n_prompt_, int64_t n_ctx_)
      : Error(what), n_prompt(n_prompt_), n_ctx(n_ctx_) {}
  int64_t n_prompt;
  int64_t n_ctx;
};

// cat("layer ", 3, " has no key") -> one string.
template <class... Args>
std::string cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace gemmule
