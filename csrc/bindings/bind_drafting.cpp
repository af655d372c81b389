// DraftTable and Drafting: running tokens ahead that are expected to be chosen.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

#include "bindings/gil.h"
#include "bindings/locked_sampler.h"
#include "bindings/locked_session.h"
#include "bindings/mask.h"
#include "bindings/module.h"
#include "engine/drafting.h"
#include "engine/loaded_drafter.h"

namespace py = pybind11;

namespace gemmule {
namespace {

// One request's drafting, which is used with its session's lock held.
std::unique_ptr<Drafting> make_drafting(std::shared_ptr<DraftTable> table, const LockedSampler& sampler,
                                        size_t n_prompt, const std::vector<int32_t>& ends,
                                        std::shared_ptr<LoadedDrafter> drafter, bool lookup, int64_t length,
                                        const std::vector<int32_t>& script, double accept, uint64_t seed) {
  SamplerOptions sampling = sampler.sampler.options();
  sampling.n_logprobs = -1;
  return std::make_unique<Drafting>(
      DraftOptions{lookup, length, std::move(sampling), n_prompt, ends, {script, accept, seed}},
      std::move(table), std::move(drafter));
}

void append(Drafting& self, LockedSession& session, int32_t token, int64_t most,
            const std::vector<int32_t>& expected, const std::optional<Mask>& mask, const StopToken* stop) {
  std::vector<uint32_t> allowed = mask_words(mask, session.session.model().config().n_vocab);
  CallStop call(stop);
  session.with([&](Session& s) {
    self.expect(expected, std::move(allowed));
    s.append_drafting(token, self, most, call.token());
  });
}

std::vector<std::pair<int64_t, int64_t>> by_place(const Drafting& self) {
  std::vector<std::pair<int64_t, int64_t>> out;
  const DraftCounts& counts = self.counts();
  for (size_t i = 0; i < counts.reached.size() && counts.reached[i] > 0; ++i)
    out.emplace_back(counts.reached[i], counts.right[i]);
  return out;
}

}  // namespace

void bind_drafting(py::module_& m) {
  py::class_<DraftTable, std::shared_ptr<DraftTable>>(
      m, "DraftTable", "What a model's requests have learnt about drafting: times of passes, chances.")
      .def(py::init([](const std::vector<double>& passes) {
             return std::make_shared<DraftTable>(passes.empty() ? PassTimes() : PassTimes(passes));
           }),
           py::arg("passes") = std::vector<double>(),
           "passes: V(1), V(2), ... as they are on this machine, for passes that were never run.")
      .def_property_readonly("n_passes", &DraftTable::n_passes)
      .def_property("numbers", &DraftTable::numbers,
                    [](DraftTable& self, const std::vector<double>& numbers) { self.set_numbers(numbers); })
      .def(
          "pass_times",
          [](const DraftTable& self) {
            std::map<int64_t, double> out;
            const PassTimes times = self.times();
            for (int64_t n = 1; n <= kMaxDrafts + 1; ++n)
              if (times.is_measured(n)) out[n] = times.seconds(n);
            return out;
          },
          "Seconds of a pass by its rows, of those that were run.");

  py::class_<Drafting>(m, "Drafting", "The drafts of one request.")
      .def(py::init(&make_drafting), py::arg("table").none(false), py::arg("sampler"), py::kw_only(),
           py::arg("n_prompt") = 0, py::arg("ends") = std::vector<int32_t>(), py::arg("drafter") = nullptr,
           py::arg("lookup") = true, py::arg("length") = 0, py::arg("script") = std::vector<int32_t>(),
           py::arg("accept") = 1.0, py::arg("seed") = 0,
           "length: how many tokens to draft; 0: as many as pay. script, for measuring: the tokens by "
           "position, of which each is drafted rightly with the chance `accept`.")
      .def("append", &append, py::arg("session"), py::arg("token"), py::kw_only(), py::arg("most"),
           py::arg("expected") = std::vector<int32_t>(), py::arg("mask").noconvert() = py::none(),
           py::arg("stop") = nullptr,
           "Run one token in a session, and in the same pass up to `most` that are expected behind it. "
           "expected: what comes next in all likelihood, if that is known. mask: which tokens may come next, "
           "as `sample` takes it.")
      .def_property_readonly("has_drafter", &Drafting::has_drafter)
      .def_property_readonly("n_drafted", [](const Drafting& self) { return self.counts().drafted; })
      .def_property_readonly("n_accepted", [](const Drafting& self) { return self.counts().accepted; })
      .def_property_readonly("by_place", &by_place,
                             "(times the draft at that place of a round was reached, times it was right).");
}

}  // namespace gemmule
