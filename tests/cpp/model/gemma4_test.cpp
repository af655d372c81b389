// What the taps of a pass show: every input of a product under its name, the rows of each expert, and the
// attention of both kinds of layer over text, images and sound against the formulas in double precision.
#include "model/gemma4.h"

#include <doctest/doctest.h>

#include <algorithm>
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

namespace {

using Doubles = std::vector<double>;

// rms_norm(head, w), then turned by its position: pair i by pos * freq[i].
void norm_and_turn(double* head, int64_t d, const float* w, const Doubles& freq, double pos) {
  double sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += head[i] * head[i];
  const double r = 1 / std::sqrt(sum / static_cast<double>(d) + 1e-6);
  for (int64_t i = 0; i < d; ++i) head[i] *= r * (w ? w[i] : 1);
  for (size_t i = 0; i < freq.size(); ++i) {
    double &a = head[i], &b = head[i + static_cast<size_t>(d / 2)];
    const double c = std::cos(pos * freq[i]), s = std::sin(pos * freq[i]), turned = a * c - b * s;
    b = b * c + a * s;
    a = turned;
  }
}

Doubles product(const Tensor& w, const std::vector<float>& x) {
  Doubles y(static_cast<size_t>(w.rows));
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t c = 0; c < w.cols; ++c)
      y[static_cast<size_t>(r)] += static_cast<double>(w.f32()[r * w.cols + c]) * x[static_cast<size_t>(c)];
  return y;
}

// The heads of layer i over all rows: h the normed inputs, block[p] the block of row p or -1.
std::vector<Doubles> reference_attention(const LoadedModel& model, size_t i, const Matrix& h,
                                         const std::vector<int>& block) {
  const GgufFile& file = model.file();
  const LayerConfig& layer = model.config().layers[i];
  const auto tensor = [&](const std::string& name) {
    const GgufTensor* found = file.find_tensor("blk." + std::to_string(i) + "." + name + ".weight");
    return found ? file.view(*found) : Tensor();
  };
  const int64_t d = layer.head_dim;
  const Tensor factors = file.view(*file.find_tensor("rope_freqs.weight"));
  Doubles freq;
  for (int64_t j = 0; j < d / 2; ++j) {
    const double base = layer.is_sliding ? 1e4 : 1e6;
    freq.push_back(std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(d)) /
                   (layer.is_sliding ? 1.0 : static_cast<double>(factors.f32()[j])));
  }
  std::vector<Doubles> q, k, v, out;
  for (size_t p = 0; p < h.size(); ++p) {
    q.push_back(product(tensor("attn_q"), h[p]));
    k.push_back(product(tensor("attn_k"), h[p]));
    v.push_back(tensor("attn_v") ? product(tensor("attn_v"), h[p]) : k.back());
    const auto pos = static_cast<double>(p);
    for (int64_t j = 0; j < layer.n_heads; ++j)
      norm_and_turn(q[p].data() + j * d, d, tensor("attn_q_norm").f32(), freq, pos);
    for (int64_t j = 0; j < layer.n_kv_heads; ++j) {
      norm_and_turn(k[p].data() + j * d, d, tensor("attn_k_norm").f32(), freq, pos);
      norm_and_turn(v[p].data() + j * d, d, nullptr, {}, pos);
    }
  }
  const auto sees = [&](size_t row, size_t p) {
    if (!layer.is_sliding) return p <= row;
    const bool in_window = static_cast<int64_t>(p) > static_cast<int64_t>(row) - model.config().window;
    return in_window && (p <= row || (block[row] >= 0 && block[p] == block[row]));
  };
  for (size_t row = 0; row < h.size(); ++row) {
    Doubles a(q[row].size());
    for (int64_t j = 0; j < layer.n_heads; ++j) {
      const int64_t from = j / (layer.n_heads / layer.n_kv_heads) * d;
      double sum = 0;
      for (size_t p = 0; p < h.size(); ++p) {
        if (!sees(row, p)) continue;
        double score = 0;
        for (int64_t x = 0; x < d; ++x)
          score += q[row][static_cast<size_t>(j * d + x)] * k[p][static_cast<size_t>(from + x)];
        sum += std::exp(score);
        for (int64_t x = 0; x < d; ++x)
          a[static_cast<size_t>(j * d + x)] += std::exp(score) * v[p][static_cast<size_t>(from + x)];
      }
      for (int64_t x = 0; x < d; ++x) a[static_cast<size_t>(j * d + x)] /= sum;
    }
    out.push_back(a);
  }
  return out;
}

}  // namespace

TEST_CASE(
    "attention over text, images and sound is that of the formulas, in every layer and for every step") {
  const int64_t n = 110;
  for (const int64_t n_ubatch : {256, 8}) {
    const auto model = load("tiny-gemma4-f32.gguf", n_ubatch);
    const int64_t d_model = model->config().d_model;
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    std::iota(tokens.begin(), tokens.end(), 2);
    const std::shared_ptr<float[]> vectors(new float[static_cast<size_t>(n * d_model)]);
    for (int64_t i = 0; i < n * d_model; ++i)
      vectors[static_cast<size_t>(i)] = std::sin(static_cast<float>(i * i));
    // A block longer than the window of 16, sound, two blocks in a row, one at the end.
    const std::vector<MediaRows> media = {{12, 40, vectors, true},
                                          {55, 10, vectors, false},
                                          {70, 5, vectors, true},
                                          {75, 7, vectors, true},
                                          {100, 10, vectors, true}};
    std::vector<int> block(static_cast<size_t>(n), -1);
    for (size_t m = 0; m < media.size(); ++m)
      for (int64_t p = media[m].first; p < media[m].end(); ++p)
        if (media[m].is_block) block[static_cast<size_t>(p)] = static_cast<int>(m);

    std::map<std::pair<std::string, int64_t>, Matrix> seen;
    const Tap tap([&](const char* what, int64_t layer, Rows rows) { add_rows(seen[{what, layer}], rows); });
    Session session(model, 128, DType::F32);
    session.append(tokens, media, nullptr, {}, &tap);

    for (const MediaRows& m : media)
      for (int64_t p = 0; p < m.n_rows; ++p)
        CHECK(seen[{"embed", -1}][static_cast<size_t>(m.first + p)] ==
              std::vector<float>(vectors.get() + p * d_model, vectors.get() + (p + 1) * d_model));
    for (size_t i = 0; i < model->config().layers.size(); ++i) {
      const auto layer = static_cast<int64_t>(i);
      const auto expected = reference_attention(*model, i, seen[{"attn_in", layer}], block);
      const Matrix& found = seen[{"attn_heads", layer}];
      REQUIRE(found.size() == expected.size());
      double worst = 0;
      for (size_t row = 0; row < found.size(); ++row) {
        double error = 0, norm = 0;
        for (size_t x = 0; x < found[row].size(); ++x) {
          error += std::pow(found[row][x] - expected[row][x], 2);
          norm += std::pow(expected[row][x], 2);
        }
        worst = std::max(worst, std::sqrt(error / norm));
      }
      CHECK(worst < 1e-5);
    }
  }
}

namespace {

// Logits of every position, in steps of `step` rows, with keys kept whole or as the file allows.
Matrix all_logits(const char* name, bool keep_keys, KvTypes types, int64_t step) {
  const auto file = GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/" + name);
  Config config = Config::from_gguf(*file);
  if (keep_keys)
    for (LayerConfig& layer : config.layers) layer.n_turned = 0;
  const auto backend = open_cpu("", 2);
  const Weights weights = Weights::bind(*file, config, *backend);
  Gemma4 gemma(config, weights, *backend, step, step);
  KvCache kv(config, 600, types, step);
  Matrix logits;
  for (int64_t p = 0; p < 600; p += step) {
    const int64_t n = std::min(step, 600 - p);
    std::vector<int32_t> tokens;
    std::vector<int64_t> positions;
    for (int64_t i = p; i < p + n; ++i) {
      tokens.push_back(static_cast<int32_t>(2 + i * i % 200));
      positions.push_back(i);
    }
    const Batch::Sequence sequence{0, n, &kv};
    kv.will_write(p + n);
    add_rows(logits,
             gemma.logits(gemma.forward({tokens, positions, std::span(&sequence, 1)}, nullptr, nullptr)));
  }
  return logits;
}

double worst_difference(const Matrix& a, const Matrix& b) {
  double worst = 0, top = 0;
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < a[i].size(); ++j) {
      worst = std::max(worst, std::fabs(static_cast<double>(a[i][j]) - b[i][j]));
      top = std::max(top, std::fabs(static_cast<double>(b[i][j])));
    }
  return worst / top;
}

}  // namespace

TEST_CASE("keys that are part of the values give the logits of whole keys, and every step the same bits") {
  const char* name = "tiny-gemma4-f32.gguf";
  CHECK(load(name, 8)->config().layers[2].n_turned == 8);
  CHECK(load("tiny-gemma4-e2b-f16.gguf", 8)->config().layers[2].n_turned == 0);  // it has value matrices
  const Matrix whole = all_logits(name, true, DType::F32, 64);
  const double f32 = worst_difference(all_logits(name, false, DType::F32, 64), whole);
  MESSAGE("largest difference of logits, relative to the largest logit: " << f32);
  CHECK(f32 <= 1e-5);
  for (const KvTypes types : {KvTypes(DType::F16), KvTypes(DType::Q8_0), KvTypes(DType::Q8_0, DType::F16)}) {
    const Matrix shared = all_logits(name, false, types, 64);
    const double error = worst_difference(shared, whole);
    const double error_whole = worst_difference(all_logits(name, true, types, 64), whole);
    MESSAGE(format_kv_types(types) << ": " << error << ", with whole keys " << error_whole);
    CHECK(error <= 1.5 * error_whole);  // random weights make much of little
    for (const int64_t step : {1, 3}) CHECK(all_logits(name, false, types, step) == shared);
  }
}
