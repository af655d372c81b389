// A GGUF file again, with some of its keys and tensors changed, left out or added.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "gguf/gguf_builder.h"
#include "gguf/gguf_reader.h"

namespace gemmule::testing {

struct EditedTensor {
  std::string name;
  std::vector<uint64_t> shape;
  DType dtype = DType::F32;
  std::string data;
};
struct FileEdit {
  std::function<bool(EditedTensor&)> tensor = [](EditedTensor&) { return true; };  // false drops it
  std::function<void(const std::string& key, std::string& bytes)> key =
      {};  // changes the bytes of a value; of items only whole ones may go or come
  std::vector<EditedTensor> more = {};
};

inline std::string edited_file(const std::string& path, const FileEdit& edit) {
  const auto file = GgufFile::open(path);
  GgufBuilder builder;
  for (const auto& [key, value] : file->entries()) {
    std::string bytes(reinterpret_cast<const char*>(value.data), value.n_bytes);
    if (edit.key) edit.key(std::string(key), bytes);
    if (value.type == ValueType::Array)
      bytes =
          gguf_array(value.element, value.count * bytes.size() / std::max<size_t>(1, value.n_bytes), bytes);
    builder.add(key, value.type, bytes);
  }
  std::vector<EditedTensor> tensors;
  for (const GgufTensor& tensor : file->tensors()) {
    EditedTensor t{tensor.name, {}, tensor.dtype, {}};
    for (const int64_t dim : tensor.shape) t.shape.push_back(static_cast<uint64_t>(dim));
    t.data.assign(reinterpret_cast<const char*>(file->data(tensor)), tensor.n_bytes);
    if (edit.tensor(t)) tensors.push_back(t);
  }
  tensors.insert(tensors.end(), edit.more.begin(), edit.more.end());
  std::string data;
  for (const EditedTensor& t : tensors) {
    builder.tensor({t.name, t.shape, static_cast<uint32_t>(t.dtype), t.data.size(), {}, {}});
    data.resize((data.size() + 31) / 32 * 32);
    data += t.data;
  }
  std::string image = builder.header();
  image.resize((image.size() + 31) / 32 * 32);
  return image + data;
}

}  // namespace gemmule::testing
