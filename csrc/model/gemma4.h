// The Gemma text decoder (Gemma 3 and the whole Gemma 4 family): one pass over the rows of a batch. Prefill,
// decode and the verification of drafts are the same code: a row is a token with a position in a sequence.
#pragma once

#include <concepts>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/stop_token.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace gemmule {

// The rows of one pass. Rows of one sequence are consecutive and in ascending position.
struct Batch {
  struct Sequence {
    int64_t row = 0;
    int64_t n_rows = 0;
    const KvCache* kv = nullptr;
  };
  // Rows that start from given vectors and not from the embedding of their token: an image, sound. The rows
  // of a block see each other on sliding layers, forwards too; they must all be in the batch.
  struct Media {
    int64_t row = 0;
    int64_t n_rows = 0;
    const float* vectors = nullptr;  // [n_rows, d_model], already at the scale of the residual stream
    bool is_block = false;
  };
  std::span<const int32_t> tokens;      // [n]
  std::span<const int64_t> pos;         // [n] absolute position in the row's sequence
  std::span<const Sequence> sequences;  // cover the rows in order
  std::span<const Media> media = {};    // ascending; none in models with a per-layer embedding
};

// Shown every named intermediate of a pass, for tests, debugging and the importance matrix. Names are listed
// in docs/MODEL.md; among them is the input of every product. Values are [n, cols], rows in batch order, and
// valid during the call. What experts work on goes to the second function: called once for each expert that
// has rows, in ascending order, with just those rows.
struct Tap {
  using ValuesFn = std::function<void(const char* name, int64_t layer, Rows values)>;  // layer -1: outside
  using ExpertFn = std::function<void(const char* name, int64_t layer, int64_t expert, Rows values)>;

  template <std::invocable<const char*, int64_t, Rows> Fn>
  Tap(Fn on_values, ExpertFn on_experts = {})
      : values(std::move(on_values)), experts(std::move(on_experts)) {}

  ValuesFn values;
  ExpertFn experts;
};

class Gemma4 {
 public:
  // max_rows: rows of the largest batch; max_logits: rows of the largest `logits` call.
  Gemma4(const Config& config, const Weights& weights, Backend& backend, int64_t max_rows,
         int64_t max_logits);

  // Runs the batch, stores its keys and values and returns the final hidden states [n, d_model], after the
  // last norm. They are valid until the next call. Throws Cancelled; what the caches hold for the batch's
  // positions is then undefined, earlier positions are untouched.
  Rows forward(const Batch& batch, const StopToken* stop, const Tap* tap);

  // `forward` in two halves, for a stack whose rows do not start from embeddings (a drafter): fill `stream`
  // [n, d_model], then run the layers over it; tokens and media of the batch are not looked at.
  Rows stream(int64_t n) { return s_.x.first(n); }
  Rows run_layers(const Batch& batch, const StopToken* stop, const Tap* tap);

  // hidden: up to max_logits rows of what `forward` returned -> logits [n, n_vocab], softcapped; valid until
  // the next call.
  Rows logits(Rows hidden);

  static int64_t scratch_bytes(const Config& config, int64_t max_rows, int64_t max_logits);

 private:
  // Activations of a pass; n = rows of the batch.
  struct Buffers {
    Rows x;               // [n, d_model]   residual stream
    Rows h;               // [n, d_model]   normed input of a block, then its output
    Rows q;               // [n, n_heads * head_dim] of the widest layer; so are the next three
    Rows k, v;            // [n, n_kv_heads * head_dim]
    Rows a;               // [n, n_heads * head_dim]
    Rows gate, up;        // [n, d_ff] of the widest layer
    Rows y;               // [n, d_model]   final hidden states
    Rows logits;          // [max_logits, n_vocab]
    Rows cos[2], sin[2];  // [n, n_rot] for global (0) and sliding (1) layers

    Rows ple, ple_token;  // [n, n_layers * d_ple]
    Rows ple_gate;        // [n, d_ple]

    Rows scores;                  // [n, n_experts]
    Rows u;                       // [n, d_model]   input of router and experts, then the sum of the experts
    Rows pairs;                   // [n * n_experts_used, d_model]  inputs of the experts, then their outputs
    Rows expert_gate, expert_up;  // [n * n_experts_used, d_ff_expert] of the widest layer
    Routes routes;
  };

  void embed_per_layer(const Batch& batch, const Tap* tap);
  void attention(size_t layer, const Batch& batch, const Tap* tap);
  void feed_forward(size_t layer, const Tap* tap);
  void add_experts(size_t layer, Rows h, const Tap* tap);
  void per_layer_input(size_t layer, const Tap* tap);
  void place_rows(const Batch& batch);

  const Config& cfg_;
  const Weights& w_;
  Backend& be_;
  Buffers s_;
  std::vector<float> freq_[2];          // rotary frequencies: global, sliding
  std::vector<int64_t> lo_[2], hi_[2];  // visible positions of each row, by layer kind
  std::vector<KvRun> runs_;
  int64_t n_ = 0;  // rows of the current batch
};

}  // namespace gemmule
