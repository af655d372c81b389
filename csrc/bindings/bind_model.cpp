// StopToken, Model and MediaEmbedder: what sessions stand on. Calls that compute release the GIL first and
// then take the model's turn.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>

#include "bindings/gil.h"
#include "bindings/module.h"
#include "core/error.h"
#include "engine/loaded_media.h"
#include "engine/memory_plan.h"

namespace py = pybind11;

namespace gemmule {

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

Packing packing_of(const std::string& name) {
  if (name == "auto") return Packing::Auto;
  if (name == "always") return Packing::Always;
  if (name == "never") return Packing::Never;
  throw std::invalid_argument(cat("packing \"", name, "\" is not known; choose auto, always or never"));
}

std::shared_ptr<LoadedModel> load_model(std::shared_ptr<GgufFile> file, int n_threads, const std::string& isa,
                                        int64_t n_ubatch, const std::string& packing, int decode_threads) {
  const LoadOptions options{n_threads, isa, n_ubatch, packing_of(packing), decode_threads};
  const py::gil_scoped_release nogil;
  return std::make_shared<LoadedModel>(std::move(file), options);
}

std::shared_ptr<LoadedModel> open_model(const std::string& path, int n_threads, const std::string& isa,
                                        int64_t n_ubatch, const std::string& packing, int decode_threads) {
  const LoadOptions options{n_threads, isa, n_ubatch, packing_of(packing), decode_threads};
  const py::gil_scoped_release nogil;
  return std::make_shared<LoadedModel>(GgufFile::open(path), options);
}

std::unique_ptr<LoadedMedia> load_media(std::shared_ptr<LoadedModel> model, std::shared_ptr<GgufFile> file) {
  const py::gil_scoped_release nogil;
  return std::make_unique<LoadedMedia>(std::move(model), std::move(file));
}

Floats new_rows(const LoadedMedia& self, int64_t n_rows) {
  return Floats({static_cast<py::ssize_t>(n_rows), static_cast<py::ssize_t>(self.config().d_model)});
}

Floats embed_image(LoadedMedia& self, const Bytes& pixels, const StopToken* stop) {
  if (pixels.ndim() != 3 || pixels.shape(2) != 3)
    throw std::invalid_argument("pixels must have the shape [height, width, 3]");
  const int64_t height = pixels.shape(0), width = pixels.shape(1);
  Floats out = new_rows(self, self.image_rows(height, width));
  const uint8_t* from = pixels.data();
  float* to = out.mutable_data();
  const CallStop call(stop);
  const py::gil_scoped_release nogil;
  self.embed_image(from, height, width, to, call.token());
  return out;
}

Floats embed_audio(LoadedMedia& self, const Floats& samples, const StopToken* stop) {
  if (samples.ndim() != 1) throw std::invalid_argument("samples must have one dimension");
  Floats out = new_rows(self, self.audio_rows(samples.size()));
  const std::span<const float> from(samples.data(), static_cast<size_t>(samples.size()));
  float* to = out.mutable_data();
  const CallStop call(stop);
  const py::gil_scoped_release nogil;
  for (size_t i = 0; i < from.size(); ++i)
    if (!std::isfinite(from[i])) throw std::invalid_argument(cat("sample ", i, " is not a finite number"));
  self.embed_audio(from, to, call.token());
  return out;
}

py::dict memory_plan(const GgufFile& file, int64_t n_ctx, const std::string& kv_type, int64_t n_ubatch,
                     const GgufFile* mmproj, const GgufFile* drafter, int64_t snapshot_limit, bool packing) {
  const KvTypes types = parse_kv_types(kv_type);
  if (n_ctx < 1 || n_ctx > kMaxContext)
    throw std::invalid_argument(cat("n_ctx is ", n_ctx, "; choose 1 to ", kMaxContext));
  const MemoryPlan plan = plan_memory(file, n_ctx, types, n_ubatch, mmproj, drafter, snapshot_limit, packing);
  py::dict out;
  out["weights"] = plan.weights;
  out["kv"] = plan.kv;
  out["scratch"] = plan.scratch;
  out["media"] = plan.media;
  out["drafter"] = plan.drafter;
  out["snapshots"] = plan.snapshots;
  out["total"] = plan.total;
  out["available"] = plan.available;
  out["n_ctx_train"] = Config::from_gguf(file).n_ctx_train;
  return out;
}

int64_t image_memory(const GgufFile& file, int64_t n_rows, int64_t n_ctx, const std::string& kv_type,
                     int64_t n_ubatch) {
  return image_bytes(Config::from_gguf(file), n_ctx, parse_kv_types(kv_type), n_ubatch, n_rows);
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<StopToken>(m, "StopToken", "A flag that ends a computation from any thread.")
      .def(py::init<const StopToken*>(), py::arg("follows") = nullptr, py::keep_alive<1, 2>())
      .def("cancel", &StopToken::cancel)
      .def("reset", &StopToken::reset)
      .def_property_readonly("cancelled", &StopToken::cancelled);

  py::class_<LoadedModel, std::shared_ptr<LoadedModel>>(m, "Model", "A loaded model; sessions share it.")
      .def(py::init(&open_model), py::arg("path"), py::kw_only(), py::arg("n_threads") = 0,
           py::arg("isa") = "", py::arg("n_ubatch") = 256, py::arg("packing") = "auto",
           py::arg("decode_threads") = 0)
      .def(py::init(&load_model), py::arg("file").none(false), py::kw_only(), py::arg("n_threads") = 0,
           py::arg("isa") = "", py::arg("n_ubatch") = 256, py::arg("packing") = "auto",
           py::arg("decode_threads") = 0)
      .def_property_readonly(
          "file",
          [](const LoadedModel& model) { return std::const_pointer_cast<GgufFile>(model.shared_file()); })
      .def_property_readonly("architecture",
                             [](const LoadedModel& model) { return model.config().architecture; })
      .def_property_readonly(
          "name",
          [](const LoadedModel& model) { return std::string(model.file().string_or("general.name", "")); })
      .def_property_readonly("n_layers", [](const LoadedModel& model) { return model.config().n_layers; })
      .def_property_readonly("d_model", [](const LoadedModel& model) { return model.config().d_model; })
      .def_property_readonly("n_vocab", [](const LoadedModel& model) { return model.config().n_vocab; })
      .def_property_readonly("n_ctx_train",
                             [](const LoadedModel& model) { return model.config().n_ctx_train; })
      .def_property_readonly("suppress_tokens",
                             [](const LoadedModel& model) { return model.config().suppress_tokens; })
      .def_property_readonly("n_params", &LoadedModel::n_params)
      .def_property_readonly("weight_bytes", &LoadedModel::weight_bytes)
      .def_property_readonly("packed_bytes", &LoadedModel::packed_bytes)
      .def_property_readonly("n_ubatch", &LoadedModel::n_ubatch)
      .def_property_readonly("n_threads",
                             [](const LoadedModel& model) { return model.backend().n_threads(); })
      .def_property_readonly("isa",
                             [](const LoadedModel& model) { return std::string(model.backend().isa()); });

  py::class_<LoadedMedia>(m, "MediaEmbedder", "Turns images and sound into rows that a model reads.")
      .def(py::init(&load_media), py::arg("model").none(false), py::arg("file").none(false))
      .def_property_readonly("has_image", [](const LoadedMedia& self) { return self.config().has_image; })
      .def_property_readonly("has_audio", [](const LoadedMedia& self) { return self.config().has_audio; })
      .def_property_readonly("d_model", [](const LoadedMedia& self) { return self.config().d_model; })
      .def_property_readonly("patch_size", [](const LoadedMedia& self) { return self.config().tile; })
      .def_property_readonly("n_positions", [](const LoadedMedia& self) { return self.config().n_positions; })
      .def_property_readonly("samples_per_token",
                             [](const LoadedMedia& self) { return self.config().samples_per_token; })
      .def_property_readonly("image_attention",
                             [](const LoadedMedia& self) { return self.config().image_attention; })
      .def("embed_image", &embed_image, py::arg("pixels").noconvert(), py::kw_only(),
           py::arg("stop") = nullptr,
           "uint8 [height, width, 3], sides multiples of patch_size -> float32 [n, d_model], a row per tile.")
      .def("embed_audio", &embed_audio, py::arg("samples").noconvert(), py::kw_only(),
           py::arg("stop") = nullptr,
           "float32 samples -> float32 [n, d_model], a row for each samples_per_token of them.");

  m.def("memory_plan", &memory_plan, py::arg("file"), py::kw_only(), py::arg("n_ctx"),
        py::arg("kv_type") = "f16", py::arg("n_ubatch") = 256, py::arg("mmproj") = nullptr,
        py::arg("drafter") = nullptr, py::arg("snapshot_limit") = 0, py::arg("packing") = true,
        "Bytes a model needs, from its header alone.");
  m.def("image_memory", &image_memory, py::arg("file"), py::arg("n_rows"), py::kw_only(), py::arg("n_ctx"),
        py::arg("kv_type") = "f16", py::arg("n_ubatch") = 256,
        "Bytes that an image of n_rows tokens needs beside steps of text.");
  m.def("available_memory", &available_memory, "Bytes this process may still take; 0: unknown.");
}

}  // namespace gemmule
