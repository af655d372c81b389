// GGUF v3 (and v2) files: parsed and validated once, then read through views of the mapping.
// Format: docs/FORMAT.md. Every count, length, type, offset, alignment and sum is checked before anything is
// allocated or touched; after the constructor returns, no accessor can read outside the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/mapped_file.h"
#include "core/tensor.h"

namespace gemmule {

enum class ValueType : uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };
const char* value_type_name(ValueType type);

// One metadata value, still in the mapping. For arrays `element` and `count` describe the items.
struct GgufValue {
  ValueType type = ValueType::U8;
  ValueType element = ValueType::U8;  // of an array's items; the type itself for a scalar
  uint64_t count = 1;                 // arrays: items
  const uint8_t* data =
      nullptr;           // first byte of the scalar, of the string's length word, or of the first item
  uint64_t n_bytes = 0;  // bytes of the value (arrays: of all items)
};

struct GgufTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;  // GGUF order: the contiguous dimension first; 1 to 4 dimensions
  uint64_t offset;             // from the start of the file image
  uint64_t n_bytes;
  Layout layout = Layout::Rows;
};

class GgufFile {
 public:
  // Opens a file, or the complete GGUF image at [offset, offset + size) of one.
  // Throws ModelNotFoundError, FormatError (names the file and the key or tensor) or UnsupportedError
  // (unknown tensor type, layout or version, big-endian file).
  static std::shared_ptr<const GgufFile> open(const std::string& path);
  GgufFile(std::shared_ptr<const MappedFile> file, uint64_t offset, uint64_t size);

  const std::string& path() const { return file_->path(); }
  const MappedFile& file() const { return *file_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  Layout layout() const { return layout_; }              // R8P64: tensors may be packed
  uint64_t data_offset() const { return data_offset_; }  // of the tensor data, from the start of the image
  uint64_t size() const { return size_; }                // of the image

  // Metadata in file order. `find` returns nullptr for an absent key.
  const std::vector<std::pair<std::string, GgufValue>>& entries() const { return entries_; }
  const GgufValue* find(std::string_view key) const;

  // Typed getters. A missing key or a value of another kind throws FormatError naming file and key. Integers
  // of any width are accepted where they fit, floats must be finite, arrays have at most 2^24 items; the *_or
  // forms return the fallback only when the key is absent.
  int64_t get_int(std::string_view key) const;
  double get_float(std::string_view key) const;
  bool get_bool(std::string_view key) const;
  std::string_view get_string(std::string_view key) const;  // checked UTF-8
  int64_t int_or(std::string_view key, int64_t fallback) const;
  double float_or(std::string_view key, double fallback) const;
  bool bool_or(std::string_view key, bool fallback) const;
  std::string_view string_or(std::string_view key, std::string_view fallback) const;
  std::vector<int64_t> get_ints(std::string_view key) const;  // array of any integer or bool type
  std::vector<double> get_floats(std::string_view key) const;
  std::vector<std::string_view> get_strings(
      std::string_view key) const;  // bytes as stored; not checked for UTF-8

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;
  const uint8_t* data(const GgufTensor& tensor) const { return base_ + tensor.offset; }
  // A matrix view: cols = shape[0], rows = product of the rest. The data of a packed tensor starts at a
  // multiple of 32 bytes.
  Tensor view(const GgufTensor& tensor) const;

 private:
  const GgufValue& require(std::string_view key) const;
  const GgufValue& require_array(std::string_view key) const;
  [[noreturn]] void fail_kind(std::string_view key, const GgufValue& value, const char* wanted) const;

  std::shared_ptr<const MappedFile> file_;
  const uint8_t* base_;
  uint64_t size_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  Layout layout_ = Layout::Rows;
  uint64_t data_offset_ = 0;
  std::vector<std::pair<std::string, GgufValue>> entries_;
  std::vector<GgufTensor> tensors_;
  // Positions in entries_ and tensors_, ordered by name: 4 bytes a name, so that a file of many tiny keys
  // stays cheap.
  std::vector<uint32_t> key_index_;
  std::vector<uint32_t> tensor_index_;
};

}  // namespace gemmule
