#include "engine/session.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "core/error.h"
#include "engine/memory_plan.h"

namespace gemmule {
namespace {

int64_t checked_context(const LoadedModel& model, int64_t n_ctx, KvTypes kv_types) {
  if (n_ctx < 1 || n_ctx > kMaxContext)
    throw std::invalid_argument(cat("n_ctx is ", n_ctx, "; choose 1 to ", kMaxContext));
  const int64_t need = KvCache::plan_bytes(model.config(), n_ctx, kv_types, model.n_ubatch());
  const int64_t have = available_memory();
  if (have > 0 && need > have)
    throw NotEnoughMemoryError(cat("a context of ", n_ctx, " needs ", need >> 20,
                                   " MiB for keys and values and ", have >> 20,
                                   " MiB are free; choose a smaller n_ctx"));
  return n_ctx;
}

std::vector<float> copy_of(std::span<const float> x) { return {x.begin(), x.end()}; }

constexpr int64_t kMarkEvery = 8192;  // positions of a long prompt

int64_t checked_snapshots(int64_t limit, const KvCache& kv) {
  if (limit != kAutoSnapshots && limit < 0)
    throw std::invalid_argument(cat("snapshot_limit is ", limit, "; choose a number of bytes, 0 for none"));
  if (limit != kAutoSnapshots) return limit;
  return auto_snapshot_bytes(KvSnapshots::window_bytes(kv), available_memory());
}

}  // namespace

Session::Session(std::shared_ptr<LoadedModel> model, int64_t n_ctx, KvTypes kv_types, int64_t snapshot_limit)
    : model_(std::move(model)),
      kv_(model_->config(), checked_context(*model_, n_ctx, kv_types), kv_types, model_->n_ubatch()),
      snapshots_(checked_snapshots(snapshot_limit, kv_)) {}

Session Session::fork(const StopToken* stop) const {
  Session copy(model_, n_ctx(), kv_.types(), snapshots_.limit());
  copy.tokens_ = tokens_;
  copy.media_ = media_;
  copy.n_stored_ = n_stored_;
  copy.logits_ = copy_of(last_row(logits_));
  copy.hidden_ = copy_of(last_row(hidden_));
  copy.snapshots_ = snapshots_;
  copy.kv_.copy_from(kv_, n_stored_, stop);
  return copy;
}

void Session::check_room(std::span<const int32_t> tokens) const {
  const int64_t n = n_tokens() + static_cast<int64_t>(tokens.size());
  if (n > n_ctx())
    throw ContextLengthError(
        cat("the prompt needs ", n, " tokens and the context holds ", n_ctx(), "; shorten it or raise n_ctx"),
        n, n_ctx());
}

void Session::check_ids(std::span<const int32_t> tokens) const {
  const int64_t n_vocab = model_->config().n_vocab;
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= n_vocab)
      throw std::invalid_argument(
          cat("token ", i, " is ", tokens[i], ", outside the vocabulary of ", n_vocab));
}

// The order and the places of the media of n appended tokens.
void Session::check_media(std::span<const MediaRows> media, int64_t n) const {
  if (!media.empty() && model_->config().d_ple > 0)
    throw UnsupportedError(cat(model_->file().path(), ": images and sound are not supported for models with ",
                               "a per-layer embedding; use Gemma 4 12B for them"));
  int64_t free = 0;  // first row that the next one may have
  for (size_t i = 0; i < media.size(); ++i) {
    const MediaRows& m = media[i];
    if (m.n_rows < 1 || m.first < free || m.n_rows > n - m.first)
      throw std::invalid_argument(cat("media ", i, " has ", m.n_rows, " rows from row ", m.first,
                                      " on; it must lie behind the one before it and inside the ", n,
                                      " tokens"));
    if (m.is_block && m.n_rows > kMaxBlock)
      throw std::invalid_argument(
          cat("media ", i, " is a block of ", m.n_rows, " rows; at most ", kMaxBlock, " can see each other"));
    free = m.end();
  }
}

void Session::append(std::span<const int32_t> tokens, std::span<const MediaRows> media, const StopToken* stop,
                     const Progress& progress, const Tap* tap, const Consume& consume) {
  check_room(tokens);
  check_ids(tokens);
  check_media(media, static_cast<int64_t>(tokens.size()));
  if (tokens.empty()) return;
  const int64_t again = replay(stop, progress, static_cast<int64_t>(tokens.size()));
  const int64_t before = n_tokens();
  std::vector<MediaRows> placed(media.begin(), media.end());  // by position
  for (MediaRows& m : placed) m.first += before;
  media_.reserve(media_.size() + placed.size());
  tokens_.reserve(tokens_.size() + tokens.size());
  forget_outputs();
  const bool is_turn = tokens.size() > 1;  // a token that was just sampled begins nothing
  if (is_turn) snapshots_.mark(before);
  Progress report;
  if (progress) report = [&](int64_t done, int64_t all) { progress(again + done, again + all); };
  try {
    run_rows({tokens, before, placed}, stop, report, tap, consume);
  } catch (...) {
    rewind(before);
    throw;
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  media_.insert(media_.end(), placed.begin(), placed.end());
  if (is_turn) snapshots_.mark(n_tokens());
}

// Where the step from position `pos` on ends: after n_ubatch rows, but before a block that would not fit. A
// block that no step holds is a step of its own.
int64_t Session::step_end(const Piece& piece, int64_t pos) const {
  const int64_t end = std::min(piece.end(), pos + model_->n_ubatch());
  for (const MediaRows& m : piece.media)
    if (m.is_block && pos <= m.first && m.first < end && m.end() > end)
      return m.first > pos ? m.first : m.end();
  return end;
}

// The memory that a step needs beyond what every session has.
void Session::reserve_step(int64_t n_rows) {
  if (n_rows <= model_->n_ubatch()) return;
  const int64_t need = kv_.bytes_for_rows(n_rows) - kv_.size_bytes(), have = available_memory();
  if (have > 0 && need > have)
    throw NotEnoughMemoryError(cat("an image of ", n_rows, " tokens needs ", need >> 20,
                                   " MiB for keys and values and ", have >> 20,
                                   " MiB are free; use fewer tokens for it"));
  kv_.reserve_rows(n_rows);
}

// Step by step; the model is free for other sessions between them.
void Session::run_rows(const Piece& piece, const StopToken* stop, const Progress& progress, const Tap* tap,
                       const Consume& consume) {
  const int64_t d_model = model_->config().d_model, end = piece.end();
  for (int64_t pos = piece.pos; pos < end;) {
    const int64_t next = step_end(piece, pos), n_rows = next - pos, first = pos - piece.pos;
    reserve_step(n_rows);
    positions_.resize(static_cast<size_t>(n_rows));
    std::iota(positions_.begin(), positions_.end(), pos);
    step_media_.clear();
    for (const MediaRows& m : piece.media) {
      const int64_t from = std::max(m.first, pos), to = std::min(m.end(), next);
      if (from < to)
        step_media_.push_back(
            {from - pos, to - from, m.vectors.get() + (from - m.first) * d_model, m.is_block});
    }
    const Batch::Sequence sequence{0, n_rows, &kv_};
    const Batch batch{piece.tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(n_rows)),
                      positions_, std::span(&sequence, 1), step_media_};
    will_write(pos, piece.tokens.size() == 1 ? end_ahead(pos) : next, stop);
    model_->run(n_rows, stop, [&](Gemma4& gemma) {
      const Rows hidden = gemma.forward(batch, stop, tap);
      if (consume)
        consume(gemma, first, hidden);
      else if (next == end)
        keep_outputs(gemma, hidden.from(n_rows - 1, 1), end - 1);
    });
    stored(next);
    pos = next;
    if (progress) progress(next - piece.pos, end - piece.pos);
  }
}

// The positions up to `end` are stored for good.
void Session::stored(int64_t end) {
  if (n_stored_ / kMarkEvery != end / kMarkEvery) snapshots_.mark(end, KvSnapshots::Kind::Within);
  n_stored_ = end;
}

void Session::append_drafting(int32_t token, Drafting& drafting, int64_t most, const StopToken* stop) {
  check_room({&token, 1});
  check_ids({&token, 1});
  drafting.saw(token);
  if (take_ahead(token)) return;
  replay(stop);
  const int64_t before = n_tokens();
  tokens_.push_back(token);
  try {
    most = std::min({most, n_ctx() - n_tokens(), model_->n_ubatch() - 1});
    const auto drafts = drafting.propose(*model_, tokens_, last_row(hidden_), kv_, most, stop);
    check_ids(drafts);
    forget_outputs();
    run_drafts(drafts, drafting, stop);
  } catch (...) {
    rewind(before);
    throw;
  }
}

// One pass over the last token, which has not been run yet, and the drafts behind it. Their keys and values
// lie beyond what is stored, where anything else overwrites them.
void Session::run_drafts(std::span<const int32_t> drafts, Drafting& drafting, const StopToken* stop) {
  const int64_t pos = n_tokens() - 1, n_rows = 1 + static_cast<int64_t>(drafts.size());
  std::vector<int32_t> rows{tokens_.back()};
  rows.insert(rows.end(), drafts.begin(), drafts.end());
  positions_.resize(rows.size());
  std::iota(positions_.begin(), positions_.end(), pos);
  const Batch::Sequence sequence{0, n_rows, &kv_};
  will_write(pos, end_ahead(pos), stop);
  model_->run(n_rows, stop, [&](Gemma4& gemma) {
    const auto began = std::chrono::steady_clock::now();
    keep_outputs(gemma, gemma.forward({rows, positions_, std::span(&sequence, 1), {}}, stop, nullptr), pos);
    drafting.ran(n_rows, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  });
  drafts_.assign(drafts.begin(), drafts.end());
  stored(pos + 1);
}

// Whether the token is the one that was run ahead; it is the last one then.
bool Session::take_ahead(int32_t token) {
  if (row_ >= drafts_.size() || drafts_[row_] != token) return false;
  ++row_;
  const int64_t pos = n_tokens();
  try {
    will_write(pos, end_ahead(pos), nullptr);
    require_finite(last_row(logits_), "logits", pos);
    tokens_.push_back(token);
  } catch (...) {
    forget_outputs();
    throw;
  }
  stored(n_tokens());
  return true;
}

// hidden: of the token at `position` and of drafts behind it, whose logits are looked at when they are used.
void Session::keep_outputs(Gemma4& gemma, Rows hidden, int64_t position) {
  const Rows z = gemma.logits(hidden);
  require_finite({z.data, static_cast<size_t>(z.cols)}, "logits", position);
  logits_.assign(z.data, z.data + z.n * z.cols);
  hidden_.assign(hidden.data, hidden.data + hidden.n * hidden.cols);
}

// Keeps what belongs to the last token.
void Session::drop_drafts() {
  if (drafts_.empty()) return;
  logits_ = copy_of(last_row(logits_));
  hidden_ = copy_of(last_row(hidden_));
  drafts_.clear();
  row_ = 0;
}

void Session::forget_outputs() {
  logits_.clear();
  hidden_.clear();
  drafts_.clear();
  row_ = 0;
}

std::span<const float> Session::last_row(const std::vector<float>& rows) const {
  const size_t width = rows.size() / (1 + drafts_.size());
  return std::span(rows).subspan(row_ * width, width);
}

Session::Piece Session::held_from(int64_t pos) const {
  return {std::span(tokens_).subspan(static_cast<size_t>(pos)), pos, media_};
}

// How many of the first `pos` tokens, which were stored, need not be read again where the rows from there on
// are to be run. Reading again begins at no row inside a block.
int64_t Session::ready_before(int64_t pos) const {
  int64_t n = snapshots_.nearest(kv_, pos);
  while (n < pos) {
    const auto block = std::find_if(media_.begin(), media_.end(), [n](const MediaRows& m) {
      return m.is_block && m.first < n && n < m.end();
    });
    if (block == media_.end()) break;
    n = snapshots_.nearest(kv_, block->first);
  }
  return n;
}

// Makes the tokens before `pos`, or fewer, those that were read last.
void Session::go_back(int64_t pos, const StopToken* stop) {
  n_stored_ = ready_before(std::min(n_stored_, pos));
  if (n_stored_ > 0)
    snapshots_.restore(kv_, n_stored_, stop);
  else
    kv_.clear();
}

// What a step of one token may store with drafts behind it. It claims as much without them: what a rewind
// finds in the rings must not depend on how many tokens were drafted.
int64_t Session::end_ahead(int64_t pos) const {
  return std::min(n_ctx(), pos + std::min(kMaxDrafts + 1, model_->n_ubatch()));
}

void Session::will_write(int64_t pos, int64_t end, const StopToken* stop) {
  snapshots_.before_write(kv_, pos, end, stop);
  kv_.will_write(end);
}

std::span<const float> Session::logits(const StopToken* stop) {
  if (tokens_.empty()) throw std::invalid_argument("the session is empty; append a token first");
  if (logits_.empty()) {  // after a rewind or a cancelled call
    // The last row is enough, also where it ends a block: the keys and values of the others, which saw it,
    // stay.
    go_back(n_tokens() - 1, stop);
    run_rows(held_from(n_stored_), stop, {}, nullptr, {});
  }
  return last_row(logits_);
}

Sampled Session::sample(Sampler& sampler, size_t n_prompt, std::span<const uint32_t> mask) {
  return sampler.sample(logits(), tokens_, n_prompt, n_tokens(), mask);
}

void Session::rewind(int64_t n) {
  if (n < 0 || n > n_tokens())
    throw std::invalid_argument(cat("cannot rewind to ", n, " tokens; the session holds ", tokens_.size()));
  for (const MediaRows& m : media_)
    if (m.is_block && m.first < n && n < m.end())
      throw std::invalid_argument(cat("cannot rewind to ", n,
                                      " tokens, into the middle of an image; rewind to ", m.first, " or ",
                                      m.end()));
  if (n < n_tokens() || n < n_stored_) forget_outputs();
  drop_drafts();
  tokens_.resize(static_cast<size_t>(n));
  while (!media_.empty() && media_.back().first >= n) media_.pop_back();
  if (!media_.empty()) media_.back().n_rows = std::min(media_.back().n_rows, n - media_.back().first);
  snapshots_.forget_from(n);
  n_stored_ = std::min(n_stored_, n);
  kv_.give_up(n_stored_);
}

// Re-reads kept tokens whose keys and values are gone, before n_new others; how many.
int64_t Session::replay(const StopToken* stop, const Progress& progress, int64_t n_new) {
  go_back(n_tokens(), stop);
  const int64_t again = n_tokens() - n_stored_;
  if (again == 0) return 0;
  Progress report;
  if (progress) report = [&](int64_t done, int64_t all) { progress(done, all + n_new); };
  run_rows(held_from(n_stored_), stop, report, nullptr, [](Gemma4&, int64_t, Rows) {});
  return again;
}

void Session::append_together(std::span<Session* const> sessions,
                              std::span<const std::vector<int32_t>> pieces, const StopToken* stop) {
  std::vector<int32_t> tokens;
  std::vector<int64_t> positions;
  std::vector<Batch::Sequence> sequences;
  for (size_t s = 0; s < sessions.size(); ++s) {
    Session& session = *sessions[s];
    session.check_room(pieces[s]);
    session.check_ids(pieces[s]);
    if (session.model_ != sessions[0]->model_)
      throw std::invalid_argument("append_together needs sessions of one model");
    if (pieces[s].empty())
      throw std::invalid_argument("append_together needs at least one token for every session");
    session.replay(stop);
    const int64_t first = session.n_tokens();
    sequences.push_back(
        {static_cast<int64_t>(tokens.size()), static_cast<int64_t>(pieces[s].size()), &session.kv_});
    for (size_t i = 0; i < pieces[s].size(); ++i) positions.push_back(first + static_cast<int64_t>(i));
    tokens.insert(tokens.end(), pieces[s].begin(), pieces[s].end());
  }
  LoadedModel& model = *sessions[0]->model_;
  if (static_cast<int64_t>(tokens.size()) > model.n_ubatch())
    throw std::invalid_argument(
        cat("append_together takes at most n_ubatch = ", model.n_ubatch(), " tokens at once"));
  for (size_t s = 0; s < sessions.size(); ++s) {
    Session& session = *sessions[s];
    session.forget_outputs();
    session.will_write(session.n_tokens(), session.n_tokens() + static_cast<int64_t>(pieces[s].size()), stop);
  }
  model.run(static_cast<int64_t>(tokens.size()), stop, [&](Gemma4& gemma) {
    const Rows hidden = gemma.forward({tokens, positions, sequences, {}}, stop, nullptr);
    try {
      for (size_t s = 0; s < sessions.size(); ++s) {
        const Batch::Sequence& rows = sequences[s];
        const int64_t last = rows.row + rows.n_rows - 1;
        sessions[s]->keep_outputs(gemma, hidden.from(last, 1), positions[static_cast<size_t>(last)]);
        sessions[s]->tokens_.reserve(sessions[s]->tokens_.size() + pieces[s].size());
      }
    } catch (...) {  // all or none: what was computed belongs to tokens that nobody will have
      for (Session* session : sessions) session->forget_outputs();
      throw;
    }
  });
  for (size_t s = 0; s < sessions.size(); ++s) {
    Session& session = *sessions[s];
    session.tokens_.insert(session.tokens_.end(), pieces[s].begin(), pieces[s].end());
    session.n_stored_ = session.n_tokens();
  }
}

}  // namespace gemmule
