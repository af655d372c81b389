// Builds GGUF images in memory for tests, right or wrong on purpose: every field can be overridden.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/gguf_reader.h"

namespace gemmule::testing {

// The bytes of a little-endian number.
template <class T>
std::string le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// A string as GGUF stores it: length, then bytes.
inline std::string gguf_string(std::string_view s) { return le<uint64_t>(s.size()) + std::string(s); }

// An array as GGUF stores it: element type, count, items.
inline std::string gguf_array(ValueType element, uint64_t count, const std::string& items) {
  return le(static_cast<uint32_t>(element)) + le(count) + items;
}

struct TensorSpec {
  std::string name;
  std::vector<uint64_t> shape;
  uint32_t type = 0;
  uint64_t n_bytes = 0;            // space taken in the data
  std::optional<uint64_t> offset;  // written instead of the true one
  std::optional<uint32_t> n_dims;  // written instead of shape.size()
};

class GgufBuilder {
 public:
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;            // used for the layout; the key is only written by a test
  std::optional<uint64_t> n_tensors;  // written instead of the true count
  std::optional<uint64_t> n_keys;
  std::string tail;  // after the data

  GgufBuilder& raw(std::string_view key, uint32_t type, const std::string& value) {
    entries_.emplace_back(std::string(key), le(type) + value);
    return *this;
  }
  GgufBuilder& add(std::string_view key, ValueType type, const std::string& value) {
    return raw(key, static_cast<uint32_t>(type), value);
  }
  template <class T>
  GgufBuilder& scalar(std::string_view key, ValueType type, T value) {
    return add(key, type, le(value));
  }
  GgufBuilder& string(std::string_view key, std::string_view value) {
    return add(key, ValueType::String, gguf_string(value));
  }
  GgufBuilder& tensor(TensorSpec spec) {
    tensors_.push_back(std::move(spec));
    return *this;
  }
  GgufBuilder& f32(const std::string& name, std::vector<uint64_t> shape) {
    uint64_t n = 4;
    for (const uint64_t dim : shape) n *= dim;
    return tensor(
        {.name = name, .shape = std::move(shape), .type = 0, .n_bytes = n, .offset = {}, .n_dims = {}});
  }

  std::string header() const {
    std::string out =
        magic + le(version) + le(n_tensors.value_or(tensors_.size())) + le(n_keys.value_or(entries_.size()));
    for (const auto& [key, value] : entries_) out += gguf_string(key) + value;
    uint64_t offset = 0;
    for (const TensorSpec& t : tensors_) {
      out += gguf_string(t.name) + le(t.n_dims.value_or(static_cast<uint32_t>(t.shape.size())));
      for (const uint64_t dim : t.shape) out += le(dim);
      out += le(t.type) + le(t.offset.value_or(offset));
      offset = padded(offset + t.n_bytes);
    }
    return out;
  }

  // Data byte i of tensor t is 16 t + i, modulo 256. Without padding after the last tensor.
  std::string build() const {
    std::string out = header();
    out.resize(padded(out.size()));
    const size_t data_start = out.size();
    for (size_t t = 0; t < tensors_.size(); ++t) {
      out.resize(data_start + padded(out.size() - data_start));
      for (uint64_t i = 0; i < tensors_[t].n_bytes; ++i) out += static_cast<char>(16 * t + i);
    }
    return out + tail;
  }

 private:
  uint64_t padded(uint64_t n) const { return (n + alignment - 1) / alignment * alignment; }

  std::vector<std::pair<std::string, std::string>> entries_;  // key, type and value as stored
  std::vector<TensorSpec> tensors_;
};

// A file that is removed at the end of its scope.
class TempFile {
 public:
  explicit TempFile(std::string_view content) {
    static int n_made = 0;
    path_ = (std::filesystem::temp_directory_path() /
             ("gemmule-test-" + std::to_string(::getpid()) + "-" + std::to_string(n_made++) + ".gguf"))
                .string();
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TempFile() { std::remove(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace gemmule::testing
