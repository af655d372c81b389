// GgufFile, the header of a model file, read-only; and what a converter needs to make one: Encoder and Xxh64.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "backend/cpu/cpu_features.h"
#include "bindings/gil.h"
#include "bindings/module.h"
#include "core/error.h"
#include "core/owned_mutex.h"
#include "core/xxh64.h"
#include "gguf/gguf_reader.h"
#include "quant/encode.h"
#include "quant/packed.h"

namespace py = pybind11;

namespace gemmule {
namespace {

const GgufValue& need(const GgufFile& file, const std::string& key) {
  const GgufValue* value = file.find(key);
  if (value == nullptr) throw py::key_error(key);
  return *value;
}

std::string type_of(const GgufFile& file, const std::string& key) {
  const GgufValue& value = need(file, key);
  if (value.type != ValueType::Array) return value_type_name(value.type);
  return cat("array[", value_type_name(value.element), "] x ", value.count);
}

py::list get_token_bytes(const GgufFile& file, const std::string& key) {
  need(file, key);
  py::list items;
  for (const std::string_view item : file.get_strings(key)) items.append(py::bytes(item.data(), item.size()));
  return items;
}

py::list get_texts(const GgufFile& file, const std::string& key) {
  py::list items;
  size_t index = 0;
  for (const std::string_view item : file.get_strings(key)) {
    PyObject* text = PyUnicode_DecodeUTF8(item.data(), static_cast<Py_ssize_t>(item.size()), "strict");
    if (text == nullptr) {
      PyErr_Clear();
      throw FormatError(
          cat(file.path(), ": item ", index, " of ", key, " is not valid UTF-8; the file is damaged"));
    }
    items.append(py::reinterpret_steal<py::str>(text));
    ++index;
  }
  return items;
}

template <class T>
py::array to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::object get(const GgufFile& file, const std::string& key) {
  const GgufValue& value = need(file, key);
  switch (value.type) {
    case ValueType::String:
      return py::str(std::string(file.get_string(key)));
    case ValueType::Bool:
      return py::bool_(file.get_bool(key));
    case ValueType::F32:
    case ValueType::F64:
      return py::float_(file.get_float(key));
    case ValueType::Array:
      if (value.element == ValueType::String) return get_texts(file, key);
      if (value.element == ValueType::F32 || value.element == ValueType::F64)
        return to_array(file.get_floats(key));
      return to_array(file.get_ints(key));
    default:
      return py::int_(file.get_int(key));
  }
}

py::list tensors(const GgufFile& file) {
  py::list items;
  for (const GgufTensor& t : file.tensors())
    items.append(py::make_tuple(t.name, dtype_name(t.dtype), py::tuple(py::cast(t.shape)), t.offset,
                                t.n_bytes, t.layout == Layout::R8P64 ? "r8p64" : "gguf"));
  return items;
}

const DTypeInfo& type_named(const std::string& name) {
  const DTypeInfo* info = find_dtype(std::string_view(name));
  if (info == nullptr) throw std::invalid_argument(cat("\"", name, "\" is not a tensor type gemmule knows"));
  return *info;
}

std::shared_ptr<GgufFile> open_image(const std::string& path, uint64_t offset, uint64_t size) {
  const py::gil_scoped_release nogil;
  auto file = std::make_shared<const MappedFile>(path);
  const auto file_size = static_cast<uint64_t>(file->size());
  if (size == 0 && offset < file_size) size = file_size - offset;
  return std::make_shared<GgufFile>(std::move(file), offset, size);
}

using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

// pack_rows or unpack_rows into a new array.
template <void (*turn)(DType, int64_t, int64_t, const uint8_t*, uint8_t*)>
Bytes turn_rows(const std::string& type, int64_t rows, int64_t cols, const Bytes& data) {
  const DTypeInfo& info = type_named(type);
  if (!can_pack(info.dtype, rows, cols))
    throw std::invalid_argument(cat("a ", type, " matrix of ", rows, " rows of ", cols,
                                    " elements has no packed form; leave it in GGUF's layout"));
  const int64_t n_blocks = cols / info.block_size;
  if (data.size() % info.block_bytes != 0 || data.size() / info.block_bytes % n_blocks != 0 ||
      data.size() / info.block_bytes / n_blocks != rows)
    throw std::invalid_argument(
        cat(data.size(), " bytes are not ", rows, " ", type, " rows of ", cols, " elements"));
  Bytes out(data.size());
  const uint8_t* from = data.data();
  uint8_t* to = out.mutable_data();
  const py::gil_scoped_release nogil;
  turn(info.dtype, rows, cols, from, to);
  return out;
}

// An Encoder whose callers take turns; the lock is taken after the GIL is released.
struct LockedEncoder {
  Encoder encoder;
  OwnedMutex mutex{};
};

std::unique_ptr<LockedEncoder> make_encoder(int n_threads, const std::string& isa) {
  if (n_threads < 0) throw std::invalid_argument("n_threads must be 0 (all cores) or more");
  const py::gil_scoped_release nogil;
  return std::unique_ptr<LockedEncoder>(
      new LockedEncoder{Encoder(n_threads > 0 ? n_threads : physical_cores(), isa)});
}

int64_t count_rows(const Bytes& src, const DTypeInfo& type, int64_t n_cols) {
  Encoder::check_row(type.dtype, n_cols);
  const int64_t row = row_bytes(type.dtype, n_cols);
  if (src.size() % row != 0)
    throw std::invalid_argument(cat(src.size(), " bytes are not whole ", type.name, " rows of ", row));
  return src.size() / row;
}

py::tuple encode(LockedEncoder& self, const Bytes& src, const std::string& src_type, int64_t n_cols,
                 const std::string& dst_type, Bytes& out, const std::optional<Floats>& importance,
                 const StopToken* stop) {
  const DTypeInfo& from = type_named(src_type);
  const DTypeInfo& to = type_named(dst_type);
  const int64_t n_rows = count_rows(src, from, n_cols);
  Encoder::check_row(to.dtype, n_cols);
  if (out.size() != n_rows * row_bytes(to.dtype, n_cols))
    throw std::invalid_argument(
        cat("out has ", out.size(), " bytes, the rows take ", n_rows * row_bytes(to.dtype, n_cols)));
  if (importance && importance->size() != n_cols)
    throw std::invalid_argument(cat("importance has ", importance->size(), " values, a row has ", n_cols));
  if (importance) {
    const float* w = importance->data();
    for (int64_t i = 0; i < n_cols; ++i)
      if (!(w[i] >= 0.0f && w[i] <= 3.402823466e+38f))
        throw std::invalid_argument(
            cat("importance[", i, "] is ", w[i], "; it must be finite and not negative"));
  }
  const EncodeRequest request{src.data(),
                              from.dtype,
                              out.mutable_data(),
                              to.dtype,
                              n_rows,
                              n_cols,
                              importance ? importance->data() : nullptr};
  EncodeStats stats;
  {
    const py::gil_scoped_release nogil;
    const OwnedLock lock(self.mutex);
    const CallStop call(stop);
    stats = self.encoder.encode(request, call.token());
  }
  return py::make_tuple(stats.error2, stats.norm2, stats.weighted_error2, stats.weighted_norm2,
                        stats.first_bad);
}

double lattice_q4_0(LockedEncoder& self, const Bytes& src, const std::string& src_type, int64_t n_cols) {
  const DTypeInfo& from = type_named(src_type);
  if (from.block_size != 1)
    throw std::invalid_argument(cat("src_type must be a float type, not ", from.name));
  const int64_t n_rows = count_rows(src, from, n_cols);
  if (n_cols % 32 != 0)
    throw std::invalid_argument(cat("rows of ", n_cols, " elements are not whole blocks of 32"));
  const uint8_t* data = src.data();
  const py::gil_scoped_release nogil;
  const OwnedLock lock(self.mutex);
  return self.encoder.lattice_q4_0(data, from.dtype, n_rows * n_cols);
}

void update_hash(Xxh64& self, const py::buffer& data) {
  const py::buffer_info info = data.request();
  if (!PyBuffer_IsContiguous(info.view(), 'C')) throw std::invalid_argument("data must be contiguous");
  const py::gil_scoped_release nogil;
  self.update(info.ptr, static_cast<size_t>(info.size * info.itemsize));
}

}  // namespace

void bind_encoder(py::module_& m) {
  py::class_<LockedEncoder>(m, "Encoder", "Encodes rows of numbers into a tensor type on its own threads.")
      .def(py::init(&make_encoder), py::arg("n_threads") = 0, py::arg("isa") = "")
      .def("encode", &encode, py::arg("src").noconvert(), py::arg("src_type"), py::arg("n_cols"),
           py::arg("dst_type"), py::arg("out").noconvert(), py::kw_only(),
           py::arg("importance").noconvert() = py::none(), py::arg("stop") = py::none(),
           "(error2, norm2, weighted_error2, weighted_norm2, first_bad) of the rows, which go to `out`.")
      .def("lattice_q4_0", &lattice_q4_0, py::arg("src").noconvert(), py::arg("src_type"), py::arg("n_cols"),
           "The share of the blocks of 32 that Q4_0 stores without loss, as training for Q4_0 leaves them.")
      .def_property_readonly("n_threads", [](const LockedEncoder& self) { return self.encoder.n_threads(); })
      .def_property_readonly("isa",
                             [](const LockedEncoder& self) { return std::string(self.encoder.isa()); });
  py::class_<Xxh64>(m, "Xxh64", "The 64-bit checksum of a tensor, fed in pieces.")
      .def(py::init<>())
      .def("update", &update_hash, py::arg("data"))
      .def("digest", &Xxh64::digest, "The checksum of everything so far.");
  m.def(
      "block_size",
      [](const std::string& type) {
        const DTypeInfo& info = type_named(type);
        return py::make_tuple(info.block_size, info.block_bytes);
      },
      py::arg("type"), "(elements, bytes) of a block of a tensor type.");
}

void bind_gguf(py::module_& m) {
  py::class_<GgufFile, std::shared_ptr<GgufFile>>(m, "GgufFile", "The validated header of a GGUF file.")
      .def(py::init(&open_image), py::arg("path"), py::arg("offset") = 0, py::arg("size") = 0)
      .def_property_readonly("path", &GgufFile::path)
      .def_property_readonly("version", &GgufFile::version)
      .def_property_readonly("alignment", &GgufFile::alignment)
      .def_property_readonly("data_offset", &GgufFile::data_offset)
      .def_property_readonly("file_size", [](const GgufFile& f) { return f.file().size(); })
      .def("keys",
           [](const GgufFile& f) {
             std::vector<std::string> keys;
             for (const auto& [key, value] : f.entries()) keys.push_back(key);
             return keys;
           })
      .def("type_of", &type_of, py::arg("key"), "\"u32\", \"string\", \"array[string] x 262144\", ...")
      .def("get", &get, py::arg("key"), "The value: int, float, bool, str, numpy array or list of str.")
      .def("get_token_bytes", &get_token_bytes, py::arg("key"), "A string array as raw bytes.")
      .def("tensors", &tensors,
           "(name, type, shape with the contiguous dimension first, offset, bytes, layout) of each tensor.");
  m.def("pack_rows", &turn_rows<pack_rows>, py::arg("dtype"), py::arg("rows"), py::arg("cols"),
        py::arg("data").noconvert(), "The GGUF rows of a matrix in the packed layout r8p64, as many bytes.");
  m.def("unpack_rows", &turn_rows<unpack_rows>, py::arg("dtype"), py::arg("rows"), py::arg("cols"),
        py::arg("data").noconvert(), "The packed bytes of a matrix as GGUF rows.");
}

}  // namespace gemmule
