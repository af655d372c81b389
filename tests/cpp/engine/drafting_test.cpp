// Drafting changes no bit: whatever is expected, rightly or wrongly, a session says what it says without.
#include "engine/drafting.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "engine/session_helpers.h"

using namespace gemmule;

namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// Drafts that are right with a chance of `accept`.
Drafting scripted(std::span<const int32_t> tokens, double accept, int64_t length, uint64_t seed = 1,
                  const PassTimes& times = PassTimes()) {
  DraftOptions options;
  options.length = length;
  options.script = {{tokens.begin(), tokens.end()}, accept, seed};
  return Drafting(options, std::make_shared<DraftTable>(times), nullptr);
}

Drafting by_lookup(int64_t length = 0) {
  DraftOptions options;
  options.length = length;
  return Drafting(options, std::make_shared<DraftTable>(), nullptr);
}

// The logits after each token, one by one and without drafts.
std::vector<std::vector<float>> plain_logits(Session& session, std::span<const int32_t> tokens) {
  std::vector<std::vector<float>> rows;
  for (const int32_t& token : tokens) {
    session.append({&token, 1}, nullptr, {});
    rows.push_back(copy(session.logits()));
  }
  return rows;
}

}  // namespace

TEST_CASE("the bits are those without drafts: right, wrong and mixed ones, over the turn of the rings") {
  struct Case {
    double accept;
    int64_t length;
  };
  constexpr size_t kFirst = 480, kEnd = 552;  // the rings hold 256 positions and turn at 512
  for (const char* name : kModels) {
    const auto model = load(name, {.n_threads = 2, .n_ubatch = 16});
    const auto tokens = some_tokens(*model, kEnd + 20);
    Session plain(model, kEnd + 20, DType::F16);
    plain.append(std::span(tokens).first(kFirst), nullptr, {});
    const auto expected = plain_logits(plain, std::span(tokens).subspan(kFirst, kEnd - kFirst));
    for (const auto& [accept, length] : {Case{0, 3}, Case{0.6, 0}, Case{0.7, 7}, Case{1, 3}}) {
      Session session(model, kEnd + 20, DType::F16);
      session.append(std::span(tokens).first(kFirst), nullptr, {});
      Drafting drafting = scripted(tokens, accept, length);
      for (size_t i = kFirst; i < kEnd; ++i) {
        session.append_drafting(tokens[i], drafting, kMost, nullptr);
        CHECK(same_bits(session.logits(), expected[i - kFirst]));
      }
      const DraftCounts& counts = drafting.counts();
      if (length > 0) CHECK(counts.drafted > 0);
      if (accept == 0) CHECK(counts.accepted == 0);
      if (accept == 1) CHECK(counts.accepted == (kEnd - kFirst) * 3 / 4);
    }
  }
}

TEST_CASE("a right draft is run once: the passes are as few as the drafts allow") {
  const auto model = load(kModels[1]);
  const auto tokens = some_tokens(*model, 41);
  Session session(model, 64, DType::F16);
  Drafting drafting = scripted(tokens, 1, 4);
  for (const int32_t token : tokens) session.append_drafting(token, drafting, kMost, nullptr);
  CHECK(drafting.counts().drafted == 32);  // 8 passes of 5 rows and the last token
  CHECK(drafting.counts().accepted == 32);
  CHECK(drafting.counts().reached[3] == 8);
}

TEST_CASE("what was said before is expected again") {
  const auto model = load(kModels[1]);
  const auto once = some_tokens(*model, 30);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 4; ++i) tokens.insert(tokens.end(), once.begin(), once.end());
  Session plain(model, 256, DType::F16), session(model, 256, DType::F16);
  const auto expected = plain_logits(plain, tokens);
  Drafting drafting = by_lookup(6);
  for (size_t i = 0; i < tokens.size(); ++i) {
    session.append_drafting(tokens[i], drafting, kMost, nullptr);
    CHECK(same_bits(session.logits(), expected[i]));
  }
  CHECK(drafting.counts().accepted > 60);
  CHECK(drafting.counts().accepted > drafting.counts().drafted * 8 / 10);
}

TEST_CASE("what the caller expects is run ahead, rightly or wrongly expected, but once and no ends") {
  const auto model = load(kModels[1]);
  const auto tokens = some_tokens(*model, 40);
  Session plain(model, 64, DType::F16), session(model, 64, DType::F16);
  const auto expected = plain_logits(plain, tokens);
  DraftOptions options;
  options.lookup = false;
  options.length = 4;  // as many as pay would depend on the machine
  options.ends = {tokens[39]};
  Drafting drafting(options, std::make_shared<DraftTable>(), nullptr);
  const auto append = [&](size_t i, std::vector<int32_t> next) {
    drafting.expect(std::move(next), {});
    session.append_drafting(tokens[i], drafting, kMost, nullptr);
    CHECK(same_bits(session.logits(), expected[i]));
    return std::pair(drafting.counts().drafted, drafting.counts().accepted);
  };
  using Counts = std::pair<int64_t, int64_t>;
  CHECK(append(0, {tokens[1], tokens[2]}) == Counts(2, 0));
  CHECK(append(1, {tokens[2]}) == Counts(2, 1));  // that one has run
  CHECK(append(2, {}) == Counts(2, 2));
  CHECK(append(3, {tokens[5]}) == Counts(3, 2));  // wrongly expected
  CHECK(append(4, {}) == Counts(3, 2));
  for (size_t i = 5; i < 38; ++i) append(i, {tokens.begin() + static_cast<int64_t>(i) + 1, tokens.end()});
  const int64_t before = drafting.counts().drafted;
  CHECK(drafting.counts().accepted == 28);  // 2 above, 6 passes of 5 rows, and 2 of the 3 before the end
  CHECK(append(38, {tokens[39], tokens[0]}).first == before);  // an end
}

TEST_CASE("nothing is run beyond the context, the caller's limit or an end") {
  const auto model = load(kModels[0]);
  const auto tokens = some_tokens(*model, 20);
  Session session(model, 20, DType::F16);
  Drafting drafting = scripted(tokens, 1, 8);
  for (size_t i = 0; i < 18; ++i) session.append_drafting(tokens[i], drafting, 1, nullptr);
  CHECK(drafting.counts().drafted == 9);
  session.append_drafting(tokens[18], drafting, kMost, nullptr);
  session.append_drafting(tokens[19], drafting, kMost, nullptr);
  CHECK(drafting.counts().drafted == 10);
  CHECK_THROWS_AS(session.append_drafting(tokens[0], drafting, kMost, nullptr), ContextLengthError);
  CHECK_THROWS_AS(Session(model, 20, DType::F16).append_drafting(-1, drafting, kMost, nullptr),
                  std::invalid_argument);

  DraftOptions options;
  options.length = 8;
  options.script.tokens = tokens;
  options.ends = {tokens[3]};
  Drafting ending(options, std::make_shared<DraftTable>(), nullptr);
  session.rewind(0);
  session.append_drafting(tokens[0], ending, kMost, nullptr);
  CHECK(ending.counts().drafted == 2);
}

TEST_CASE("rewinds, forks, other ways to append and cancelled calls go on as if nothing had been run ahead") {
  for (const char* name : kModels) {
    const auto model = load(name, {.n_threads = 2, .n_ubatch = 16});
    const auto tokens = some_tokens(*model, 700, 5), others = some_tokens(*model, 700, 6);
    Session session(model, 700, {DType::Q8_0, DType::F16});
    Drafting drafting = scripted(tokens, 0.7, 0);
    uint32_t random = 7;
    const auto next = [&random](uint32_t n) {
      random = random * 1664525u + 1013904223u;
      return (random >> 8) % n;
    };
    for (int step = 0; step < 200; ++step) {
      const size_t n = session.tokens().size();
      const uint32_t what = next(20);
      if (n > 640 || what == 0) {
        session.rewind(static_cast<int64_t>(n > 5 ? n - next(static_cast<uint32_t>(n > 640 ? 400 : 5)) : n));
      } else if (what == 1) {
        session = session.fork();
      } else if (what == 2) {
        session.append(std::span(others).subspan(n, 2 + next(20)), nullptr, {});
      } else if (what == 3) {
        StopToken stop;
        int64_t n_looks = next(6);
        stop.set_poll([&] {
          if (n_looks-- == 0) stop.cancel();
        });
        try {
          session.append_drafting(tokens[n], drafting, kMost, &stop);
        } catch (const Cancelled&) {
          CHECK(session.tokens().size() == n);
        }
      } else if (what == 4) {
        Session other(model, 64, {DType::Q8_0, DType::F16});
        Session* const together[] = {&session, &other};
        const std::vector<std::vector<int32_t>> pieces = {{tokens[n]}, {others[n], tokens[n]}};
        Session::append_together(together, pieces, nullptr);
      } else {
        session.append_drafting(tokens[n], drafting, kMost, nullptr);
      }
      if (step % 25 != 24 || session.tokens().empty()) continue;
      Session fresh(model, 700, {DType::Q8_0, DType::F16});
      fresh.append(session.tokens(), nullptr, {});
      CHECK(same_bits(session.logits(), fresh.logits()));
    }
  }
}

namespace {

// Tokens in the time of a one-row pass, where drafts are right with a chance of `accept`, a pass of T rows
// takes 1 + slope * (T - 1) with some noise, and nothing is computed.
double simulated_rate(const std::shared_ptr<LoadedModel>& model, double accept, double slope, int64_t length,
                      int64_t n_tokens = 3000, const PassTimes& times = PassTimes(), uint64_t seed = 1) {
  const auto tokens = some_tokens(*model, n_tokens);
  const KvCache kv(model->config(), 16, DType::F16, 1);
  Drafting drafting = scripted(tokens, accept, length, seed, times);
  std::vector<int32_t> timeline, ahead;
  size_t n_ahead = 0;
  double seconds = 0;
  for (const int32_t token : tokens) {
    timeline.push_back(token);
    drafting.saw(token);
    if (n_ahead < ahead.size() && ahead[n_ahead] == token) {
      ++n_ahead;
      continue;
    }
    const auto drafts = drafting.propose(*model, timeline, {}, kv, kMost, nullptr);
    ahead.assign(drafts.begin(), drafts.end());
    n_ahead = 0;
    const double noise = 1 + 0.05 * std::sin(static_cast<double>(timeline.size()) * 12.9898);
    const double took = noise * (1 + slope * static_cast<double>(ahead.size()));
    drafting.ran(1 + static_cast<int64_t>(ahead.size()), took);
    seconds += took;
  }
  return static_cast<double>(tokens.size()) / seconds;
}

}  // namespace

TEST_CASE("as many drafts as pay: never much slower than none, nearly as fast as the best fixed number") {
  const auto model = load(kModels[0]);
  for (const double slope : {0.02, 0.15, 0.4, 1.0}) {
    for (const double accept : {0.0, 0.3, 0.6, 0.8, 0.95}) {
      CAPTURE(slope);
      CAPTURE(accept);
      double best = 1;
      for (const int64_t length : {1, 2, 3, 4, 6, 8})
        best = std::max(best, simulated_rate(model, accept, slope, length));
      const double rate = simulated_rate(model, accept, slope, 0);
      CHECK(rate > 0.98);
      CHECK(rate > 0.9 * best);
    }
  }
}

TEST_CASE(
    "with the right guesses of passes the first tokens come faster, where drafting pays and where not") {
  const auto model = load(kModels[0]);
  for (const auto& [slope, accept] : {std::pair{0.03, 0.95}, {1.0, 0.3}}) {
    std::vector<double> guesses;
    for (int64_t n = 0; n <= kMaxDrafts; ++n) guesses.push_back(1 + slope * static_cast<double>(n));
    double guessed = 0, table = 0;
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      guessed += simulated_rate(model, accept, slope, 0, 48, PassTimes(guesses), seed);
      table += simulated_rate(model, accept, slope, 0, 48, PassTimes(), seed);
    }
    CHECK(guessed > 1.01 * table);
  }
}

TEST_CASE("what was learnt is kept in numbers") {
  DraftTable table, other;
  table.ran(1, 0.1);
  table.ran(2, 0.15);
  table.learn([](DraftChances& chances) { chances.lookup[0].p = 0.125; });
  other.set_numbers(table.numbers());
  CHECK(other.chances().lookup[0].p == 0.125);
  CHECK(other.times().pass(2) == doctest::Approx(table.times().pass(2)));
  CHECK(table.numbers().size() == DraftTable::kNumbers);
  CHECK_THROWS_AS(other.set_numbers(std::vector<double>(3)), std::invalid_argument);
  CHECK_THROWS_AS(by_lookup(kMaxDrafts + 1), std::invalid_argument);
}

TEST_CASE("how much a rewind has to read again does not depend on drafts") {
  const auto model = load(kModels[0], {.n_threads = 1, .n_ubatch = 16});
  constexpr size_t kFirst = 40, kEnd = 700;
  const auto tokens = some_tokens(*model, kEnd);
  for (const double accept : {0.0, 0.6}) {
    Session plain(model, kEnd + 100, DType::F16, 0), session(model, kEnd + 100, DType::F16, 0);
    Drafting drafting = scripted(tokens, accept, 8);
    for (Session* each : {&plain, &session}) each->append(std::span(tokens).first(kFirst), nullptr, {});
    for (size_t i = kFirst; i < kEnd; ++i) {
      plain.append({&tokens[i], 1}, nullptr, {});
      session.append_drafting(tokens[i], drafting, kMost, nullptr);
    }
    for (int64_t n = kEnd - 1; n > 400; --n) {
      Session a = plain.fork(), b = session.fork();
      a.rewind(n);
      b.rewind(n);
      REQUIRE(a.n_ready() == b.n_ready());
      n -= n % 7;
    }
  }
}

TEST_CASE("a draft that is no token is refused") {
  const auto model = load(kModels[0], {.n_threads = 1, .n_ubatch = 16});
  for (const int32_t wrong : {-5, std::numeric_limits<int32_t>::max()}) {
    const std::vector<int32_t> script(30, wrong);
    Session session(model, 64, DType::F16);
    const auto tokens = some_tokens(*model, 9);
    session.append(std::span(tokens).first(8), nullptr, {});
    Drafting drafting = scripted(script, 1, 4);
    CHECK_THROWS_AS(session.append_drafting(tokens[8], drafting, kMost, nullptr), std::invalid_argument);
    CHECK(session.tokens().size() == 8);
  }
}
