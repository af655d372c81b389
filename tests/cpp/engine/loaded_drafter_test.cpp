// The drafter of a loaded model: the same bits however it is computed, and refusals of what does not fit.
// tests/python/test_drafter.py compares the numbers with a reference.
#include "engine/loaded_drafter.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "core/error.h"
#include "engine/session_helpers.h"
#include "gguf/edited_file.h"

using namespace gemmule;
using gemmule::testing::edited_file;
using gemmule::testing::EditedTensor;
using gemmule::testing::FileEdit;
using gemmule::testing::TempFile;

namespace {

struct Pair {
  const char* target;
  const char* drafter;
};
constexpr Pair k12b = {"tiny-gemma4-f32.gguf", "tiny-gemma4-drafter-f32.gguf"};
constexpr Pair kE2b = {"tiny-gemma4-e2b-f16.gguf", "tiny-gemma4-e2b-drafter-f16.gguf"};

std::string golden(const char* name) { return std::string(GEMMULE_GOLDEN_DIR) + "/" + name; }

std::shared_ptr<const GgufFile> open_golden(const char* name) { return GgufFile::open(golden(name)); }

// Logits and hidden states of a round behind some tokens, more of them than the window.
std::vector<float> round_of(const std::shared_ptr<LoadedModel>& model, LoadedDrafter& drafter,
                            int64_t n_tokens = 40) {
  Session session(model, 64, DType::F16);
  const auto tokens = some_tokens(*model, n_tokens);
  const auto states = hidden_states(session, tokens, 16);
  const int64_t d_model = model->config().d_model;
  std::vector<float> hidden(states.end() - d_model, states.end()), all;
  model->run(1, nullptr, [&](Gemma4&) {
    int32_t token = 5;
    for (int i = 0; i < 3; ++i) {
      const Drafter::Step step = drafter.drafter().step(token, hidden, n_tokens, session.kv());
      all.insert(all.end(), step.logits.begin(), step.logits.end());
      all.insert(all.end(), step.hidden.begin(), step.hidden.end());
      hidden = copy(step.hidden);
      token = static_cast<int32_t>(std::max_element(step.logits.begin(), step.logits.end()) -
                                   step.logits.begin());
    }
  });
  return all;
}

// What loading the edited drafter says.
std::string refusal(const Pair& pair, const FileEdit& edit) {
  const TempFile on_disk(edited_file(golden(pair.drafter), edit));
  try {
    LoadedDrafter drafter(load(pair.target), GgufFile::open(on_disk.path()));
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

template <class T>
FileEdit with_key(const std::string& name, T value) {
  FileEdit edit;
  edit.key = [=](const std::string& key, std::string& bytes) {
    if (key == name) bytes.assign(reinterpret_cast<const char*>(&value), sizeof value);
  };
  return edit;
}

FileEdit with_tensor(const std::string& name, std::function<bool(EditedTensor&)> change) {
  FileEdit edit;
  edit.tensor = [=](EditedTensor& t) { return t.name != name || change(t); };
  return edit;
}

}  // namespace

TEST_CASE("drafts do not depend on threads, the level or the order of the target's weights") {
  for (const Pair& pair : {k12b, kE2b}) {
    std::vector<float> expected;
    for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
      if (!level.supported) continue;
      for (const int n_threads : {1, 3}) {
        const Packing packing = n_threads == 1 ? Packing::Never : Packing::Always;
        const auto model = load(pair.target, {n_threads, level.table->name, 16, packing});
        LoadedDrafter drafter(model, open_golden(pair.drafter));
        const auto drafts = round_of(model, drafter);
        if (expected.empty()) expected = drafts;
        CHECK(same_bits(drafts, expected));
      }
    }
    for (const float x : expected) CHECK(std::isfinite(x));
  }
}

TEST_CASE("every layer reads the last layer of its kind that has keys of its own") {
  const auto sources = [](const Pair& pair) {
    const auto c =
        DrafterConfig::from_gguf(*open_golden(pair.drafter), Config::from_gguf(*open_golden(pair.target)));
    std::vector<int64_t> from;
    for (const LayerConfig& layer : c.stack.layers) from.push_back(layer.kv_from);
    return from;
  };
  CHECK(sources(k12b) == std::vector<int64_t>{4, 4, 5});
  CHECK(sources(kE2b) == std::vector<int64_t>{1, 1, 2});  // the last three layers share
}

TEST_CASE("a drafter sees the window before its position and nothing at it") {
  const auto model = load(k12b.target);
  LoadedDrafter drafter(model, open_golden(k12b.drafter));
  Session session(model, 64, DType::F16);
  const auto tokens = some_tokens(*model, 40);
  const auto states = hidden_states(session, tokens, 40);
  const std::vector<float> hidden(states.begin(), states.begin() + model->config().d_model);
  const auto draft = [&](int64_t pos) {
    std::vector<float> logits;
    model->run(1, nullptr,
               [&](Gemma4&) { logits = copy(drafter.drafter().step(5, hidden, pos, session.kv()).logits); });
    return logits;
  };
  const auto before = draft(20);
  // Other tokens from position 20 on change nothing; one at 19, the last that is seen, does.
  session.rewind(20);
  session.append(some_tokens(*model, 20, 9), nullptr, {});
  CHECK(same_bits(draft(20), before));
  session.rewind(19);
  session.append(some_tokens(*model, 20, 9), nullptr, {});
  CHECK(!same_bits(draft(20), before));
  for (const int64_t pos : {int64_t{0}, int64_t{-1}, int64_t{41}})
    CHECK_THROWS_AS(draft(pos), std::invalid_argument);
}

TEST_CASE("drafters of other models are refused by key") {
  CHECK(says(refusal(k12b, {}), "accepted"));
  CHECK(says(refusal(kE2b, {}), "accepted"));
  const std::string prefix = "gemma4-assistant.";
  for (const char* key : {"embedding_length_out", "attention.sliding_window"})
    CHECK(says(refusal(k12b, with_key<uint32_t>(prefix + key, 24)), key));
  for (const char* key : {"rope.freq_base", "rope.freq_base_swa"})
    CHECK(says(refusal(k12b, with_key<float>(prefix + key, 5e5f)), key));
  CHECK(says(refusal({kE2b.target, k12b.drafter}, {}), "give the drafter of the same model"));
  CHECK(says(refusal({"tiny-gemma3-f32.gguf", k12b.drafter}, {}), "gemma4-assistant"));
  CHECK(says(refusal({k12b.target, k12b.target}, {}), "gemma4-assistant"));
  CHECK(says(refusal(k12b, with_key<uint32_t>(prefix + "embedding_length_per_layer_input", 8)), "per-layer"));
}

TEST_CASE("missing, misshapen and foreign tensors of a drafter are refused by name") {
  const auto drop = [](EditedTensor&) { return false; };
  const auto narrow = [](EditedTensor& t) {
    --t.shape.back();
    return true;
  };
  for (const char* name : {"nextn.pre_projection.weight", "nextn.post_projection.weight", "rope_freqs.weight",
                           "blk.0.attn_q.weight", "blk.2.attn_q_norm.weight", "output_norm.weight"}) {
    CHECK(says(refusal(k12b, with_tensor(name, drop)), name));
    CHECK(says(refusal(k12b, with_tensor(name, narrow)), name));
  }
  CHECK(says(refusal(k12b, with_tensor("token_embd.weight", narrow)), "token_embd.weight"));
  CHECK(says(refusal(k12b, with_tensor("rope_freqs.weight",
                                       [](EditedTensor& t) {
                                         std::memcpy(t.data.data() + 6 * 4, t.data.data(), 4);
                                         return true;
                                       })),
             "rope_freqs.weight differs"));
  FileEdit more;
  more.more = {{"blk.0.attn_k.extra", {4}, DType::F32, std::string(16, '\0')}};
  CHECK(says(refusal(k12b, more), "blk.0.attn_k.extra"));
}

TEST_CASE("clusters must hold every token once and share them evenly") {
  const std::string clusters = "gemmule.drafter.clusters", centroids = "gemmule.drafter.centroids";
  const auto with_bytes = [](const std::string& name, std::function<void(std::string&)> change) {
    FileEdit edit;
    edit.key = [=](const std::string& key, std::string& bytes) {
      if (key == name) change(bytes);
    };
    return edit;
  };
  for (const int32_t token : {-1, 384, 1 << 30})
    CHECK(says(refusal(kE2b, with_bytes(clusters, [=](std::string& b) { std::memcpy(b.data(), &token, 4); })),
               "is no token or there twice"));
  CHECK(says(refusal(kE2b, with_bytes(clusters, [](std::string& b) { b.replace(0, 4, b, 4, 4); })),
             "is no token or there twice"));
  for (const size_t n : {size_t{0}, size_t{383}})
    CHECK(
        says(refusal(kE2b, with_bytes(clusters, [=](std::string& b) { b.resize(4 * n); })), "of 384 tokens"));
  for (const size_t n : {size_t{0}, size_t{24 * 24 - 1}, size_t{24 * 23}})
    CHECK(says(refusal(kE2b, with_bytes(centroids, [=](std::string& b) { b.resize(4 * n); })), "evenly"));
  const float nan = std::nanf("");
  CHECK(says(refusal(kE2b, with_bytes(centroids, [&](std::string& b) { std::memcpy(&b[8], &nan, 4); })),
             "a finite number is expected"));
  for (const uint32_t n : {0u, 25u})
    CHECK(says(refusal(kE2b, with_key<uint32_t>("gemmule.drafter.n_clusters_used", n)), "n_clusters_used"));
}

TEST_CASE("with all clusters in use the logits are those of the whole head") {
  const auto model = load(kE2b.target);
  const TempFile all(
      edited_file(golden(kE2b.drafter), with_key<uint32_t>("gemmule.drafter.n_clusters_used", 24)));
  std::string unclustered = edited_file(golden(kE2b.drafter), {});
  const size_t at = unclustered.find("gemmule.drafter.centroids");
  REQUIRE(at != std::string::npos);
  unclustered.replace(at, 7, "foreign");  // a key that nobody looks for
  const TempFile plain(unclustered);
  LoadedDrafter with(model, GgufFile::open(all.path())), without(model, GgufFile::open(plain.path()));
  CHECK(with.config().n_clusters == 24);
  CHECK(without.config().n_clusters == 0);
  CHECK(same_bits(round_of(model, with), round_of(model, without)));
}

TEST_CASE("a drafter whose file was cut is refused") {
  const auto model = load(k12b.target);
  const TempFile on_disk(edited_file(golden(k12b.drafter), {}));
  LoadedDrafter drafter(model, GgufFile::open(on_disk.path()));
  CHECK(drafter.weight_bytes() > 150000);
  std::filesystem::resize_file(on_disk.path(), 4096);
  CHECK_THROWS_AS(round_of(model, drafter), FormatError);
}
