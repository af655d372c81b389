// One timeline of tokens that keeps its keys and values. A session is used by one thread at a time (the
// bindings lock it); several sessions share a model and take turns step by step.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/stop_token.h"
#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "model/kv_cache.h"

namespace gemmule {

class Session {
 public:
  // Throws NotEnoughMemoryError with need, have and the largest context that fits.
  Session(std::shared_ptr<LoadedModel> model, int64_t n_ctx, DType kv_type);

  int64_t n_ctx() const { return kv_.n_ctx(); }
  int64_t kv_bytes() const { return kv_.size_bytes(); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  LoadedModel& model() { return *model_; }

  // Called with (rows done, rows in all) after every step.
  using Progress = std::function<void(int64_t, int64_t)>;
  // Receives the final hidden states of rows [first, first + hidden.n) of the appended tokens, with the model
  // held.
  using Consume = std::function<void(Gemma4& gemma, int64_t first, Rows hidden)>;

  // Throws ContextLengthError when `tokens` do not fit after what the session holds.
  void check_room(std::span<const int32_t> tokens) const;

  // Runs `tokens` after what the session holds. Either all of them are kept or, on any exception, none.
  // Throws ContextLengthError before anything runs, Cancelled, FormatError (file cut meanwhile).
  void append(std::span<const int32_t> tokens, const StopToken* stop, const Progress& progress,
              const Tap* tap = nullptr, const Consume& consume = {});

  // logits of the last token [n_vocab]; throws Error on an empty session.
  // After a rewind the last token is run again first.
  std::span<const float> logits(const StopToken* stop = nullptr);

  Sampled sample(Sampler& sampler, size_t n_prompt, const StopToken* stop = nullptr);

  // Keeps the first n tokens. Where a sliding window has already been overwritten, the next append first
  // re-reads the kept tokens.
  void rewind(int64_t n);

  // Appends one piece to each of several sessions of one model in shared steps. Gives the same bits as one by
  // one.
  static void append_together(std::span<Session* const> sessions,
                              std::span<const std::vector<int32_t>> pieces, const StopToken* stop);

 private:
  void check_ids(std::span<const int32_t> tokens) const;
  void replay(const StopToken* stop);
  void run_rows(std::span<const int32_t> tokens, int64_t pos, const StopToken* stop, const Progress& progress,
                const Tap* tap, const Consume& consume);
  void keep_logits(Gemma4& gemma, Rows last_hidden, int64_t position);

  std::shared_ptr<LoadedModel> model_;
  KvCache kv_;
  std::vector<int32_t> tokens_;
  int64_t n_stored_ =
      0;  // tokens whose keys and values are valid; less than tokens_.size() after a deep rewind
  int64_t n_written_ = 0;           // one past the highest position ever stored
  std::vector<int64_t> positions_;  // of the rows of a step
  std::vector<float> logits_;       // of the last token; empty: not computed
};

}  // namespace gemmule
