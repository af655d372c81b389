// Drafter: the network that guesses tokens ahead of a session, one step at a time.
#include <pybind11/numpy.h>

#include "bindings/gil.h"
#include "bindings/locked_session.h"
#include "bindings/module.h"
#include "core/error.h"
#include "engine/loaded_drafter.h"

namespace py = pybind11;

namespace gemmule {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

std::shared_ptr<LoadedDrafter> load_drafter(std::shared_ptr<LoadedModel> model,
                                            std::shared_ptr<GgufFile> file, int64_t draft_vocab) {
  const py::gil_scoped_release nogil;
  return std::make_shared<LoadedDrafter>(std::move(model), std::move(file), draft_vocab);
}

py::tuple step(LoadedDrafter& self, LockedSession& session, int32_t token, const Floats& hidden, int64_t pos,
               const StopToken* stop) {
  const DrafterConfig& c = self.config();
  if (&session.session.model() != &self.model())
    throw std::invalid_argument("the session belongs to another model than the drafter");
  if (hidden.ndim() != 1 || hidden.size() != c.d_target)
    throw std::invalid_argument(cat("hidden must have the shape [", c.d_target, "]"));
  const std::vector<float> from(hidden.data(), hidden.data() + hidden.size());
  Floats logits(c.stack.n_vocab), next(c.d_target);
  float* const to_logits = logits.mutable_data();
  float* const to_next = next.mutable_data();
  const CallStop call(stop);
  session.with([&](Session& s) {
    if (pos > s.n_ready())
      throw std::invalid_argument(cat("the position is ", pos, " and the session holds the keys of ",
                                      s.n_ready(), " tokens; append or read again first"));
    s.model().run(1, call.token(), [&](Gemma4&) {
      const Drafter::Step result = self.drafter().step(token, from, pos, s.kv());
      std::copy(result.logits.begin(), result.logits.end(), to_logits);
      std::copy(result.hidden.begin(), result.hidden.end(), to_next);
    });
  });
  return py::make_tuple(logits, next);
}

}  // namespace

void bind_drafter(py::module_& m) {
  py::class_<LoadedDrafter, std::shared_ptr<LoadedDrafter>>(m, "Drafter",
                                                            "Guesses the tokens that a model will choose.")
      .def(py::init(&load_drafter), py::arg("model").none(false), py::arg("file").none(false), py::kw_only(),
           py::arg("draft_vocab") = 0)
      .def_property_readonly("weight_bytes", &LoadedDrafter::weight_bytes)
      .def("step", &step, py::arg("session"), py::arg("token"), py::arg("hidden").noconvert(), py::arg("pos"),
           py::kw_only(), py::arg("stop") = nullptr,
           "(logits, next hidden) of what follows `token`. hidden: float32 [d_model] of the token before it, "
           "the model's or that of the step before; pos: of the first token of the round.");
  m.def(
      "check_drafter",
      [](const GgufFile& file, const GgufFile& target) {
        DrafterConfig::from_gguf(file, Config::from_gguf(target));
      },
      py::arg("file"), py::arg("target"),
      "Refuses a file that is no drafter of the target, by their headers.");
}

}  // namespace gemmule
