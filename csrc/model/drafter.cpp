#include "model/drafter.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "model/binder.h"

namespace gemmule {
namespace {

// The clusters of a head are keys and no tensors: llama.cpp opens no drafter with tensors of theirs.
constexpr const char* kCentroids = "gemmule.drafter.centroids";  // f32 [n_clusters, d_model]
constexpr const char* kClusters = "gemmule.drafter.clusters";    // i32 [n_clusters, n_vocab / n_clusters]
constexpr const char* kClustersUsed = "gemmule.drafter.n_clusters_used";

// Every token must be in one cluster: the numbers are rows of the head.
std::vector<int32_t> read_clusters(const GgufFile& file, int64_t n_vocab) {
  const std::vector<int64_t> tokens = file.get_ints(kClusters);
  std::vector<bool> seen(static_cast<size_t>(n_vocab));
  std::vector<int32_t> clusters;
  for (const int64_t token : tokens) {
    if (token < 0 || token >= n_vocab || seen[static_cast<size_t>(token)])
      throw FormatError(cat(file.path(), ": ", kClusters, " holds ", token, " at ", clusters.size(),
                            ", which is no token or there twice; convert the drafter again"));
    seen[static_cast<size_t>(token)] = true;
    clusters.push_back(static_cast<int32_t>(token));
  }
  if (static_cast<int64_t>(clusters.size()) != n_vocab)
    throw FormatError(cat(file.path(), ": ", kClusters, " holds ", clusters.size(), " of ", n_vocab,
                          " tokens; convert the drafter again"));
  return clusters;
}

Tensor read_centroids(const GgufFile& file, const DrafterConfig& c, Backend& backend) {
  const std::vector<double> read = file.get_floats(kCentroids);
  const std::vector<float> numbers(read.begin(), read.end());
  const Rows placed = backend.alloc(c.n_clusters, c.stack.d_model);
  backend.write(placed, numbers.data());
  return {DType::F32, c.n_clusters, c.stack.d_model, reinterpret_cast<const uint8_t*>(placed.data)};
}

}  // namespace

DrafterConfig DrafterConfig::from_gguf(const GgufFile& file, const Config& target, int64_t n_vocab) {
  DrafterConfig c;
  c.stack = Config::drafter_from_gguf(file, target);
  c.d_target = target.d_model;
  c.target_scale = target.embed_scale;
  if (n_vocab < 0 || n_vocab > target.n_vocab)
    throw std::invalid_argument(
        cat("draft_vocab is ", n_vocab, "; choose up to ", target.n_vocab, " tokens, or 0 for all"));
  c.n_vocab_drafted = n_vocab > 0 ? n_vocab : target.n_vocab;
  const GgufValue* centroids = file.find(kCentroids);
  if (centroids == nullptr) return c;
  if (n_vocab > 0)
    throw std::invalid_argument(
        cat(file.path(), ": the drafter computes few logits already; leave out draft_vocab"));
  const auto n_numbers = static_cast<int64_t>(centroids->count);
  c.n_clusters = n_numbers / c.stack.d_model;
  if (centroids->type != ValueType::Array || n_numbers % c.stack.d_model != 0 || c.n_clusters == 0 ||
      target.n_vocab % c.n_clusters != 0)
    throw FormatError(cat(file.path(), ": ", kCentroids, " must hold ", c.stack.d_model, " numbers for each ",
                          "of some clusters that share ", target.n_vocab, " tokens evenly"));
  c.n_clusters_used = file.get_int(kClustersUsed);
  if (c.n_clusters_used < 1 || c.n_clusters_used > c.n_clusters)
    throw FormatError(cat(file.path(), ": ", kClustersUsed, " is ", c.n_clusters_used,
                          "; it must lie between 1 and ", c.n_clusters));
  return c;
}

DrafterWeights DrafterWeights::bind(const GgufFile& file, const DrafterConfig& c, const GgufFile& target,
                                    Backend& backend) {
  Binder bind(file, backend), of_target(target, backend);
  DrafterWeights w;
  w.stack = Weights::bind(bind, of_target, c.stack, backend);
  const auto n_pairs = static_cast<int64_t>(w.stack.rope_factors.size());
  const Tensor factors = of_target.host_vector("rope_freqs.weight", n_pairs);
  if (!std::equal(w.stack.rope_factors.begin(), w.stack.rope_factors.end(), factors.f32()))
    throw FormatError(cat(file.path(), ": rope_freqs.weight differs from that of ", target.path(),
                          "; give the drafter of the same model"));
  w.target_embed = of_target.matrix("token_embd.weight", c.stack.n_vocab, c.d_target);
  w.pre = bind.matrix("nextn.pre_projection.weight", c.stack.d_model, 2 * c.d_target);
  w.post = bind.matrix("nextn.post_projection.weight", c.d_target, c.stack.d_model);
  w.head = w.stack.output;
  w.head.rows = c.n_vocab_drafted;
  if (c.n_clusters > 0) {
    w.centroids = read_centroids(file, c, backend);
    w.clusters = read_clusters(file, c.stack.n_vocab);
    if (w.head.layout != Layout::Rows)
      bind.refuse("token_embd.weight",
                  "is packed, but a head with clusters is read by the row; unpack the file");
  }
  bind.refuse_unused();
  return w;
}

Drafter::Drafter(const DrafterConfig& config, const DrafterWeights& weights, Backend& backend)
    : cfg_(config), w_(weights), be_(backend), stack_(config.stack, weights.stack, backend, 1, 0) {
  in_ = be_.alloc(1, 2 * cfg_.d_target);
  next_ = be_.alloc(1, cfg_.d_target);
  logits_ = be_.alloc(1, cfg_.stack.n_vocab);
  std::fill_n(logits_.data, logits_.cols, -std::numeric_limits<float>::infinity());
  be_.reserve(1, in_.cols, 0);
  if (cfg_.n_clusters == 0) return;
  scores_ = be_.alloc(1, cfg_.n_clusters);
  order_.resize(static_cast<size_t>(cfg_.n_clusters));
  tokens_.resize(static_cast<size_t>(cfg_.stack.n_vocab / cfg_.n_clusters * cfg_.n_clusters_used));
  kept_.resize(tokens_.size());
}

Drafter::Step Drafter::step(int32_t token, std::span<const float> hidden, int64_t pos, const KvCache& kv) {
  if (token < 0 || token >= cfg_.stack.n_vocab)
    throw std::invalid_argument(
        cat("the token is ", token, ", outside the vocabulary of ", cfg_.stack.n_vocab));
  if (pos < 1 || pos > kv.written())
    throw std::invalid_argument(
        cat("the position is ", pos, "; a drafter reads 1 to ", kv.written(), " positions before it"));
  const Rows embedding = in_.as(1, cfg_.d_target);
  be_.embed(embedding, w_.target_embed, std::span(&token, 1), cfg_.target_scale);
  be_.write({in_.data + cfg_.d_target, 1, cfg_.d_target}, hidden.data());
  be_.matmul(stack_.stream(1), w_.pre, in_);
  const Batch::Sequence sequence{0, 1, &kv};
  const Rows y = stack_.run_layers({{}, std::span(&pos, 1), std::span(&sequence, 1), {}}, nullptr, nullptr);
  if (cfg_.n_clusters > 0)
    cluster_logits(y);
  else
    be_.matmul(logits_, w_.head, y);
  be_.matmul(next_, w_.post, y);
  return {{logits_.data, static_cast<size_t>(logits_.cols)}, {next_.data, static_cast<size_t>(next_.cols)}};
}

void Drafter::cluster_logits(Rows y) {
  be_.matmul(scores_, w_.centroids, y);
  const auto score = [&](int32_t cluster) {
    const float s = scores_.data[cluster];
    return s == s ? s : -std::numeric_limits<float>::infinity();  // an order needs numbers
  };
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + cfg_.n_clusters_used, order_.end(),
                    [&](int32_t a, int32_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  const size_t size = w_.clusters.size() / order_.size();
  auto to = tokens_.begin();
  for (int64_t i = 0; i < cfg_.n_clusters_used; ++i) {
    const auto tokens =
        std::span(w_.clusters).subspan(static_cast<size_t>(order_[static_cast<size_t>(i)]) * size, size);
    to = std::copy(tokens.begin(), tokens.end(), to);
  }
  be_.matmul_rows(logits_, w_.head, y, tokens_);
  for (size_t i = 0; i < tokens_.size(); ++i) kept_[i] = logits_.data[tokens_[i]];
  std::fill_n(logits_.data, logits_.cols, *std::min_element(kept_.begin(), kept_.end()) - 1);
  for (size_t i = 0; i < tokens_.size(); ++i) logits_.data[tokens_[i]] = kept_[i];
}

}  // namespace gemmule
