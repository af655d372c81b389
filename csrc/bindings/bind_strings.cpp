// StringIndex: the tokens and merges of a vocabulary, searched in place.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/module.h"
#include "gguf/gguf_reader.h"
#include "gguf/string_index.h"

namespace py = pybind11;

namespace gemmule {
namespace {

std::unique_ptr<StringIndex> index_of_file(const std::shared_ptr<GgufFile>& file, const std::string& key) {
  if (file->find(key) == nullptr) throw py::key_error(key);
  const py::gil_scoped_release nogil;
  return std::make_unique<StringIndex>(file->get_strings(key), file);
}

std::unique_ptr<StringIndex> index_of_list(const std::vector<py::bytes>& items) {
  const auto owned = std::make_shared<std::vector<std::string>>(items.begin(), items.end());
  return std::make_unique<StringIndex>(std::vector<std::string_view>(owned->begin(), owned->end()), owned);
}

py::bytes item(const StringIndex& self, int64_t i) {
  if (i < 0 || static_cast<uint64_t>(i) >= self.size()) throw py::index_error("there is no such string");
  const std::string_view text = self[static_cast<size_t>(i)];
  return {text.data(), text.size()};
}

std::optional<uint32_t> find(const StringIndex& self, const py::bytes& text) {
  return self.find(std::string_view(text));
}

py::list find_inside(const StringIndex& self, const py::bytes& text) {
  std::vector<uint32_t> found;
  {
    const std::string_view view(text);
    const py::gil_scoped_release nogil;
    found = self.find_inside(view);
  }
  py::list out;
  for (const uint32_t i : found) {
    const std::string_view name = self[i];
    out.append(py::make_tuple(i, py::bytes(name.data(), name.size())));
  }
  return out;
}

}  // namespace

void bind_strings(py::module_& m) {
  py::class_<StringIndex>(m, "StringIndex", "A string array that is searched where it lies in the file.")
      .def(py::init(&index_of_file), py::arg("file"), py::arg("key"))
      .def(py::init(&index_of_list), py::arg("items"))
      .def("__len__", &StringIndex::size)
      .def("__getitem__", &item, py::arg("i"))
      .def("find", &find, py::arg("text"), "The position of a string, the last one of equal ones, or None.")
      .def("find_inside", &find_inside, py::arg("text"),
           "(position, string) of all items that are part of a UTF-8 text, cut between characters.")
      .def_property_readonly("first_not_utf8", &StringIndex::first_not_utf8)
      .def_property_readonly("first_repeated", &StringIndex::first_repeated);
}

}  // namespace gemmule
