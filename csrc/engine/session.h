// One timeline of tokens that keeps its keys and values. A session is used by one thread at a time (the
// bindings lock it); several sessions share a model and take turns step by step.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/stop_token.h"
#include "engine/drafting.h"
#include "engine/loaded_model.h"
#include "engine/memory_plan.h"
#include "engine/sampler.h"
#include "model/kv_cache.h"
#include "model/kv_snapshots.h"

namespace gemmule {

// Rows that start from given vectors instead of the embedding of their token: an image, a video frame, sound.
// The session keeps the vectors, for re-reading after a rewind.
struct MediaRows {
  int64_t first = 0;  // index of the first row
  int64_t n_rows = 0;
  std::shared_ptr<const float[]> vectors;  // [n_rows, d_model], finite
  bool is_block = false;  // the rows see each other on sliding layers, the later ones too; never cut

  int64_t end() const { return first + n_rows; }
};

class Session {
 public:
  // snapshot_limit: bytes for what the sliding rings overwrite. Throws NotEnoughMemoryError.
  Session(std::shared_ptr<LoadedModel> model, int64_t n_ctx, KvTypes kv_types,
          int64_t snapshot_limit = kAutoSnapshots);

  int64_t n_ctx() const { return kv_.n_ctx(); }
  int64_t kv_bytes() const { return kv_.size_bytes(); }       // reserved
  int64_t kv_used_bytes() const { return kv_.used_bytes(); }  // in memory
  int64_t snapshot_bytes() const { return snapshots_.size_bytes(); }
  int64_t snapshot_limit() const { return snapshots_.limit(); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<MediaRows>& media() const { return media_; }  // by position, ascending
  LoadedModel& model() { return *model_; }
  const KvCache& kv() const { return kv_; }

  // Called with (rows done, rows in all) after every step; rows that are read again count.
  using Progress = std::function<void(int64_t, int64_t)>;
  // Receives the final hidden states of rows [first, first + hidden.n) of the appended tokens, with the model
  // held.
  using Consume = std::function<void(Gemma4& gemma, int64_t first, Rows hidden)>;

  // Throws ContextLengthError when `tokens` do not fit after what the session holds.
  void check_room(std::span<const int32_t> tokens) const;

  // Runs `tokens` after what the session holds; rows of `media` (indices into `tokens`, ascending) take their
  // vectors. Either all of them are kept or, on any exception, none. Throws ContextLengthError and
  // UnsupportedError (media for a model that takes none) before anything runs, Cancelled, FormatError (file
  // cut meanwhile), NotEnoughMemoryError (a block larger than the memory).
  void append(std::span<const int32_t> tokens, std::span<const MediaRows> media, const StopToken* stop,
              const Progress& progress, const Tap* tap = nullptr, const Consume& consume = {});
  void append(std::span<const int32_t> tokens, const StopToken* stop, const Progress& progress,
              const Tap* tap = nullptr, const Consume& consume = {}) {
    append(tokens, {}, stop, progress, tap, consume);
  }

  // Runs one token and, in the same pass, up to `most` tokens that `drafting` expects behind it. A token that
  // was run so before, and was expected rightly, costs nothing. Gives the same bits as `append`, and throws
  // what it throws; which tokens were run ahead can only be told by the time it takes.
  void append_drafting(int32_t token, Drafting& drafting, int64_t most, const StopToken* stop);

  // logits of the last token [n_vocab]; throws Error on an empty session.
  // After a rewind the last token is run again first.
  std::span<const float> logits(const StopToken* stop = nullptr);

  Sampled sample(Sampler& sampler, size_t n_prompt, std::span<const uint32_t> mask = {});

  // Keeps the first n tokens. Where a sliding window has already been overwritten and nothing of it was kept,
  // the next call that computes first reads tokens again. Places where an append of several tokens began or
  // ended are kept in mind. Throws std::invalid_argument for an n inside a block.
  void rewind(int64_t n);
  // How many of the tokens the next append need not read again.
  int64_t n_ready() const { return ready_before(std::min(n_stored_, n_tokens())); }

  // A second timeline with the same content: copies the positions in use; what the rings had overwritten is
  // shared. Throws NotEnoughMemoryError, Cancelled.
  Session fork(const StopToken* stop = nullptr) const;

  // Appends one piece to each of several sessions of one model in shared steps. Gives the same bits as one by
  // one.
  static void append_together(std::span<Session* const> sessions,
                              std::span<const std::vector<int32_t>> pieces, const StopToken* stop);

 private:
  friend struct SessionFile;

  // Tokens with the position of the first one, and the media of the session by position.
  struct Piece {
    std::span<const int32_t> tokens;
    int64_t pos = 0;
    std::span<const MediaRows> media;

    int64_t end() const { return pos + static_cast<int64_t>(tokens.size()); }
  };

  int64_t n_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  Piece held_from(int64_t pos) const;
  void check_ids(std::span<const int32_t> tokens) const;
  void check_media(std::span<const MediaRows> media, int64_t n) const;
  int64_t ready_before(int64_t pos) const;
  void go_back(int64_t pos, const StopToken* stop);
  void will_write(int64_t pos, int64_t end, const StopToken* stop);
  int64_t replay(const StopToken* stop, const Progress& progress = {}, int64_t n_new = 0);
  int64_t step_end(const Piece& piece, int64_t pos) const;
  void reserve_step(int64_t n_rows);
  void run_rows(const Piece& piece, const StopToken* stop, const Progress& progress, const Tap* tap,
                const Consume& consume);
  void stored(int64_t end);
  int64_t end_ahead(int64_t pos) const;
  void run_drafts(std::span<const int32_t> drafts, Drafting& drafting, const StopToken* stop);
  bool take_ahead(int32_t token);
  void keep_outputs(Gemma4& gemma, Rows hidden, int64_t position);
  void drop_drafts();
  void forget_outputs();
  std::span<const float> last_row(const std::vector<float>& rows) const;

  std::shared_ptr<LoadedModel> model_;
  KvCache kv_;
  std::vector<int32_t> tokens_;
  std::vector<MediaRows> media_;  // of tokens_, by position, ascending
  KvSnapshots snapshots_;
  // Tokens whose keys and values were stored, those in the rings until overwritten; can be less than
  // tokens_.size(). Inside a block only where its last row is all that is to be run again.
  int64_t n_stored_ = 0;
  std::vector<int64_t> positions_;        // of the rows of a step
  std::vector<Batch::Media> step_media_;  // of a step
  // What the model says behind the last token, and behind the drafts that were run after it: row by row, the
  // last token's is row_ (it was a draft itself if that is not 0). Empty: not computed.
  std::vector<float> logits_;    // [1 + drafts, n_vocab]
  std::vector<float> hidden_;    // [1 + drafts, d_model], final; also empty where only logits were kept
  std::vector<int32_t> drafts_;  // tokens of the rows behind the first one
  size_t row_ = 0;
};

}  // namespace gemmule
