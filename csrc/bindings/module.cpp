// gemmule._core: the extension module. Errors, machine facts and conversions of numbers live here; files in
// bind_gguf.cpp, their string arrays in bind_strings.cpp, models and media embedders in bind_model.cpp,
// sessions in bind_session.cpp.
#include "bindings/module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernel_select.h"
#include "backend/cpu/roofline.h"
#include "core/error.h"
#include "quant/codec.h"

namespace py = pybind11;

namespace gemmule {
namespace {

// The Python class of the same name, in gemmule._errors.
void raise(const char* name, const std::exception& error) {
  const py::object type = py::module_::import("gemmule._errors").attr(name);
  PyErr_SetObject(type.ptr(), py::str(error.what()).ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const ContextLengthError& e) {
    const py::object type = py::module_::import("gemmule._errors").attr("ContextLengthError");
    const py::object value = type(e.what(), py::arg("n_prompt") = e.n_prompt, py::arg("n_ctx") = e.n_ctx);
    PyErr_SetObject(type.ptr(), value.ptr());
  } catch (const ModelNotFoundError& e) {
    raise("ModelNotFoundError", e);
  } catch (const FormatError& e) {
    raise("FormatError", e);
  } catch (const UnsupportedError& e) {
    raise("UnsupportedError", e);
  } catch (const NotEnoughMemoryError& e) {
    raise("NotEnoughMemoryError", e);
  } catch (const DeviceError& e) {
    raise("DeviceError", e);
  } catch (const Cancelled& e) {
    raise("Cancelled", e);
  } catch (const Error& e) {
    raise("Error", e);
  }
}

const DTypeInfo& dtype_named(const std::string& name) {
  const DTypeInfo* info = find_dtype(std::string_view(name));
  if (info == nullptr) throw std::invalid_argument(cat("\"", name, "\" is not a tensor type gemmule knows"));
  return *info;
}

py::array_t<float> dequantize(const py::array_t<uint8_t, py::array::c_style>& data, const std::string& type) {
  const DTypeInfo& info = dtype_named(type);
  if (data.size() % info.block_bytes != 0)
    throw std::invalid_argument(
        cat(data.size(), " bytes are not whole ", type, " blocks of ", info.block_bytes));
  py::array_t<float> out(data.size() / info.block_bytes * info.block_size);
  const uint8_t* src = data.data();
  float* dst = out.mutable_data();
  const py::ssize_t n = out.size();
  const py::gil_scoped_release nogil;
  codec(info.dtype).dequantize_row(src, dst, n);
  return out;
}

py::array_t<uint8_t> quantize(const py::array_t<float, py::array::c_style>& array, const std::string& type) {
  const DTypeInfo& info = dtype_named(type);
  if (array.size() % info.block_size != 0)
    throw std::invalid_argument(
        cat(array.size(), " numbers are not whole ", type, " blocks of ", info.block_size));
  py::array_t<uint8_t> out(array.size() / info.block_size * info.block_bytes);
  const float* src = array.data();
  uint8_t* dst = out.mutable_data();
  const py::ssize_t n = array.size();
  const py::gil_scoped_release nogil;
  codec(info.dtype).quantize_row(src, dst, n);
  return out;
}

py::dict cpu_info() {
  const CpuFeatures features = detect_cpu_features();
  py::dict flags, info;
  flags["avx2"] = features.avx2;
  flags["avx_vnni"] = features.avx_vnni;
  flags["avx512_vnni"] = features.avx512_vnni;
  flags["neon"] = features.neon;
  flags["neon_dotprod"] = features.neon_dotprod;
  flags["neon_i8mm"] = features.neon_i8mm;
  py::list levels;
  for (const KernelLevel& level : kernel_levels(features)) {
    py::dict entry;
    entry["name"] = level.table->name;
    entry["description"] = level.table->description;
    entry["supported"] = level.supported;
    levels.append(entry);
  }
  info["features"] = flags;
  info["levels"] = levels;
  info["best"] = select_kernels(features, "").name;
  info["n_physical"] = physical_cores();
  info["n_logical"] = std::thread::hardware_concurrency();
  return info;
}

py::list roofline(int n_threads, const std::string& path, int64_t n_bytes) {
  std::vector<RooflineResult> results;
  {
    const py::gil_scoped_release release;
    results = measure_roofline(n_threads, path, n_bytes);
  }
  py::list out;
  for (const RooflineResult& result : results) {
    py::dict entry;
    entry["name"] = result.name;
    entry["threads"] = result.threads;
    entry["value"] = result.value;
    entry["unit"] = result.unit;
    entry["note"] = result.note;
    out.append(entry);
  }
  return out;
}

py::dict build_info() {
  py::dict info;
  info["version"] = GEMMULE_VERSION;
  info["build_type"] = GEMMULE_BUILD_TYPE;
  info["compiler"] = __VERSION__;
  return info;
}

}  // namespace

void bind_errors(py::module_&) { py::register_exception_translator(&translate); }

}  // namespace gemmule

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The C++ core of gemmule. Use the classes of the gemmule package.";
  gemmule::bind_errors(m);
  gemmule::bind_gguf(m);
  gemmule::bind_strings(m);
  gemmule::bind_model(m);
  gemmule::bind_session(m);
  gemmule::bind_drafter(m);
  gemmule::bind_drafting(m);
  gemmule::bind_encoder(m);
  m.def("dequantize", &gemmule::dequantize, py::arg("data").noconvert(), py::arg("type"),
        "uint8 blocks of a tensor type -> float32, one dimension.");
  m.def("quantize", &gemmule::quantize, py::arg("array").noconvert(), py::arg("type"),
        "float32 numbers -> uint8 blocks of a tensor type, one dimension.");
  m.def("cpu_info", &gemmule::cpu_info,
        "Instruction-set levels of this build and what this machine can run.");
  m.def("measure_roofline", &gemmule::roofline, py::arg("n_threads") = 0, py::arg("path") = "",
        py::arg("n_bytes") = gemmule::kRooflineBytes,
        "What this machine can do: clock, read bandwidth, arithmetic peaks, the cost of a barrier, V(T).");
  m.def("build_info", &gemmule::build_info, "Version, build type and compiler of the extension.");
}
