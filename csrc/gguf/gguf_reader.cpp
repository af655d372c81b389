// Parses a GGUF image in one pass: header, metadata, tensor table, then the checks that need all of them.
// Nothing is copied but names and shapes; values and tensors stay in the mapping. Rules and limits:
// docs/FORMAT.md.
#include "gguf/gguf_reader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "core/utf8.h"
#include "quant/packed.h"

namespace gemmule {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values are read in place from little-endian files");

constexpr uint64_t kHeaderBytes = 4 + 4 + 8 + 8;             // magic, version, tensor count, key count
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;           // key length, key, type, smallest value
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, n_dims, one dimension, type, offset
constexpr uint64_t kMinStringBytes = 8;
constexpr uint64_t kMinArrayBytes = 4 + 8;
constexpr uint64_t kMaxNames = uint64_t{1} << 18;  // keys, and tensors; more would take a second to sort
constexpr uint64_t kMaxNameBytes = 64 * 1024;
constexpr int kMaxArrayDepth = 4;
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kMinAlignment = 8;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kImageAlignment = 32;  // of an image inside a larger file: keeps its tensors aligned
constexpr const char* kLayoutKey = "gemmule.layout";
constexpr uint64_t kMinPackedAlignment = 64;       // whole cache lines, for the prefetches of the kernels
constexpr uint64_t kMaxItems = uint64_t{1} << 24;  // of an array that a getter copies out
constexpr uint64_t kMaxInt64 = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

template <class T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Bytes of a scalar; 0 for the types whose length varies.
uint64_t scalar_bytes(ValueType type) {
  switch (type) {
    case ValueType::U8:
    case ValueType::I8:
    case ValueType::Bool:
      return 1;
    case ValueType::U16:
    case ValueType::I16:
      return 2;
    case ValueType::U32:
    case ValueType::I32:
    case ValueType::F32:
      return 4;
    case ValueType::U64:
    case ValueType::I64:
    case ValueType::F64:
      return 8;
    case ValueType::String:
    case ValueType::Array:
      return 0;
  }
  return 0;
}

bool is_integer(ValueType type) {
  return type != ValueType::F32 && type != ValueType::F64 && type != ValueType::String &&
         type != ValueType::Array && type != ValueType::Bool;
}

// The integer at `p`, or nothing when it does not fit into 64 bits with sign.
std::optional<int64_t> load_integer(ValueType type, const uint8_t* p) {
  switch (type) {
    case ValueType::U8:
    case ValueType::Bool:
      return load<uint8_t>(p);
    case ValueType::I8:
      return load<int8_t>(p);
    case ValueType::U16:
      return load<uint16_t>(p);
    case ValueType::I16:
      return load<int16_t>(p);
    case ValueType::U32:
      return load<uint32_t>(p);
    case ValueType::I32:
      return load<int32_t>(p);
    case ValueType::I64:
      return load<int64_t>(p);
    case ValueType::U64: {
      const uint64_t value = load<uint64_t>(p);
      if (value <= kMaxInt64) return static_cast<int64_t>(value);
      return std::nullopt;
    }
    default:
      return std::nullopt;
  }
}

std::string shown_path(const std::string& path) { return printable(path, 1024); }

std::string named(const char* what, std::string_view name) { return cat(what, " '", printable(name), "'"); }

// What a file that is not GGUF seems to be, as the second half of a sentence.
std::string guess(const uint8_t* data, uint64_t size) {
  const std::string_view head(reinterpret_cast<const char*>(data), std::min<uint64_t>(size, 64));
  const auto starts = [&](std::string_view prefix) { return head.substr(0, prefix.size()) == prefix; };
  if (starts("version https://git-lfs"))
    return "it is a Git LFS pointer: fetch the real file with `git lfs pull`";
  if (size > 9 && load<uint64_t>(data) <= size - 8 && data[8] == '{')
    return "it looks like safetensors: convert it with `gemmule convert`";
  if (starts("PK\x03\x04"))
    return "it is a zip archive, perhaps a PyTorch checkpoint: convert its original folder";
  if (starts("\x1f\x8b") || starts("\x28\xb5\x2f\xfd") ||
      starts("\xfd"
             "7zXZ") ||
      starts("BZh"))
    return "it is compressed: unpack it first";
  if (starts("lmgg") || starts("fmgg") || starts("tjgg") || starts("algg"))
    return "it is a GGML file from before GGUF: get the GGUF version of the model";
  if (starts("FUGG")) return "its bytes are reversed: get the little-endian version of the model";
  const size_t text = head.find_first_not_of(" \t\r\n");
  if (text != std::string_view::npos && head[text] == '<')
    return "it is a web page, perhaps a failed download: download the file again";
  if (text != std::string_view::npos && head[text] == '{')
    return "it is a JSON text, perhaps a failed download: download the file again";
  return "its first bytes are not 'GGUF': give the path of a GGUF model";
}

// Reads forward through the image; every step is checked against the end first.
class Cursor {
 public:
  Cursor(const std::string& path, const uint8_t* base, uint64_t size)
      : path_(path), base_(base), size_(size) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return size_ - position_; }
  const uint8_t* here() const { return base_ + position_; }

  template <class... Args>
  [[noreturn]] void fail(const Args&... args) const {
    throw FormatError(cat(shown_path(path_), ": ", args...));
  }

  // `where` names the field for the message; it is only called when the image ends too early.
  template <class Where>
  void skip(uint64_t n, const Where& where) {
    if (n > remaining())
      fail("the file ends inside ", where(), ", which needs ", n, " more bytes at byte ", position_, " of ",
           size_, "; download or convert it again");
    position_ += n;
  }

  template <class T, class Where>
  T read(const Where& where) {
    skip(sizeof(T), where);
    return load<T>(here() - sizeof(T));
  }

  template <class Where>
  std::string_view read_string(const Where& where) {
    const uint64_t n = read<uint64_t>(where);
    skip(n, where);
    return {reinterpret_cast<const char*>(here() - n), static_cast<size_t>(n)};
  }

  // A key or tensor name: 1 byte to 64 KiB of UTF-8.
  std::string_view read_name(const char* what, uint64_t index) {
    const auto where = [&] { return cat("the name of ", what, " ", index); };
    const uint64_t n = read<uint64_t>(where);
    if (n == 0 || n > kMaxNameBytes)
      fail("the name of ", what, " ", index, " has ", n, " bytes, but 1 to ", kMaxNameBytes,
           " are allowed; convert the file again");
    skip(n, where);
    const std::string_view name(reinterpret_cast<const char*>(here() - n), static_cast<size_t>(n));
    if (!is_utf8(name))
      fail("the name of ", what, " ", index, " ('", printable(name),
           "') is not UTF-8; convert the file again");
    return name;
  }

  GgufValue read_value(std::string_view key) {
    const auto where = [&] { return named("the value of key", key); };
    GgufValue value;
    value.type = read_type(key);
    value.element = value.type;
    if (value.type == ValueType::Array) {
      read_array(key, 1, value);
    } else {
      value.data = here();
      skip_items(key, value.type, 1, where);
      value.n_bytes = static_cast<uint64_t>(here() - value.data);
    }
    return value;
  }

 private:
  ValueType read_type(std::string_view key) {
    const uint32_t type = read<uint32_t>([&] { return named("the type of key", key); });
    if (type > static_cast<uint32_t>(ValueType::F64))
      fail(named("key", key), " has the unknown value type ", type, "; convert the file again");
    return static_cast<ValueType>(type);
  }

  void read_array(std::string_view key, int depth, GgufValue& value) {
    const auto where = [&] { return named("the array of key", key); };
    if (depth > kMaxArrayDepth)
      fail(named("key", key), " nests arrays more than ", kMaxArrayDepth, " deep; convert the file again");
    value.element = read_type(key);
    value.count = read<uint64_t>(where);
    const uint64_t n_min = value.element == ValueType::String  ? kMinStringBytes
                           : value.element == ValueType::Array ? kMinArrayBytes
                                                               : scalar_bytes(value.element);
    if (value.count > remaining() / n_min)
      fail(named("key", key), " claims ", value.count, " array items, more than the ", remaining(),
           " remaining bytes hold; download or convert the file again");
    value.data = here();
    if (value.element == ValueType::Array) {
      GgufValue inner;
      for (uint64_t i = 0; i < value.count; ++i) read_array(key, depth + 1, inner);
    } else {
      skip_items(key, value.element, value.count, where);
    }
    value.n_bytes = static_cast<uint64_t>(here() - value.data);
  }

  // `count` scalars or strings; count * scalar_bytes cannot overflow: the caller has compared count with
  // remaining().
  template <class Where>
  void skip_items(std::string_view key, ValueType type, uint64_t count, const Where& where) {
    if (type == ValueType::String) {
      for (uint64_t i = 0; i < count; ++i) read_string(where);
      return;
    }
    skip(count * scalar_bytes(type), where);
    if (type != ValueType::Bool) return;
    for (const uint8_t* p = here() - count; p != here(); ++p)
      if (*p > 1)
        fail(named("key", key), " holds the byte ", int{*p},
             " as a bool, but only 0 and 1 are allowed; convert the ", "file again");
  }

  const std::string& path_;
  const uint8_t* base_;
  uint64_t size_;
  uint64_t position_ = 0;
};

uint32_t read_version(Cursor& cursor, const std::string& path) {
  const uint32_t version = cursor.read<uint32_t>([] { return "the version"; });
  if (version == 2 || version == 3) return version;
  const std::string file = shown_path(path);
  if (version == 0)
    throw FormatError(cat(file, ": the GGUF version is 0; download or convert the file again"));
  if (version == 1)
    throw UnsupportedError(cat(file, ": GGUF version 1 is not supported; get a version 3 file of the model"));
  if ((version & 0xffff) == 0)
    throw UnsupportedError(cat(file, ": this is a big-endian GGUF; get the little-endian file of the model"));
  throw UnsupportedError(cat(file, ": GGUF version ", version,
                             " is not supported (2 and 3 are); get a version 3 file of the model"));
}

uint64_t check_count(const Cursor& cursor, uint64_t count, uint64_t min_bytes, const char* what) {
  if (count > kMaxNames)
    cursor.fail("the header claims ", count, " ", what, ", but at most ", kMaxNames,
                " are allowed; download or convert the file again");
  if (count > cursor.remaining() / min_bytes)
    cursor.fail("the header claims ", count, " ", what, ", more than the ", cursor.remaining(),
                " remaining bytes hold; download or convert the file again");
  return count;
}

// The positions 0..n-1 in the order of their names; a name that occurs twice is refused.
template <class NameOf>
std::vector<uint32_t> index_names(const Cursor& cursor, size_t n, const char* what, const NameOf& name_of) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name_of(a) < name_of(b); });
  for (size_t i = 1; i < n; ++i)
    if (name_of(order[i - 1]) == name_of(order[i]))
      cursor.fail(named(what, name_of(order[i])), " occurs twice; convert the file again");
  return order;
}

template <class NameOf>
std::optional<uint32_t> find_name(const std::vector<uint32_t>& order, std::string_view name,
                                  const NameOf& name_of) {
  const auto it = std::lower_bound(order.begin(), order.end(), name,
                                   [&](uint32_t i, std::string_view wanted) { return name_of(i) < wanted; });
  if (it == order.end() || name_of(*it) != name) return std::nullopt;
  return *it;
}

// A packed tensor is one of a packed file, has a packed form, and each of its matrices begins with a panel.
void check_packed(const Cursor& cursor, const GgufTensor& tensor, Layout file_layout) {
  const auto fail = [&](const auto&... why) {
    cursor.fail(named("tensor", tensor.name), " is packed ", dtype_name(tensor.dtype), ", but ", why...,
                "; pack the model again");
  };
  if (file_layout != Layout::R8P64) fail("key '", kLayoutKey, "' is not 'r8p64'");
  const int64_t n_rows = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
  if (!can_pack(tensor.dtype, kGroupRows, tensor.shape[0])) fail("this type has no packed form");
  if (n_rows % kGroupRows != 0) fail("its ", n_rows, " rows are not a multiple of ", kGroupRows);
  if (tensor.shape.size() > 2 && n_rows % kPanelRows != 0)
    fail("its matrices have ", n_rows, " rows, not a multiple of ", kPanelRows);
}

// Name, shape and type of tensor `index`; `offset` is left relative to the start of the data.
GgufTensor read_tensor_info(Cursor& cursor, const std::string& path, uint64_t index, Layout file_layout) {
  GgufTensor tensor;
  tensor.name = cursor.read_name("tensor", index);
  const auto where = [&] { return named("the description of tensor", tensor.name); };
  const auto label = [&] { return named("tensor", tensor.name); };
  const uint32_t n_dims = cursor.read<uint32_t>(where);
  if (n_dims == 0 || n_dims > kMaxDims)
    cursor.fail(label(), " has ", n_dims, " dimensions, but 1 to ", kMaxDims,
                " are allowed; convert the file again");
  tensor.shape.reserve(n_dims);
  uint64_t n_elements = 1;
  for (uint32_t d = 0; d < n_dims; ++d) {
    const uint64_t dim = cursor.read<uint64_t>(where);
    if (dim == 0) cursor.fail(label(), " has no elements in dimension ", d, "; convert the file again");
    if (dim > kMaxInt64 / n_elements)
      cursor.fail(label(), " has more than 2^63 elements; download or convert the file again");
    n_elements *= dim;
    tensor.shape.push_back(static_cast<int64_t>(dim));
  }
  const uint32_t type = cursor.read<uint32_t>(where);
  const bool is_packed = type >= kPackedTypes;
  const DTypeInfo* info = find_dtype(is_packed ? type - kPackedTypes : type);
  if (info == nullptr)
    throw UnsupportedError(cat(shown_path(path), ": ", label(), " has the type number ", type,
                               ", which is not supported; get the model in another quantization"));
  tensor.dtype = info->dtype;
  const uint64_t block_size = static_cast<uint64_t>(info->block_size);
  const uint64_t block_bytes = static_cast<uint64_t>(info->block_bytes);
  if (static_cast<uint64_t>(tensor.shape[0]) % block_size != 0)
    cursor.fail(label(), " has rows of ", tensor.shape[0], " elements, not a multiple of the ", block_size,
                " of a ", info->name, " block; convert the file again");
  if (n_elements / block_size > kMaxInt64 / block_bytes)
    cursor.fail(label(), " has more than 2^63 bytes; download or convert the file again");
  tensor.n_bytes = n_elements / block_size * block_bytes;
  if (is_packed) {
    check_packed(cursor, tensor, file_layout);
    tensor.layout = Layout::R8P64;
  }
  tensor.offset = cursor.read<uint64_t>(where);
  return tensor;
}

}  // namespace

const char* value_type_name(ValueType type) {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  const uint32_t i = static_cast<uint32_t>(type);
  return i < std::size(kNames) ? kNames[i] : "unknown";
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path) {
  auto file = std::make_shared<const MappedFile>(path);
  const uint64_t size = static_cast<uint64_t>(file->size());
  return std::make_shared<const GgufFile>(std::move(file), 0, size);
}

GgufFile::GgufFile(std::shared_ptr<const MappedFile> file, uint64_t offset, uint64_t size)
    : file_(std::move(file)), base_(nullptr), size_(size) {
  const uint64_t file_size = static_cast<uint64_t>(file_->size());
  if (offset > file_size || size > file_size - offset || offset % kImageAlignment != 0)
    throw FormatError(cat(shown_path(path()), ": the section of ", size, " bytes at byte ", offset,
                          " is not an aligned part of the ", file_size,
                          " bytes of the file; download or convert it again"));
  base_ = file_->data() + offset;
  Cursor cursor(path(), base_, size_);

  // Header. The magic comes first: for a file that is something else, its length says nothing.
  if (size_ < 4 || std::memcmp(base_, "GGUF", 4) != 0) {
    if (size_ < 4) cursor.fail("the file is too short for a GGUF (", size_, " bytes); download it again");
    cursor.fail("this is not a GGUF file; ", guess(base_, size_));
  }
  cursor.skip(4, [] { return "the magic"; });
  version_ = read_version(cursor, path());
  if (size_ < kHeaderBytes)
    cursor.fail("the file is too short for a GGUF header (", size_, " of ", kHeaderBytes,
                " bytes); download it again");
  const uint64_t n_tensors_claimed = cursor.read<uint64_t>([] { return "the tensor count"; });
  const uint64_t n_keys_claimed = cursor.read<uint64_t>([] { return "the key count"; });
  const uint64_t n_tensors = check_count(cursor, n_tensors_claimed, kMinTensorBytes, "tensors");
  const uint64_t n_keys = check_count(cursor, n_keys_claimed, kMinEntryBytes, "keys");

  // Metadata.
  entries_.reserve(n_keys);
  for (uint64_t i = 0; i < n_keys; ++i) {
    const std::string_view key = cursor.read_name("key", i);
    const GgufValue value = cursor.read_value(key);
    entries_.emplace_back(std::string(key), value);
  }
  key_index_ = index_names(cursor, entries_.size(), "key",
                           [&](uint32_t i) -> std::string_view { return entries_[i].first; });

  const int64_t alignment = int_or("general.alignment", static_cast<int64_t>(alignment_));
  if (alignment < static_cast<int64_t>(kMinAlignment) || alignment > static_cast<int64_t>(kMaxAlignment) ||
      !std::has_single_bit(static_cast<uint64_t>(alignment)))
    cursor.fail("key 'general.alignment' is ", alignment, ", but it must be a power of two from ",
                kMinAlignment, " to ", kMaxAlignment, "; convert the file again");
  alignment_ = static_cast<uint64_t>(alignment);

  const std::string_view layout = string_or(kLayoutKey, "gguf");
  if (layout != "gguf" && layout != "r8p64")
    throw UnsupportedError(cat(shown_path(path()), ": key '", kLayoutKey, "' is '", printable(layout),
                               "', but only 'gguf' and 'r8p64' are supported; convert the model again"));
  layout_ = layout == "r8p64" ? Layout::R8P64 : Layout::Rows;
  if (layout_ == Layout::R8P64 && alignment_ < kMinPackedAlignment)
    cursor.fail("key 'general.alignment' is ", alignment_, ", but a packed file needs at least ",
                kMinPackedAlignment, "; pack the model again");

  // Tensor table. The count is checked once more: the metadata has used up some of the bytes.
  check_count(cursor, n_tensors, kMinTensorBytes, "tensors");
  tensors_.reserve(n_tensors);
  for (uint64_t i = 0; i < n_tensors; ++i) tensors_.push_back(read_tensor_info(cursor, path(), i, layout_));
  tensor_index_ = index_names(cursor, tensors_.size(), "tensor",
                              [&](uint32_t i) -> std::string_view { return tensors_[i].name; });

  // Data. position() <= size_ < 2^63, so rounding it up cannot overflow.
  data_offset_ = (cursor.position() + alignment_ - 1) / alignment_ * alignment_;
  const uint64_t n_data = size_ > data_offset_ ? size_ - data_offset_ : 0;
  for (GgufTensor& tensor : tensors_) {
    if (tensor.offset % alignment_ != 0)
      cursor.fail(named("tensor", tensor.name), " starts at data byte ", tensor.offset,
                  ", not at a multiple of the alignment ", alignment_, "; convert the file again");
    if (tensor.offset > n_data || tensor.n_bytes > n_data - tensor.offset)
      cursor.fail("the file is cut short: ", named("tensor", tensor.name), " needs ", tensor.n_bytes,
                  " bytes at data byte ", tensor.offset, ", but the file has only ", n_data,
                  " bytes of data; download it again");
    tensor.offset += data_offset_;
  }
  std::vector<uint32_t> by_offset(tensors_.size());
  std::iota(by_offset.begin(), by_offset.end(), 0u);
  std::sort(by_offset.begin(), by_offset.end(),
            [&](uint32_t a, uint32_t b) { return tensors_[a].offset < tensors_[b].offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor& a = tensors_[by_offset[i - 1]];
    const GgufTensor& b = tensors_[by_offset[i]];
    if (a.offset + a.n_bytes > b.offset)
      cursor.fail(named("tensor", a.name), " and ", named("tensor", b.name),
                  " overlap; convert the file again");
  }
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto i =
      find_name(key_index_, key, [&](uint32_t j) -> std::string_view { return entries_[j].first; });
  return i ? &entries_[*i].second : nullptr;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto i =
      find_name(tensor_index_, name, [&](uint32_t j) -> std::string_view { return tensors_[j].name; });
  return i ? &tensors_[*i] : nullptr;
}

Tensor GgufFile::view(const GgufTensor& tensor) const {
  int64_t rows = 1;
  for (size_t d = 1; d < tensor.shape.size(); ++d) rows *= tensor.shape[d];
  return {.dtype = tensor.dtype,
          .rows = rows,
          .cols = tensor.shape[0],
          .data = data(tensor),
          .layout = tensor.layout};
}

const GgufValue& GgufFile::require(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr)
    throw FormatError(
        cat(shown_path(path()), ": ", named("key", key), " is missing; convert the model again"));
  return *value;
}

const GgufValue& GgufFile::require_array(std::string_view key) const {
  const GgufValue& value = require(key);
  if (value.type == ValueType::Array && value.count > kMaxItems)
    throw FormatError(cat(shown_path(path()), ": ", named("key", key), " has ", value.count,
                          " items, but at most ", kMaxItems, " are allowed; convert the model again"));
  return value;
}

void GgufFile::fail_kind(std::string_view key, const GgufValue& value, const char* wanted) const {
  const bool is_array = value.type == ValueType::Array;
  throw FormatError(cat(shown_path(path()), ": ", named("key", key), " is ",
                        is_array ? "an array of " : "of type ", value_type_name(value.element), ", but ",
                        wanted, " is expected; convert the model again"));
}

int64_t GgufFile::get_int(std::string_view key) const {
  const GgufValue& value = require(key);
  if (!is_integer(value.type)) fail_kind(key, value, "an integer");
  const std::optional<int64_t> number = load_integer(value.type, value.data);
  if (!number) fail_kind(key, value, "a number below 2^63");
  return *number;
}

double GgufFile::get_float(std::string_view key) const {
  const GgufValue& value = require(key);
  double number = 0;
  if (value.type == ValueType::F32)
    number = load<float>(value.data);
  else if (value.type == ValueType::F64)
    number = load<double>(value.data);
  else
    fail_kind(key, value, "a float");
  if (!std::isfinite(number))
    throw FormatError(cat(shown_path(path()), ": ", named("key", key), " is ", number,
                          ", but a finite number is expected; convert the model again"));
  return number;
}

bool GgufFile::get_bool(std::string_view key) const {
  const GgufValue& value = require(key);
  if (value.type != ValueType::Bool) fail_kind(key, value, "a bool");
  return value.data[0] != 0;
}

std::string_view GgufFile::get_string(std::string_view key) const {
  const GgufValue& value = require(key);
  if (value.type != ValueType::String) fail_kind(key, value, "a string");
  const std::string_view text(reinterpret_cast<const char*>(value.data) + 8,
                              static_cast<size_t>(load<uint64_t>(value.data)));
  if (!is_utf8(text))
    throw FormatError(cat(shown_path(path()), ": the text of ", named("key", key),
                          " is not UTF-8; convert the model again"));
  return text;
}

int64_t GgufFile::int_or(std::string_view key, int64_t fallback) const {
  return find(key) ? get_int(key) : fallback;
}
double GgufFile::float_or(std::string_view key, double fallback) const {
  return find(key) ? get_float(key) : fallback;
}
bool GgufFile::bool_or(std::string_view key, bool fallback) const {
  return find(key) ? get_bool(key) : fallback;
}
std::string_view GgufFile::string_or(std::string_view key, std::string_view fallback) const {
  return find(key) ? get_string(key) : fallback;
}

std::vector<int64_t> GgufFile::get_ints(std::string_view key) const {
  const GgufValue& value = require_array(key);
  if (value.type != ValueType::Array || (!is_integer(value.element) && value.element != ValueType::Bool))
    fail_kind(key, value, "an array of integers or bools");
  const uint64_t step = scalar_bytes(value.element);
  std::vector<int64_t> out;
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    const std::optional<int64_t> number = load_integer(value.element, value.data + i * step);
    if (!number) fail_kind(key, value, "an array of numbers below 2^63");
    out.push_back(*number);
  }
  return out;
}

std::vector<double> GgufFile::get_floats(std::string_view key) const {
  const GgufValue& value = require_array(key);
  const bool is_f32 = value.element == ValueType::F32;
  if (value.type != ValueType::Array || (!is_f32 && value.element != ValueType::F64))
    fail_kind(key, value, "an array of floats");
  std::vector<double> out;
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    const double number = is_f32 ? load<float>(value.data + 4 * i) : load<double>(value.data + 8 * i);
    if (!std::isfinite(number))
      throw FormatError(cat(shown_path(path()), ": item ", i, " of ", named("key", key), " is ", number,
                            ", but a finite number is expected; convert the model again"));
    out.push_back(number);
  }
  return out;
}

std::vector<std::string_view> GgufFile::get_strings(std::string_view key) const {
  const GgufValue& value = require_array(key);
  if (value.type != ValueType::Array || value.element != ValueType::String)
    fail_kind(key, value, "an array of strings");
  std::vector<std::string_view> out;
  out.reserve(value.count);
  const uint8_t* p = value.data;
  for (uint64_t i = 0; i < value.count; ++i) {
    const size_t n = static_cast<size_t>(load<uint64_t>(p));
    out.emplace_back(reinterpret_cast<const char*>(p) + 8, n);
    p += 8 + n;
  }
  return out;
}

}  // namespace gemmule
