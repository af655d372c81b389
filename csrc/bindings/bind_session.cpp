// Session, Sampler and ImportanceCollector: everything that holds or feeds a timeline of tokens. Every call
// that computes releases the GIL first and then locks its session.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "bindings/gil.h"
#include "bindings/locked_sampler.h"
#include "bindings/locked_session.h"
#include "bindings/mask.h"
#include "bindings/module.h"
#include "core/error.h"
#include "core/owned_mutex.h"
#include "engine/imatrix.h"
#include "engine/session_file.h"

namespace py = pybind11;

namespace gemmule {
namespace {

using Tokens = py::array_t<int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
// (first row, vectors [n, d_model], whether the rows see each other)
using Media = std::vector<std::tuple<int64_t, Floats, bool>>;

// A copy: the caller's array could change while the GIL is released.
std::vector<int32_t> ids_of(const Tokens& tokens, const char* name) {
  if (tokens.ndim() != 1)
    throw std::invalid_argument(cat(name, " must have one dimension, not ", tokens.ndim()));
  return {tokens.data(), tokens.data() + tokens.size()};
}

// What one call appends, as copies: the caller's arrays could change while the GIL is released.
struct Prompt {
  std::vector<int32_t> tokens;
  std::vector<MediaRows> media;
};

Prompt prompt_of(LockedSession& self, const Tokens& tokens, const Media& media) {
  Prompt prompt{ids_of(tokens, "tokens"), {}};
  const int64_t d_model = self.session.model().config().d_model;
  for (size_t i = 0; i < media.size(); ++i) {
    const auto& [first, vectors, is_block] = media[i];
    if (vectors.ndim() != 2 || vectors.shape(1) != d_model)
      throw std::invalid_argument(cat("media ", i, " must have the shape [n, ", d_model, "]"));
    const auto size = static_cast<size_t>(vectors.size());
    const float* numbers = vectors.data();
    const py::gil_scoped_release nogil;
    const std::shared_ptr<float[]> copy(new float[size]);
    std::copy_n(numbers, size, copy.get());
    if (!std::all_of(copy.get(), copy.get() + size, [](float x) { return std::isfinite(x); }))
      throw std::invalid_argument(cat("media ", i, " holds numbers that are not finite"));
    prompt.media.push_back({first, static_cast<int64_t>(size) / d_model, copy, is_block});
  }
  return prompt;
}

void append(LockedSession& self, const Tokens& tokens, const Media& media, const StopToken* stop,
            const py::object& progress) {
  const Prompt prompt = prompt_of(self, tokens, media);
  CallStop call(stop);
  Session::Progress report;
  if (!progress.is_none()) {
    report = [&progress](int64_t done, int64_t all) {
      const py::gil_scoped_acquire gil;
      progress(done, all);
    };
  }
  self.with([&](Session& s) { s.append(prompt.tokens, prompt.media, call.token(), report); });
}

// Refuses a hidden or logit row that is not finite, naming the position it belongs to.
void check_rows(Rows rows, const char* what, int64_t position) {
  for (int64_t i = 0; i < rows.n; ++i)
    require_finite({rows.data + i * rows.cols, static_cast<size_t>(rows.cols)}, what, position + i);
}

Floats append_logits(LockedSession& self, const Tokens& tokens, const Media& media, const StopToken* stop) {
  const Prompt prompt = prompt_of(self, tokens, media);
  const std::vector<int32_t>& ids = prompt.tokens;
  const int64_t n_vocab = self.session.model().config().n_vocab;
  self.with([&](Session& s) { s.check_room(ids); });  // before the rows are allocated
  Floats out({static_cast<py::ssize_t>(ids.size()), static_cast<py::ssize_t>(n_vocab)});
  float* rows = out.mutable_data();
  CallStop call(stop);
  self.with([&](Session& s) {
    const auto before = static_cast<int64_t>(s.tokens().size());
    s.append(ids, prompt.media, call.token(), {}, nullptr, [&](Gemma4& gemma, int64_t first, Rows hidden) {
      for (int64_t row = 0; row < hidden.n; row += kLogitRows) {
        call.token()->check();
        const Rows z = gemma.logits(hidden.from(row, std::min(kLogitRows, hidden.n - row)));
        check_rows(z, "logits", before + first + row);
        std::copy_n(z.data, z.n * n_vocab, rows + (first + row) * n_vocab);
      }
    });
  });
  return out;
}

Floats append_hidden(LockedSession& self, const Tokens& tokens, const Media& media, const StopToken* stop) {
  const Prompt prompt = prompt_of(self, tokens, media);
  const std::vector<int32_t>& ids = prompt.tokens;
  const int64_t d_model = self.session.model().config().d_model;
  self.with([&](Session& s) { s.check_room(ids); });
  Floats out({static_cast<py::ssize_t>(ids.size()), static_cast<py::ssize_t>(d_model)});
  float* rows = out.mutable_data();
  CallStop call(stop);
  self.with([&](Session& s) {
    const auto before = static_cast<int64_t>(s.tokens().size());
    s.append(ids, prompt.media, call.token(), {}, nullptr, [&](Gemma4&, int64_t first, Rows hidden) {
      check_rows(hidden, "hidden states", before + first);
      std::copy_n(hidden.data, hidden.n * d_model, rows + first * d_model);
    });
  });
  return out;
}

py::tuple append_score(LockedSession& self, const Tokens& tokens, const Tokens& targets, int64_t top,
                       const Media& media, const StopToken* stop) {
  const Prompt prompt = prompt_of(self, tokens, media);
  const std::vector<int32_t>& ids = prompt.tokens;
  const std::vector<int32_t> wanted = ids_of(targets, "targets");
  const int64_t n_vocab = self.session.model().config().n_vocab;
  if (wanted.size() != ids.size()) throw std::invalid_argument("targets must be as long as tokens");
  if (top < 0 || top > n_vocab) throw std::invalid_argument(cat("top is ", top, "; choose 0 to ", n_vocab));
  for (const int32_t target : wanted)
    if (target >= n_vocab)
      throw std::invalid_argument(cat("target ", target, " is outside the vocabulary of ", n_vocab));
  const auto n = static_cast<py::ssize_t>(ids.size());
  Floats logprobs(n), top_values({n, static_cast<py::ssize_t>(top)});
  Tokens top_ids({n, static_cast<py::ssize_t>(top)});
  float* lp = logprobs.mutable_data();
  float* values = top_values.mutable_data();
  int32_t* best = top_ids.mutable_data();
  std::fill_n(lp, n, std::numeric_limits<float>::quiet_NaN());
  std::fill_n(values, top_values.size(), std::numeric_limits<float>::quiet_NaN());
  std::fill_n(best, top_ids.size(), -1);
  CallStop call(stop);
  self.with([&](Session& s) {
    const auto before = static_cast<int64_t>(s.tokens().size());
    s.append(ids, prompt.media, call.token(), {}, nullptr, [&](Gemma4& gemma, int64_t first, Rows hidden) {
      // Only runs of rows somebody asked for reach the head.
      for (int64_t row = 0; row < hidden.n;) {
        if (wanted[static_cast<size_t>(first + row)] < 0) {
          ++row;
          continue;
        }
        int64_t n_rows = 1;
        while (n_rows < kLogitRows && row + n_rows < hidden.n &&
               wanted[static_cast<size_t>(first + row + n_rows)] >= 0)
          ++n_rows;
        call.token()->check();
        const Rows z = gemma.logits(hidden.from(row, n_rows));
        check_rows(z, "logits", before + first + row);
        for (int64_t i = 0; i < n_rows; ++i) {
          const int64_t at = first + row + i;
          const std::span<const float> logits(z.data + i * n_vocab, static_cast<size_t>(n_vocab));
          const double log_z = log_sum_exp(logits);
          lp[at] = static_cast<float>(logits[static_cast<size_t>(wanted[static_cast<size_t>(at)])] - log_z);
          if (top == 0) continue;
          int64_t rank = 0;
          for (const auto& [token, logprob] : top_logprobs(logits, top, log_z)) {
            best[at * top + rank] = token;
            values[at * top + rank++] = logprob;
          }
        }
        row += n_rows;
      }
    });
  });
  return py::make_tuple(logprobs, top_ids, top_values);
}

bool is_tap(const std::string& name, int64_t n_layers) {
  if (name == "embed" || name == "output_norm" || name == "ple_model_in") return true;
  for (const char* kind : {"attn_in", "attn_heads", "attn_out", "ffn_in", "ffn_act", "router_in", "ffn_out",
                           "ple_in", "ple_act", "layer_out"})
    for (int64_t layer = 0; layer < n_layers; ++layer)
      if (name == cat(kind, ".", layer)) return true;
  return false;
}

py::dict append_taps(LockedSession& self, const Tokens& tokens, const std::vector<std::string>& names,
                     const Media& media) {
  const Prompt prompt = prompt_of(self, tokens, media);
  std::map<std::string, std::vector<float>> seen;
  std::map<std::string, int64_t> cols;
  for (const std::string& name : names) {
    if (!is_tap(name, self.session.model().config().n_layers))
      throw std::invalid_argument(cat("there is no tap called \"", name, "\"; see append_taps"));
    seen[name];
  }
  const Tap tap = [&](const char* name, int64_t layer, Rows values) {
    const auto it = seen.find(layer < 0 ? std::string(name) : cat(name, ".", layer));
    if (it == seen.end()) return;
    it->second.insert(it->second.end(), values.data, values.data + values.n * values.cols);
    cols[it->first] = values.cols;
  };
  CallStop call(nullptr);
  self.with([&](Session& s) { s.append(prompt.tokens, prompt.media, call.token(), {}, &tap); });
  py::dict out;
  for (const auto& [name, values] : seen) {
    const int64_t width = std::max<int64_t>(1, cols[name]);
    Floats rows({static_cast<py::ssize_t>(values.size()) / width, static_cast<py::ssize_t>(width)});
    std::copy(values.begin(), values.end(), rows.mutable_data());
    out[py::str(name)] = rows;
  }
  return out;
}

// A collector and the lock that lets sessions feed it one after the other.
struct LockedCollector {
  LockedCollector(std::shared_ptr<LoadedModel> of, bool head)
      : model(std::move(of)), collector(model->file(), model->config(), head) {}
  std::shared_ptr<LoadedModel> model;
  ImportanceCollector collector;
  OwnedMutex mutex;
};

void append_importance(LockedSession& self, const Tokens& tokens, LockedCollector& into,
                       const StopToken* stop) {
  const std::vector<int32_t> ids = ids_of(tokens, "tokens");
  if (&self.session.model() != into.model.get())
    throw std::invalid_argument("the collector belongs to another model than the session");
  CallStop call(stop);
  self.with([&](Session& s) {
    const OwnedLock lock(into.mutex);
    const Tap tap = into.collector.tap();
    // Consuming the hidden states leaves out the head, which nobody asked for.
    s.append(ids, call.token(), {}, &tap, [](Gemma4&, int64_t, Rows) {});
    into.collector.check();
  });
}

py::list importance_entries(LockedCollector& self) {
  OwnedLock lock(self.mutex, std::defer_lock);
  {
    const py::gil_scoped_release nogil;
    lock.lock();
  }
  py::list out;
  for (const ImportanceCollector::Entry& entry : self.collector.entries()) {
    const ImportanceCollector::Sums& sums = *entry.sums;
    py::array_t<double> sum2(
        {static_cast<py::ssize_t>(sums.n_matrices), static_cast<py::ssize_t>(sums.n_cols)});
    std::copy(sums.sum2.begin(), sums.sum2.end(), sum2.mutable_data());
    const py::array_t<int64_t> counts(static_cast<py::ssize_t>(sums.counts.size()), sums.counts.data());
    out.append(py::make_tuple(entry.tensor, sum2, counts));
  }
  return out;
}

Floats logits(LockedSession& self, const StopToken* stop) {
  Floats out(self.session.model().config().n_vocab);
  float* row = out.mutable_data();
  CallStop call(stop);
  self.with([&](Session& s) {
    const auto values = s.logits(call.token());
    std::copy(values.begin(), values.end(), row);
  });
  return out;
}

py::tuple sample(LockedSession& self, LockedSampler& sampler, int64_t n_prompt,
                 const std::optional<Mask>& mask, const StopToken* stop) {
  const std::vector<uint32_t> allowed = mask_words(mask, self.session.model().config().n_vocab);
  CallStop call(stop);
  const Sampled result = self.with([&](Session& s) {
    s.logits(call.token());
    const std::lock_guard lock(sampler.mutex);
    return s.sample(sampler.sampler, static_cast<size_t>(n_prompt), allowed);
  });
  return py::make_tuple(result.token, result.logprob, result.top);
}

Tokens session_tokens(LockedSession& self) {
  const std::vector<int32_t> tokens = self.with([](Session& s) { return s.tokens(); });
  return Tokens(static_cast<py::ssize_t>(tokens.size()), tokens.data());
}

// (first row, vectors, whether the rows see each other) of the media on the timeline.
py::list session_media(LockedSession& self) {
  const std::vector<MediaRows> media = self.with([](Session& s) { return s.media(); });
  const int64_t d_model = self.session.model().config().d_model;
  py::list out;
  for (const MediaRows& m : media) {
    Floats rows({static_cast<py::ssize_t>(m.n_rows), static_cast<py::ssize_t>(d_model)});
    std::copy_n(m.vectors.get(), m.n_rows * d_model, rows.mutable_data());
    out.append(py::make_tuple(m.first, rows, m.is_block));
  }
  return out;
}

std::unique_ptr<LockedSession> fork(LockedSession& self) {
  CallStop call(nullptr);
  return self.with([&](Session& s) { return std::make_unique<LockedSession>(s.fork(call.token())); });
}

void save(LockedSession& self, int fd, const py::bytes& front, const StopToken* stop) {
  const std::string text = front;
  CallStop call(stop);
  self.with([&](Session& s) { SessionFile::save(s, fd, text, call.token()); });
}

py::tuple load_session(std::shared_ptr<LoadedModel> model, const std::string& path, int64_t n_ctx,
                       int64_t snapshot_limit, const StopToken* stop) {
  if (n_ctx < 0 || n_ctx > kMaxContext)
    throw std::invalid_argument(cat("n_ctx is ", n_ctx, "; choose 1 to ", kMaxContext));
  CallStop call(stop);
  std::string front;
  std::unique_ptr<LockedSession> session;
  {
    const py::gil_scoped_release nogil;
    SavedSession saved = SessionFile::load(std::move(model), path, n_ctx, snapshot_limit, call.token());
    front = std::move(saved.front);
    session = std::make_unique<LockedSession>(std::move(saved.session));
  }
  return py::make_tuple(std::move(session), py::bytes(front));
}

void append_together(const std::vector<LockedSession*>& sessions, const std::vector<Tokens>& pieces) {
  if (sessions.empty() || sessions.size() != pieces.size())
    throw std::invalid_argument("append_together needs one piece of tokens for every session");
  if (std::find(sessions.begin(), sessions.end(), nullptr) != sessions.end())
    throw std::invalid_argument("append_together needs sessions, not None");
  std::vector<std::vector<int32_t>> ids;
  for (const Tokens& piece : pieces) ids.push_back(ids_of(piece, "tokens"));
  std::vector<LockedSession*> order =
      sessions;  // locked in address order, so that two such calls cannot deadlock
  std::sort(order.begin(), order.end());
  if (std::adjacent_find(order.begin(), order.end()) != order.end())
    throw std::invalid_argument("append_together needs different sessions");
  std::vector<Session*> plain;
  for (LockedSession* s : sessions) plain.push_back(&s->session);
  CallStop call(nullptr);
  const py::gil_scoped_release nogil;
  std::vector<OwnedLock> locks;
  for (LockedSession* s : order) locks.emplace_back(s->mutex);
  Session::append_together(plain, ids, call.token());
  for (LockedSession* s : order) s->n_tokens.store(static_cast<int64_t>(s->session.tokens().size()));
}

std::unique_ptr<LockedSampler> make_sampler(float temperature, int32_t top_k, float top_p, float min_p,
                                            float repeat_penalty, float presence_penalty,
                                            float frequency_penalty,
                                            const std::map<int32_t, float>& logit_bias,
                                            const std::vector<int32_t>& suppress, uint64_t seed,
                                            int32_t n_logprobs) {
  const auto check = [](bool ok, const char* message) {
    if (!ok) throw std::invalid_argument(message);
  };
  check(temperature >= 0 && temperature <= 100, "temperature must lie between 0 and 100");
  check(top_k >= 0, "top_k must be 0 (off) or more");
  check(top_p > 0 && top_p <= 1, "top_p must lie in (0, 1]");
  check(min_p >= 0 && min_p <= 1, "min_p must lie in [0, 1]");
  check(repeat_penalty > 0 && repeat_penalty <= 100, "repeat_penalty must lie in (0, 100]");
  check(presence_penalty >= -100 && presence_penalty <= 100,
        "presence_penalty must lie between -100 and 100");
  check(frequency_penalty >= -100 && frequency_penalty <= 100,
        "frequency_penalty must lie between -100 and 100");
  SamplerOptions options{temperature,       top_k, top_p,    min_p, repeat_penalty, presence_penalty,
                         frequency_penalty, {},    suppress, seed,  n_logprobs};
  for (const auto& [token, bias] : logit_bias) {
    check(bias == bias && bias != std::numeric_limits<float>::infinity(),
          "logit_bias must not be NaN or +inf");
    options.logit_bias.emplace_back(token, bias);
  }
  return std::unique_ptr<LockedSampler>(new LockedSampler{Sampler(std::move(options)), {}});
}

}  // namespace

void bind_session(py::module_& m) {
  py::class_<LockedSampler>(m, "Sampler", "How the next token is chosen from the logits.")
      .def(py::init(&make_sampler), py::kw_only(), py::arg("temperature") = 1.0f, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0f, py::arg("min_p") = 0.0f, py::arg("repeat_penalty") = 1.0f,
           py::arg("presence_penalty") = 0.0f, py::arg("frequency_penalty") = 0.0f,
           py::arg("logit_bias") = std::map<int32_t, float>(), py::arg("suppress") = std::vector<int32_t>(),
           py::arg("seed") = 0, py::arg("n_logprobs") = -1);

  py::class_<LockedSession> session(m, "Session", "One timeline of tokens that keeps its keys and values.");
  const py::object model = m.attr("Model");
  model.attr("session") = py::cpp_function(
      [](std::shared_ptr<LoadedModel> self, int64_t n_ctx, const std::string& kv_type,
         int64_t snapshot_limit) {
        return std::make_unique<LockedSession>(
            Session(std::move(self), n_ctx, parse_kv_types(kv_type), snapshot_limit));
      },
      py::name("session"), py::is_method(model), py::kw_only(), py::arg("n_ctx"), py::arg("kv_type") = "f16",
      py::arg("snapshot_limit") = kAutoSnapshots,
      "A new timeline. snapshot_limit: bytes for going back without reading again; 0: none, -1: chosen.");
  model.attr("load_session") = py::cpp_function(
      &load_session, py::name("load_session"), py::is_method(model), py::arg("path"), py::kw_only(),
      py::arg("n_ctx") = 0, py::arg("snapshot_limit") = kAutoSnapshots, py::arg("stop") = nullptr,
      "A session from a file, and the bytes that were saved with it. n_ctx 0: as saved.");

  py::class_<LockedCollector>(m, "ImportanceCollector",
                              "Sums of squares of the inputs of every matrix, over the appended tokens.")
      .def(py::init<std::shared_ptr<LoadedModel>, bool>(), py::arg("model").none(false), py::kw_only(),
           py::arg("head") = false)
      .def("entries", &importance_entries,
           "(tensor, float64 [n_matrices, n_cols] sums of squares, int64 [n_matrices] rows) of each matrix.");

  const py::arg_v media = py::arg("media").noconvert() = Media();
  session.def_property_readonly("n_ctx", [](const LockedSession& s) { return s.session.n_ctx(); })
      .def_property_readonly("kv_bytes", [](const LockedSession& s) { return s.session.kv_bytes(); })
      .def_property_readonly("kv_used_bytes",
                             [](const LockedSession& s) { return s.session.kv_used_bytes(); })
      .def_property_readonly("n_tokens", [](const LockedSession& s) { return s.n_tokens.load(); })
      .def_property_readonly("tokens", &session_tokens)
      .def_property_readonly(
          "n_ready", [](LockedSession& s) { return s.with([](Session& x) { return x.n_ready(); }); },
          "How many tokens the next append need not read again.")
      .def_property_readonly(
          "snapshot_bytes",
          [](LockedSession& s) { return s.with([](Session& x) { return x.snapshot_bytes(); }); })
      .def_property_readonly("snapshot_limit",
                             [](const LockedSession& s) { return s.session.snapshot_limit(); })
      .def("media", &session_media,
           "(first row, float32 [n, d_model], bidirectional) of the media on the timeline.")
      .def("fork", &fork, "A second timeline with the same content.")
      .def("save", &save, py::arg("fd"), py::arg("front"), py::kw_only(), py::arg("stop") = nullptr,
           "Write the session and some bytes of the caller's to an open file.")
      .def("append", &append, py::arg("tokens").noconvert(), py::kw_only(), media, py::arg("stop") = nullptr,
           py::arg("progress") = py::none(),
           "Run tokens; all are kept or, on an exception, none. media: (first row, float32 [n, d_model], "
           "bidirectional) of each image or sound whose vectors replace the embeddings of n tokens.")
      .def("logits", &logits, py::kw_only(), py::arg("stop") = nullptr,
           "float32 [n_vocab] of the last token.")
      .def("append_logits", &append_logits, py::arg("tokens").noconvert(), py::kw_only(), media,
           py::arg("stop") = nullptr, "Run tokens and return float32 [n, n_vocab].")
      .def("append_hidden", &append_hidden, py::arg("tokens").noconvert(), py::kw_only(), media,
           py::arg("stop") = nullptr,
           "Run tokens and return the hidden states after the last norm, float32 [n, d_model].")
      .def("append_score", &append_score, py::arg("tokens").noconvert(), py::arg("targets").noconvert(),
           py::kw_only(), py::arg("top") = 0, media, py::arg("stop") = nullptr,
           "Run tokens; log-probability of targets[i] after tokens[i] (targets < 0: nan) and the top "
           "alternatives.")
      .def("append_taps", &append_taps, py::arg("tokens").noconvert(), py::arg("names"), py::kw_only(), media,
           "Run tokens and return named intermediates: embed, attn_in.i, attn_heads.i, attn_out.i, ffn_in.i, "
           "ffn_act.i, ffn_out.i, layer_out.i, output_norm, and the others of docs/MODEL.md.")
      .def("append_importance", &append_importance, py::arg("tokens").noconvert(), py::arg("collector"),
           py::kw_only(), py::arg("stop") = nullptr,
           "Run tokens and add the squares of every matrix's inputs to the collector.")
      .def("sample", &sample, py::arg("sampler"), py::arg("n_prompt") = 0, py::kw_only(),
           py::arg("mask").noconvert() = py::none(), py::arg("stop") = nullptr,
           "(token, log-probability, alternatives) drawn from the logits of the last token; does not append. "
           "mask: uint32 words, bit t % 32 of word t // 32 allows token t.")
      .def(
          "rewind", [](LockedSession& s, int64_t n) { s.with([n](Session& x) { x.rewind(n); }); },
          py::arg("n"), "Keep the first n tokens; n must not lie inside an image.");

  m.def("append_together", &append_together, py::arg("sessions"), py::arg("pieces"),
        "Append one piece of tokens to each of several sessions of a model in one shared step.");
}

}  // namespace gemmule
