#include "engine/session.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "engine/memory_plan.h"

namespace gemmule {
namespace {

// The largest multiple of 256 positions whose cache fits into `room` bytes.
int64_t largest_context(const Config& config, DType kv_type, int64_t max_rows, int64_t room) {
  int64_t low = 0, high = kMaxContext / 256;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (KvCache::plan_bytes(config, middle * 256, kv_type, max_rows) <= room)
      low = middle;
    else
      high = middle - 1;
  }
  return low * 256;
}

int64_t checked_context(const LoadedModel& model, int64_t n_ctx, DType kv_type) {
  if (n_ctx < 1 || n_ctx > kMaxContext)
    throw std::invalid_argument(cat("n_ctx is ", n_ctx, "; choose 1 to ", kMaxContext));
  const int64_t need = KvCache::plan_bytes(model.config(), n_ctx, kv_type, model.n_ubatch());
  const int64_t have = available_memory();
  if (have > 0 && need > have)
    throw NotEnoughMemoryError(cat(
        "a context of ", n_ctx, " needs ", need >> 20, " MiB for keys and values and ", have >> 20,
        " MiB are free; n_ctx=", largest_context(model.config(), kv_type, model.n_ubatch(), have), " fits"));
  return n_ctx;
}

}  // namespace

Session::Session(std::shared_ptr<LoadedModel> model, int64_t n_ctx, DType kv_type)
    : model_(std::move(model)),
      kv_(model_->config(), checked_context(*model_, n_ctx, kv_type), kv_type, model_->n_ubatch()) {}

void Session::check_room(std::span<const int32_t> tokens) const {
  const auto n = static_cast<int64_t>(tokens_.size() + tokens.size());
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

void Session::append(std::span<const int32_t> tokens, const StopToken* stop, const Progress& progress,
                     const Tap* tap, const Consume& consume) {
  check_room(tokens);
  check_ids(tokens);
  if (tokens.empty()) return;
  replay(stop);
  const auto before = static_cast<int64_t>(tokens_.size());
  logits_.clear();
  try {
    run_rows(tokens, before, stop, progress, tap, consume);
  } catch (...) {
    rewind(before);
    throw;
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
}

// Steps of at most n_ubatch rows; the model is free for other sessions between them.
void Session::run_rows(std::span<const int32_t> tokens, int64_t pos, const StopToken* stop,
                       const Progress& progress, const Tap* tap, const Consume& consume) {
  const auto n = static_cast<int64_t>(tokens.size());
  for (int64_t first = 0; first < n;) {
    const int64_t rows = std::min(model_->n_ubatch(), n - first);
    positions_.resize(static_cast<size_t>(rows));
    for (int64_t i = 0; i < rows; ++i) positions_[static_cast<size_t>(i)] = pos + first + i;
    const Batch::Sequence sequence{0, rows, &kv_};
    const Batch batch{tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(rows)), positions_,
                      std::span(&sequence, 1)};
    n_written_ = std::max(n_written_, pos + first + rows);
    model_->run([&](Gemma4& gemma) {
      const Rows hidden = gemma.forward(batch, stop, tap);
      if (consume)
        consume(gemma, first, hidden);
      else if (first + rows == n)
        keep_logits(gemma, hidden.from(rows - 1, 1), pos + n - 1);
    });
    first += rows;
    n_stored_ = pos + first;
    if (progress) progress(first, n);
  }
}

void Session::keep_logits(Gemma4& gemma, Rows last_hidden, int64_t position) {
  const Rows z = gemma.logits(last_hidden);
  require_finite({z.data, static_cast<size_t>(z.cols)}, "logits", position);
  logits_.assign(z.data, z.data + z.cols);
}

std::span<const float> Session::logits(const StopToken* stop) {
  if (tokens_.empty()) throw std::invalid_argument("the session is empty; append a token first");
  if (logits_.empty()) {  // after a rewind or a cancelled call: run the last token again
    const int32_t last = tokens_.back();
    rewind(static_cast<int64_t>(tokens_.size()) - 1);
    try {
      append(std::span(&last, 1), stop, {});
    } catch (...) {
      tokens_.push_back(last);  // not stored, so the next call reads it again
      throw;
    }
  }
  return logits_;
}

Sampled Session::sample(Sampler& sampler, size_t n_prompt, const StopToken* stop) {
  return sampler.sample(logits(stop), tokens_, n_prompt, static_cast<int64_t>(tokens_.size()));
}

void Session::rewind(int64_t n) {
  if (n < 0 || n > static_cast<int64_t>(tokens_.size()))
    throw std::invalid_argument(cat("cannot rewind to ", n, " tokens; the session holds ", tokens_.size()));
  if (n < static_cast<int64_t>(tokens_.size()) || n < n_stored_) logits_.clear();
  tokens_.resize(static_cast<size_t>(n));
  if (n == 0) n_written_ = 0;
  n_stored_ = kv_.can_rewind(n, n_written_) ? std::min(n_stored_, n) : 0;
}

// Re-reads kept tokens whose keys and values are gone.
void Session::replay(const StopToken* stop) {
  if (n_stored_ == static_cast<int64_t>(tokens_.size())) return;
  n_stored_ = n_written_ = 0;
  run_rows(tokens_, 0, stop, {}, nullptr, [](Gemma4&, int64_t, Rows) {});
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
    const auto first = static_cast<int64_t>(session.tokens_.size());
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
    session.logits_.clear();
    session.n_written_ =
        std::max(session.n_written_, static_cast<int64_t>(session.tokens_.size() + pieces[s].size()));
  }
  model.run([&](Gemma4& gemma) {
    const Rows hidden = gemma.forward({tokens, positions, sequences}, stop, nullptr);
    try {
      for (size_t s = 0; s < sessions.size(); ++s) {
        const Batch::Sequence& rows = sequences[s];
        const int64_t last = rows.row + rows.n_rows - 1;
        sessions[s]->keep_logits(gemma, hidden.from(last, 1), positions[static_cast<size_t>(last)]);
        sessions[s]->tokens_.reserve(sessions[s]->tokens_.size() + pieces[s].size());
      }
    } catch (...) {  // all or none: what was computed belongs to tokens that nobody will have
      for (Session* session : sessions) session->logits_.clear();
      throw;
    }
  });
  for (size_t s = 0; s < sessions.size(); ++s) {
    Session& session = *sessions[s];
    session.tokens_.insert(session.tokens_.end(), pieces[s].begin(), pieces[s].end());
    session.n_stored_ = static_cast<int64_t>(session.tokens_.size());
  }
}

}  // namespace gemmule
