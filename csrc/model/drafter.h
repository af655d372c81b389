// The drafter of a Gemma 4 model (its "assistant", multi-token prediction): a few layers that guess the next
// token from the model's last hidden state and read the model's own keys and values.
//   x = W_pre [sqrt(d_target) * embed_target[token]; hidden]
//   y = stack(x)                              gemma4.h, with queries alone
//   logits = head y,  next hidden = W_post y
// The small drafters (E2B, E4B) compute few of the logits: those of the tokens in the clusters whose
// centroids have the largest products with y. A round of drafts stands at one position: that of the token the
// model is to read next. Source: the Gemma 4 assistants in transformers; docs/MODEL.md, "Drafters".
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "gguf/gguf_reader.h"
#include "model/config.h"
#include "model/gemma4.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace gemmule {

struct DrafterConfig {
  Config stack;                 // kv_from of its layers are layers of the target
  int64_t d_target = 0;         // width of the target
  float target_scale = 0;       // of the target's embeddings
  int64_t n_vocab_drafted = 0;  // the first so many tokens have a logit, the others -infinity
  int64_t n_clusters = 0;       // of the tokens, all of one size; 0: none
  int64_t n_clusters_used = 0;  // in a step

  // target: of the model to draft for. n_vocab: how many tokens may be drafted; 0: all. Throws FormatError or
  // UnsupportedError naming file and key, std::invalid_argument for n_vocab.
  static DrafterConfig from_gguf(const GgufFile& file, const Config& target, int64_t n_vocab = 0);
};

struct DrafterWeights {
  Weights stack;                  // its embed serves as the head only
  Tensor target_embed;            // [n_vocab, d_target], the target's
  Tensor pre;                     // [d_model, 2 * d_target]
  Tensor post;                    // [d_target, d_model]
  Tensor head;                    // [n_vocab_drafted, d_model]
  Tensor centroids;               // [n_clusters, d_model]
  std::vector<int32_t> clusters;  // [n_clusters, n_vocab / n_clusters] tokens; each is in one of them

  // Throws as Weights::bind does.
  static DrafterWeights bind(const GgufFile& file, const DrafterConfig& config, const GgufFile& target,
                             Backend& backend);
};

class Drafter {
 public:
  struct Step {
    // [n_vocab]; tokens that were left out because of the clusters have one less than the least of the others
    std::span<const float> logits;
    std::span<const float> hidden;  // [d_target], for the next step of the round
  };

  Drafter(const DrafterConfig& config, const DrafterWeights& weights, Backend& backend);

  // Guesses what follows `token`. hidden [d_target]: of the token before it, the target's after its last norm
  // in the first step of a round, then Step::hidden. pos: that of the first step's token, the same in the
  // whole round. Reads the positions before pos of kv, which must be there, and writes nothing. The result is
  // valid until the next call. Throws std::invalid_argument for a token or a position out of range.
  Step step(int32_t token, std::span<const float> hidden, int64_t pos, const KvCache& kv);

 private:
  void cluster_logits(Rows y);

  const DrafterConfig& cfg_;
  const DrafterWeights& w_;
  Backend& be_;
  Gemma4 stack_;
  Rows in_;                      // [1, 2 * d_target]
  Rows next_;                    // [1, d_target]
  Rows logits_;                  // [1, n_vocab]
  Rows scores_;                  // [1, n_clusters]
  std::vector<int32_t> order_;   // [n_clusters] clusters, the best ones first
  std::vector<int32_t> tokens_;  // of the best clusters
  std::vector<float> kept_;      // their logits
};

}  // namespace gemmule
