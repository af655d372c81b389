// Metadata -> Config. Every value is read with its range; anything the forward pass does not implement is
// refused here, by key, so that no unsupported variant can run and merely sound fluent.
#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/utf8.h"
#include "model/rope.h"

namespace gemmule {
namespace {

class Reader {
 public:
  Reader(const GgufFile& file, const std::string& prefix) : file_(file), prefix_(prefix + ".") {}

  std::string key(const char* name) const { return prefix_ + name; }
  bool has(const char* name) const { return file_.find(key(name)) != nullptr; }

  int64_t integer(const char* name, int64_t low, int64_t high) const {
    return checked(key(name), file_.get_int(key(name)), low, high);
  }
  int64_t integer_or(const char* name, int64_t fallback, int64_t low, int64_t high) const {
    return has(name) ? integer(name, low, high) : fallback;
  }
  double number(const char* name, double low, double high) const {
    const double value = file_.get_float(key(name));
    if (!(value >= low && value <= high))
      throw FormatError(cat(file_.path(), ": ", key(name), " is ", value, ", outside ", low, " to ", high));
    return value;
  }
  double number_or(const char* name, double fallback, double low, double high) const {
    return has(name) ? number(name, low, high) : fallback;
  }
  // One value per layer: an array of that length, or one scalar for all.
  std::vector<int64_t> per_layer(const char* name, int64_t n_layers, int64_t low, int64_t high) const {
    const GgufValue* value = file_.find(key(name));
    if (value == nullptr || value->type != ValueType::Array)
      return std::vector<int64_t>(static_cast<size_t>(n_layers), integer(name, low, high));
    std::vector<int64_t> values = file_.get_ints(key(name));
    if (static_cast<int64_t>(values.size()) != n_layers)
      throw FormatError(
          cat(file_.path(), ": ", key(name), " has ", values.size(), " values for ", n_layers, " layers"));
    for (const int64_t v : values) checked(key(name), v, low, high);
    return values;
  }
  void refuse_if_set(const char* name, const char* what) const {
    const GgufValue* value = file_.find(key(name));
    if (value == nullptr) return;
    const bool is_float = value->type == ValueType::F32 || value->type == ValueType::F64;
    if (is_float ? file_.get_float(key(name)) == 0
                 : value->type != ValueType::Array && file_.get_int(key(name)) == 0)
      return;
    throw UnsupportedError(
        cat(file_.path(), ": ", key(name), " asks for ", what, ", which this version cannot run"));
  }

 private:
  int64_t checked(const std::string& name, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high)
      throw FormatError(cat(file_.path(), ": ", name, " is ", value, ", outside ", low, " to ", high));
    return value;
  }

  const GgufFile& file_;
  std::string prefix_;
};

constexpr double kMinRopeBase = 1, kMaxRopeBase = 1e9;

void read_common(Config& c, const Reader& read) {
  c.n_layers = read.integer("block_count", 1, kMaxLayers);
  c.d_model = read.integer("embedding_length", 8, kMaxWidth);
  c.n_ctx_train = read.integer("context_length", 1, kMaxContext);
  c.rms_eps = static_cast<float>(read.number("attention.layer_norm_rms_epsilon", 1e-12, 1e-1));
  c.window = read.integer("attention.sliding_window", 1, kMaxContext);
  c.final_softcap = static_cast<float>(read.number_or("final_logit_softcapping", 0, 0, 1e6));
  c.embed_scale = std::sqrt(static_cast<float>(c.d_model));
  read.refuse_if_set("attn_logit_softcapping", "a softcap on attention scores");
}

void check_heads(const Config& c, const GgufFile& file, const Reader& read) {
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerConfig& layer = c.layers[i];
    if (layer.n_heads % layer.n_kv_heads != 0)
      throw FormatError(cat(file.path(), ": ", read.key("attention.head_count"), " ", layer.n_heads,
                            " of layer ", i, " is not a multiple of head_count_kv ", layer.n_kv_heads));
    if (layer.head_dim % 8 != 0)
      throw UnsupportedError(cat(file.path(), ": ", read.key("attention.key_length"), " ", layer.head_dim,
                                 " is not a multiple of 8, which this version needs"));
  }
}

// Gemma 3: every sixth layer is global; all heads alike. Values that Gemma 3 files leave out are the
// published ones.
void read_gemma3(Config& c, const GgufFile& file, const Reader& read) {
  const auto n_heads = read.per_layer("attention.head_count", c.n_layers, 1, kMaxHeads);
  const auto n_kv_heads = read.per_layer("attention.head_count_kv", c.n_layers, 1, kMaxHeads);
  const int64_t head_dim = read.integer("attention.key_length", 8, kMaxHeadDim);
  if (read.integer_or("attention.value_length", head_dim, 8, kMaxHeadDim) != head_dim)
    throw UnsupportedError(cat(file.path(), ": ", read.key("attention.value_length"),
                               " differs from key_length ", head_dim, ", which this version cannot run"));
  const auto d_ff = read.per_layer("feed_forward_length", c.n_layers, 8, kMaxWidth);
  read.refuse_if_set("expert_count", "a mixture of experts in a Gemma 3 model");
  read.refuse_if_set("attention.shared_kv_layers", "layers that share keys and values in a Gemma 3 model");
  read.refuse_if_set("embedding_length_per_layer_input", "per-layer embeddings in a Gemma 3 model");
  constexpr size_t kPattern = 6;
  for (size_t i = 0; i < d_ff.size(); ++i)
    c.layers.push_back({(i + 1) % kPattern != 0, n_heads[i], n_kv_heads[i], head_dim, d_ff[i]});
  // 27B divides by d_model / n_heads instead of head_dim; it is the one with 62 layers.
  constexpr int64_t kLayers27B = 62;
  const double query_scale = c.n_layers == kLayers27B
                                 ? static_cast<double>(c.d_model) / static_cast<double>(n_heads[0])
                                 : static_cast<double>(head_dim);
  c.attn_scale = static_cast<float>(1.0 / std::sqrt(query_scale));
  const std::string_view scaling = file.string_or(read.key("rope.scaling.type"), "none");
  if (scaling != "none" && scaling != "linear")
    throw UnsupportedError(cat(file.path(), ": ", read.key("rope.scaling.type"), " is \"", printable(scaling),
                               "\"; this version runs \"none\" and \"linear\""));
  c.rope_sliding = {read.number_or("rope.freq_base_swa", 1e4, kMinRopeBase, kMaxRopeBase), head_dim, 1};
  c.rope_global = {read.number_or("rope.freq_base", 1e6, kMinRopeBase, kMaxRopeBase), head_dim,
                   1 / read.number_or("rope.scaling.factor", 1, 1, 1e4)};
}

// The last `shared_kv_layers` layers have no keys and values of their own: each reads the cache of the last
// layer of its kind that has. Source: the Gemma 4 E2B and E4B configurations.
void read_shared_kv(Config& c, const GgufFile& file, const Reader& read) {
  const char* const key = "attention.shared_kv_layers";
  const int64_t n_own = c.n_layers - read.integer_or(key, 0, 0, c.n_layers - 1);
  for (int64_t i = n_own; i < c.n_layers; ++i) {
    LayerConfig& layer = c.layers[static_cast<size_t>(i)];
    int64_t from = n_own - 1;
    while (from >= 0 && c.layers[static_cast<size_t>(from)].is_sliding != layer.is_sliding) --from;
    if (from < 0)
      throw FormatError(cat(file.path(), ": ", read.key(key), " leaves layer ", i, " without an earlier ",
                            layer.is_sliding ? "sliding" : "global", " layer to share keys and values with"));
    if (c.layers[static_cast<size_t>(from)].n_kv_heads != layer.n_kv_heads)
      throw FormatError(cat(file.path(), ": ", read.key("attention.head_count_kv"), " is ", layer.n_kv_heads,
                            " for layer ", i, " and ", c.layers[static_cast<size_t>(from)].n_kv_heads,
                            " for layer ", from, ", whose keys and values it shares"));
    layer.kv_from = from;
  }
}

// The second embedding of E2B and E4B, and the experts of 26B-A4B.
void read_extras(Config& c, const GgufFile& file, const Reader& read) {
  const char* const ple_key = "embedding_length_per_layer_input";
  c.d_ple = read.integer_or(ple_key, 0, 0, kMaxWidth);
  if (c.d_ple * c.n_layers > kMaxWidth)
    throw FormatError(cat(file.path(), ": ", read.key(ple_key), " is ", c.d_ple, " for each of ", c.n_layers,
                          " layers, more than ", kMaxWidth, " together"));
  c.n_experts = read.integer_or("expert_count", 0, 0, kMaxExperts);
  if (c.n_experts == 0) return;
  c.n_experts_used = read.integer("expert_used_count", 1, c.n_experts);
  const auto d_ff = read.per_layer("expert_feed_forward_length", c.n_layers, 8, kMaxWidth);
  for (size_t i = 0; i < d_ff.size(); ++i) c.layers[i].d_ff_expert = d_ff[i];
}

// Where a global layer has no value matrix, a value is the key before its weight and rotation. The numbers of
// a key that do not turn then need no memory of their own: they are a weight times those of the value.
void read_turned(Config& c, const GgufFile& file) {
  const GgufTensor* factors = file.find_tensor("rope_freqs.weight");
  if (factors == nullptr || factors->dtype != DType::F32) return;
  const Tensor view = file.view(*factors);
  for (size_t i = 0; i < c.layers.size(); ++i) {
    LayerConfig& layer = c.layers[i];
    if (!layer.owns_kv()) {
      layer.n_turned = c.layers[static_cast<size_t>(layer.kv_from)].n_turned;
      continue;
    }
    const int64_t n_pairs = layer.head_dim / 2;
    const bool v_is_k = !layer.is_sliding && file.find_tensor(cat("blk.", i, ".attn_v.weight")) == nullptr;
    if (!v_is_k || view.rows * view.cols != n_pairs) continue;
    int64_t n = 0;
    while (n < n_pairs && view.f32()[n] <= kDoesNotTurn) ++n;
    const int64_t n_kept = (n + 7) / 8 * 8;  // backends work on eights
    if (n_kept < n_pairs && n_pairs % 8 == 0) layer.n_turned = n_kept;
  }
}

// Gemma 4: the pattern, the head sizes and the key/value heads differ between layer kinds.
void read_gemma4_layers(Config& c, const GgufFile& file, const Reader& read) {
  const auto n_heads = read.per_layer("attention.head_count", c.n_layers, 1, kMaxHeads);
  const auto n_kv_heads = read.per_layer("attention.head_count_kv", c.n_layers, 1, kMaxHeads);
  const int64_t dim_global = read.integer("attention.key_length", 8, kMaxHeadDim);
  const int64_t dim_sliding = read.integer("attention.key_length_swa", 8, kMaxHeadDim);
  if (read.integer_or("attention.value_length", dim_global, 8, kMaxHeadDim) != dim_global ||
      read.integer_or("attention.value_length_swa", dim_sliding, 8, kMaxHeadDim) != dim_sliding)
    throw UnsupportedError(cat(file.path(), ": ", read.key("attention.value_length"),
                               " differs from key_length, which this version cannot run"));
  const auto pattern = read.per_layer("attention.sliding_window_pattern", c.n_layers, 0, 1);
  const auto d_ff = read.per_layer("feed_forward_length", c.n_layers, 8, kMaxWidth);
  for (size_t i = 0; i < d_ff.size(); ++i)
    c.layers.push_back(
        {pattern[i] != 0, n_heads[i], n_kv_heads[i], pattern[i] != 0 ? dim_sliding : dim_global, d_ff[i]});
  c.attn_scale = 1;
  c.v_norm = true;
  c.has_out_scale = true;
  c.has_rope_factors = true;
  c.rope_sliding = {read.number_or("rope.freq_base_swa", 1e4, kMinRopeBase, kMaxRopeBase), dim_sliding, 1};
  c.rope_global = {read.number_or("rope.freq_base", 1e6, kMinRopeBase, kMaxRopeBase), dim_global, 1};
  if (read.integer_or("rope.dimension_count", dim_global, 1, kMaxHeadDim) != dim_global ||
      read.integer_or("rope.dimension_count_swa", dim_sliding, 1, kMaxHeadDim) != dim_sliding)
    throw UnsupportedError(cat(file.path(), ": ", read.key("rope.dimension_count"),
                               " differs from the head size, which this version cannot run"));
}

void read_gemma4(Config& c, const GgufFile& file, const Reader& read) {
  read_gemma4_layers(c, file, read);
  read_shared_kv(c, file, read);
  read_extras(c, file, read);
  read_turned(c, file);
}

// Each layer of a drafter reads the last layer of its kind that has keys of its own.
void read_target_kv(Config& c, const Config& target, const GgufFile& file, const Reader& read) {
  const auto same = [&](const std::string& key, const auto& found, const auto& wanted) {
    if (found != wanted)
      throw FormatError(cat(file.path(), ": ", key, " is ", found, ", but ", wanted,
                            " in the model it is to draft for; give the drafter of the same model"));
  };
  same(read.key("embedding_length_out"), read.integer("embedding_length_out", 1, kMaxWidth), target.d_model);
  same(read.key("attention.sliding_window"), c.window, target.window);
  same(read.key("rope.freq_base"), c.rope_global.base, target.rope_global.base);
  same(read.key("rope.freq_base_swa"), c.rope_sliding.base, target.rope_sliding.base);
  for (size_t i = 0; i < c.layers.size(); ++i) {
    LayerConfig& layer = c.layers[i];
    int64_t from = target.n_layers - 1;
    const auto is_source = [&](const LayerConfig& l) {
      return l.owns_kv() && l.is_sliding == layer.is_sliding;
    };
    while (from >= 0 && !is_source(target.layers[static_cast<size_t>(from)])) --from;
    if (from < 0)
      throw FormatError(cat(file.path(), ": layer ", i, " is ", layer.is_sliding ? "sliding" : "global",
                            " and the model it is to draft for has no such layer"));
    const LayerConfig& source = target.layers[static_cast<size_t>(from)];
    same(read.key(layer.is_sliding ? "attention.key_length_swa" : "attention.key_length"), layer.head_dim,
         source.head_dim);
    same(read.key("attention.head_count_kv"), layer.n_kv_heads, source.n_kv_heads);
    layer.kv_from = from;
    layer.n_turned = source.n_turned;
  }
}

// The matrix that says how many tokens there are.
int64_t read_vocabulary(const GgufFile& file) {
  const GgufTensor* embed = file.find_tensor("token_embd.weight");
  if (embed == nullptr || embed->shape.size() != 2)
    throw FormatError(
        cat(file.path(), ": the matrix token_embd.weight is missing; this is not a complete text model"));
  if (embed->shape[1] > kMaxVocab)
    throw FormatError(
        cat(file.path(), ": token_embd.weight has ", embed->shape[1], " rows, more than ", kMaxVocab));
  return embed->shape[1];
}

}  // namespace

bool Config::owns_kv() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerConfig& layer) { return layer.owns_kv(); });
}

Config Config::from_gguf(const GgufFile& file) {
  Config c;
  c.architecture = std::string(file.get_string("general.architecture"));
  if (c.architecture != "gemma3" && c.architecture != "gemma4")
    throw UnsupportedError(cat(file.path(), ": general.architecture is \"", printable(c.architecture),
                               "\"; this version runs gemma3 and gemma4 text models"));
  const Reader read(file, c.architecture);
  read_common(c, read);
  if (c.architecture == "gemma3")
    read_gemma3(c, file, read);
  else
    read_gemma4(c, file, read);
  check_heads(c, file, read);

  c.n_vocab = read_vocabulary(file);
  for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    const GgufValue* value = file.find(key);
    if (value != nullptr &&
        (value->type != ValueType::Array || static_cast<int64_t>(value->count) != c.n_vocab))
      throw FormatError(cat(file.path(), ": ", key, " must be an array of ", c.n_vocab,
                            " items, one per row of token_embd.weight"));
  }
  if (file.find("tokenizer.ggml.suppress_tokens") != nullptr) {
    for (const int64_t id : file.get_ints("tokenizer.ggml.suppress_tokens")) {
      if (id < 0 || id >= c.n_vocab)
        throw FormatError(cat(file.path(), ": tokenizer.ggml.suppress_tokens holds ", id,
                              ", outside the vocabulary of ", c.n_vocab));
      c.suppress_tokens.push_back(static_cast<int32_t>(id));
    }
  }
  return c;
}

Config Config::drafter_from_gguf(const GgufFile& file, const Config& target) {
  Config c;
  c.architecture = std::string(file.get_string("general.architecture"));
  if (c.architecture != "gemma4-assistant" || target.architecture != "gemma4")
    throw UnsupportedError(cat(file.path(), ": general.architecture is \"", printable(c.architecture),
                               "\"; only a gemma4-assistant can draft, and only for a gemma4 model"));
  const Reader read(file, c.architecture);
  read_common(c, read);
  read_gemma4_layers(c, file, read);
  check_heads(c, file, read);
  read.refuse_if_set("embedding_length_per_layer_input", "per-layer embeddings in a drafter");
  read.refuse_if_set("expert_count", "a mixture of experts in a drafter");
  read.refuse_if_set("final_logit_softcapping", "a softcap on the logits of a drafter");
  read_target_kv(c, target, file, read);
  c.n_vocab = read_vocabulary(file);
  if (c.n_vocab != target.n_vocab)
    throw FormatError(cat(file.path(), ": token_embd.weight has ", c.n_vocab,
                          " rows and the model it is to draft for has ", target.n_vocab,
                          " tokens; give the drafter of the same model"));
  return c;
}

}  // namespace gemmule
