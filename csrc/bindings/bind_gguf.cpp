// GgufFile: the header of a model file, read-only.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/module.h"
#include "core/error.h"
#include "gguf/gguf_reader.h"

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
    items.append(
        py::make_tuple(t.name, dtype_name(t.dtype), py::tuple(py::cast(t.shape)), t.offset, t.n_bytes));
  return items;
}

}  // namespace

void bind_gguf(py::module_& m) {
  py::class_<GgufFile, std::shared_ptr<GgufFile>>(m, "GgufFile", "The validated header of a GGUF file.")
      .def(py::init([](const std::string& path) {
             const py::gil_scoped_release nogil;
             return std::const_pointer_cast<GgufFile>(GgufFile::open(path));
           }),
           py::arg("path"))
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
           "(name, type, shape with the contiguous dimension first, offset, bytes) of each tensor.");
}

}  // namespace gemmule
