// What the taps of a pass show: every input of a product under its name, and the rows of each expert.
#include "model/gemma4.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>

#include "engine/session.h"

using namespace gemmule;

namespace {

using Matrix = std::vector<std::vector<float>>;  // rows

struct Seen {
  std::map<std::pair<std::string, int64_t>, Matrix> values;
  std::map<std::pair<std::string, int64_t>, std::map<int64_t, Matrix>> experts;
  bool ascending = true;  // experts within a call
  std::vector<float> logits;

  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& [key, rows] : values) all.insert(key.first);
    for (const auto& [key, rows] : experts) all.insert(key.first);
    return all;
  }
};

void add_rows(Matrix& to, Rows rows) {
  for (int64_t i = 0; i < rows.n; ++i)
    to.emplace_back(rows.data + i * rows.cols, rows.data + (i + 1) * rows.cols);
}

std::shared_ptr<LoadedModel> load(const char* name, int64_t n_ubatch) {
  return std::make_shared<LoadedModel>(GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/" + name),
                                       LoadOptions{2, "", n_ubatch});
}

Seen run(const char* name, int64_t n_ubatch) {
  Seen seen;
  std::pair<std::string, int64_t> call;
  int64_t last = -1;
  const Tap tap(
      [&](const char* what, int64_t layer, Rows rows) {
        add_rows(seen.values[{what, layer}], rows);
        call = {};
      },
      [&](const char* what, int64_t layer, int64_t expert, Rows rows) {
        if (call != std::pair(std::string(what), layer)) last = -1;
        call = {what, layer};
        seen.ascending &= expert > last && rows.n > 0;
        last = expert;
        add_rows(seen.experts[{what, layer}][expert], rows);
      });
  const auto model = load(name, n_ubatch);
  std::vector<int32_t> tokens(30);
  std::iota(tokens.begin(), tokens.end(), 2);
  Session session(model, 64, DType::F16);
  session.append(tokens, nullptr, {}, &tap);
  const auto logits = session.logits();
  seen.logits.assign(logits.begin(), logits.end());
  return seen;
}

}  // namespace

TEST_CASE("the input of every product is tapped under its name") {
  const std::set<std::string> dense = {"embed",   "attn_in", "attn_heads", "attn_out",   "ffn_in",
                                       "ffn_act", "ffn_out", "layer_out",  "output_norm"};
  std::set<std::string> e2b = dense, moe = dense;
  e2b.insert({"ple_model_in", "ple_in", "ple_act"});
  moe.insert({"router_in", "expert_in", "expert_act"});
  CHECK(run("tiny-gemma3-f32.gguf", 64).names() == dense);
  CHECK(run("tiny-gemma4-f32.gguf", 64).names() == dense);
  CHECK(run("tiny-gemma4-e2b-f16.gguf", 64).names() == e2b);
  CHECK(run("tiny-gemma4-26b-f16.gguf", 64).names() == moe);
}

TEST_CASE("taps change no bit and steps do not change what they show") {
  for (const char* name : {"tiny-gemma4-e2b-f16.gguf", "tiny-gemma4-26b-f16.gguf"}) {
    const Seen whole = run(name, 64), pieces = run(name, 7);
    CHECK(whole.values == pieces.values);
    CHECK(whole.ascending);
    CHECK(pieces.ascending);
    const auto model = load(name, 64);
    std::vector<int32_t> tokens(30);
    std::iota(tokens.begin(), tokens.end(), 2);
    Session session(model, 64, DType::F16);
    session.append(tokens, nullptr, {});
    const auto logits = session.logits();
    CHECK(whole.logits == std::vector<float>(logits.begin(), logits.end()));
  }
}

TEST_CASE("every row goes to as many experts as the file says, once to each") {
  const Seen seen = run("tiny-gemma4-26b-f16.gguf", 64);
  const auto model = load("tiny-gemma4-26b-f16.gguf", 64);
  const Config& c = model->config();
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    size_t n_pairs = 0;
    const auto& in = seen.experts.at({"expert_in", layer});
    const auto& act = seen.experts.at({"expert_act", layer});
    REQUIRE(in.size() == act.size());
    std::map<std::vector<float>, int> times;
    for (const auto& [expert, rows] : in) {
      n_pairs += rows.size();
      CHECK(act.at(expert).size() == rows.size());
      CHECK(rows[0].size() == static_cast<size_t>(c.d_model));
      CHECK(act.at(expert)[0].size() == 12);
      for (const auto& row : rows) ++times[row];
    }
    CHECK(n_pairs == 30 * static_cast<size_t>(c.n_experts_used));
    CHECK(times.size() == 30);
    for (const auto& [row, n] : times) CHECK(n == c.n_experts_used);
  }
}

TEST_CASE("widths follow the layer and the taps the formulas") {
  const Seen seen = run("tiny-gemma4-e2b-f16.gguf", 64);
  CHECK(seen.values.at({"ffn_act", 0})[0].size() == 40);
  CHECK(seen.values.at({"ffn_act", 3})[0].size() == 80);
  CHECK(seen.values.at({"ple_act", 5})[0].size() == 8);
  CHECK(seen.values.at({"ple_model_in", -1}) == seen.values.at({"embed", -1}));
  CHECK(seen.values.at({"ple_in", 2}) == seen.values.at({"ffn_out", 2}));
  const auto file = GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/tiny-gemma4-e2b-f16.gguf");
  const float* w = file->view(*file->find_tensor("blk.1.ffn_norm.weight")).f32();
  const Matrix &x = seen.values.at({"attn_out", 1}), &h = seen.values.at({"ffn_in", 1});
  for (size_t i = 0; i < x.size(); ++i) {
    double sum = 0;
    for (const float v : x[i]) sum += static_cast<double>(v) * v;
    const double r = 1 / std::sqrt(sum / static_cast<double>(x[i].size()) + 1e-6);
    for (size_t j = 0; j < x[i].size(); ++j)
      CHECK(h[i][j] == doctest::Approx(x[i][j] * r * w[j]).epsilon(1e-5));
  }
}
