// The importance matrix: its sums are those of the tapped inputs, whatever the threads and the steps.
#include "engine/imatrix.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "engine/session.h"

using namespace gemmule;

namespace {

std::shared_ptr<LoadedModel> load(const char* name, LoadOptions options = {}) {
  return std::make_shared<LoadedModel>(GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/" + name), options);
}

std::vector<int32_t> some_tokens(int64_t n, int64_t n_vocab) {
  std::vector<int32_t> tokens;
  uint32_t seed = 7;
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(n_vocab)));
  }
  return tokens;
}

std::unique_ptr<ImportanceCollector> collect(LoadOptions options, const char* name = "tiny-gemma4-f32.gguf") {
  const auto model = load(name, options);
  auto collector = std::make_unique<ImportanceCollector>(model->file(), model->config(), true);
  Session session(model, 128, DType::F16);
  const Tap tap = collector->tap();
  session.append(some_tokens(60, model->config().n_vocab), nullptr, {}, &tap);
  return collector;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

}  // namespace

TEST_CASE("the sums do not depend on threads or steps") {
  const auto reference = collect(LoadOptions{1, "", 256});
  for (const LoadOptions& options : {LoadOptions{3, "", 256}, LoadOptions{2, "", 7}, LoadOptions{1, "", 1}}) {
    const auto other = collect(options);
    REQUIRE(other->entries().size() == reference->entries().size());
    for (size_t i = 0; i < reference->entries().size(); ++i) {
      CHECK(other->entries()[i].tensor == reference->entries()[i].tensor);
      CHECK(other->entries()[i].sums->counts == reference->entries()[i].sums->counts);
      CHECK(same_bits(other->entries()[i].sums->sum2, reference->entries()[i].sums->sum2));
    }
  }
}

TEST_CASE("every matrix of every layer is measured, and the sums are those of its input") {
  const auto model = load("tiny-gemma4-f32.gguf");
  ImportanceCollector collector(model->file(), model->config(), true);
  std::map<std::string, std::vector<double>> sums;  // of the taps, taken another way
  const Tap both([&](const char* name, int64_t layer, Rows values) {
    auto& sum = sums[cat(name, ".", layer)];
    sum.resize(static_cast<size_t>(values.cols));
    for (int64_t i = 0; i < values.n * values.cols; ++i)
      sum[static_cast<size_t>(i % values.cols)] += static_cast<double>(values.data[i]) * values.data[i];
  });
  const auto tokens = some_tokens(60, model->config().n_vocab);
  const Tap tap = collector.tap();
  Session a(model, 128, DType::F16), b(model, 128, DType::F16);
  a.append(tokens, nullptr, {}, &tap);
  b.append(tokens, nullptr, {}, &both);
  size_t matrices = 1;  // the head
  for (const GgufTensor& t : model->file().tensors())
    matrices += t.shape.size() > 1 && t.name.starts_with("blk.");
  CHECK(collector.entries().size() == matrices);
  const auto expect = [&](const char* tensor, const char* tap_name) {
    for (const ImportanceCollector::Entry& entry : collector.entries())
      if (entry.tensor == tensor) {
        CHECK(entry.sums->counts == std::vector<int64_t>{60});
        CHECK(same_bits(entry.sums->sum2, sums[tap_name]));
        return;
      }
    FAIL(tensor);
  };
  expect("blk.0.attn_q.weight", "attn_in.0");
  expect("blk.0.attn_v.weight", "attn_in.0");
  expect("blk.2.attn_k.weight", "attn_in.2");
  expect("blk.2.attn_output.weight", "attn_heads.2");
  expect("blk.3.ffn_up.weight", "ffn_in.3");
  expect("blk.5.ffn_down.weight", "ffn_act.5");
  expect("token_embd.weight", "output_norm.-1");
}

TEST_CASE("rows of experts count for their expert alone") {
  const auto model = load("tiny-gemma4-26b-f16.gguf");
  const Config& config = model->config();
  ImportanceCollector collector(model->file(), config, false);
  Session session(model, 128, DType::F16);
  const Tap tap = collector.tap();
  session.append(some_tokens(60, config.n_vocab), nullptr, {}, &tap);
  int64_t stacks = 0;
  for (const ImportanceCollector::Entry& entry : collector.entries()) {
    if (!entry.tensor.ends_with("_exps.weight")) continue;
    ++stacks;
    int64_t pairs = 0;
    for (int64_t expert = 0; expert < config.n_experts; ++expert) {
      const int64_t count = entry.sums->counts[static_cast<size_t>(expert)];
      const double* sums = entry.sums->sum2.data() + expert * entry.sums->n_cols;
      pairs += count;
      CHECK((count > 0) == std::any_of(sums, sums + entry.sums->n_cols, [](double s) { return s > 0; }));
    }
    CHECK(pairs == 60 * config.n_experts_used);
  }
  CHECK(stacks >= 2 * config.n_layers);
}

TEST_CASE("layers that read another layer's keys and values have no importance of their own for them") {
  const auto model = load("tiny-gemma4-e2b-f16.gguf");
  const ImportanceCollector collector(model->file(), model->config(), false);
  int64_t keys = 0, shared = 0, ple = 0;
  for (const ImportanceCollector::Entry& entry : collector.entries()) {
    keys += entry.tensor.ends_with("attn_k.weight");
    ple += entry.tensor.ends_with(".proj.weight") || entry.tensor.ends_with("inp_gate.weight");
  }
  for (const LayerConfig& layer : model->config().layers) shared += !layer.owns_kv();
  CHECK(shared > 0);
  CHECK(keys == model->config().n_layers - shared);
  CHECK(ple == 2 * model->config().n_layers);
}

TEST_CASE("a tap adds to the matrices of its layer only") {
  const auto model = load("tiny-gemma4-f32.gguf");
  ImportanceCollector collector(model->file(), model->config(), false);
  std::vector<float> row(static_cast<size_t>(model->config().d_model), 2.0f);
  const Tap tap = collector.tap();
  tap.values("attn_in", 1, Rows{row.data(), 1, model->config().d_model});
  tap.values("no_such_tap", 1, Rows{row.data(), 1, model->config().d_model});
  for (const ImportanceCollector::Entry& entry : collector.entries()) {
    const bool hit = entry.tensor.starts_with("blk.1.attn_") && entry.tensor != "blk.1.attn_output.weight";
    CHECK(entry.sums->counts[0] == (hit ? 1 : 0));
    CHECK(entry.sums->sum2[0] == (hit ? 4.0 : 0.0));
  }
}

TEST_CASE("inputs that are not finite are named") {
  const auto model = load("tiny-gemma4-f32.gguf");
  ImportanceCollector collector(model->file(), model->config(), false);
  std::vector<float> row(static_cast<size_t>(model->config().d_model), 1.0f);
  const Tap tap = collector.tap();
  tap.values("ffn_in", 2, Rows{row.data(), 1, model->config().d_model});
  CHECK_NOTHROW(collector.check());
  row[3] = std::numeric_limits<float>::quiet_NaN();
  tap.values("ffn_in", 2, Rows{row.data(), 1, model->config().d_model});
  CHECK_THROWS_WITH_AS(collector.check(), doctest::Contains("blk.2.ffn_gate.weight"), Error);
  CHECK_THROWS_AS(tap.values("ffn_in", 2, Rows{row.data(), 1, 3}), Error);
}
