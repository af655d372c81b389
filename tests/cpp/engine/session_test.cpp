// The promises of a session on small random models of the family: the same bits whatever the threads, the
// size of the steps, the level or the company; rewinds, cancellation and errors leave it as it was.
#include "engine/session.h"

#include <doctest/doctest.h>

#include <cstring>
#include <thread>

#include "backend/cpu/kernel_select.h"
#include "core/error.h"

using namespace gemmule;

namespace {

const char* const kModels[] = {"tiny-gemma3-f32.gguf", "tiny-gemma4-f32.gguf", "tiny-gemma4-e2b-f16.gguf",
                               "tiny-gemma4-26b-f16.gguf"};

std::shared_ptr<LoadedModel> load(const char* name, LoadOptions options = {}) {
  return std::make_shared<LoadedModel>(GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/" + name), options);
}

std::vector<int32_t> some_tokens(const LoadedModel& model, int64_t n, uint32_t seed = 1) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(model.config().n_vocab)));
  }
  return tokens;
}

// Hidden states of all tokens, appended `step` at a time.
std::vector<float> hidden_states(Session& session, std::span<const int32_t> tokens, size_t step) {
  std::vector<float> all;
  for (size_t i = 0; i < tokens.size(); i += step) {
    const auto piece = tokens.subspan(i, std::min(step, tokens.size() - i));
    session.append(piece, nullptr, {}, nullptr, [&](Gemma4&, int64_t, Rows hidden) {
      all.insert(all.end(), hidden.data, hidden.data + hidden.n * hidden.cols);
    });
  }
  return all;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

std::vector<float> copy(std::span<const float> x) { return {x.begin(), x.end()}; }

}  // namespace

TEST_CASE("the bits do not depend on threads, steps, rows of a step or the level") {
  for (const char* name : kModels) {
    for (const DType kv : {DType::F16, DType::F32}) {
      const auto model = load(name, {.n_threads = 1});
      const auto tokens = some_tokens(*model, 150);
      Session reference(model, 256, kv);
      const auto expected = hidden_states(reference, tokens, tokens.size());
      for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
        if (!level.supported) continue;
        for (const int n_threads : {1, 3}) {
          for (const int64_t n_ubatch : {5, 64}) {
            const auto other = load(name, {n_threads, level.table->name, n_ubatch});
            for (const size_t step : {1, 7, 150}) {
              Session session(other, 256, kv);
              CHECK(same_bits(hidden_states(session, tokens, step), expected));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("rows of several sessions in one step give the bits of each alone") {
  for (const char* name : kModels) {
    const auto model = load(name);
    const std::vector<std::vector<int32_t>> pieces = {some_tokens(*model, 30, 2), some_tokens(*model, 1, 3),
                                                      some_tokens(*model, 77, 4)};
    Session a(model, 128, DType::F16), b(model, 100, DType::F16), c(model, 128, DType::F16);
    Session* const together[] = {&a, &b, &c};
    const auto warm = some_tokens(*model, 20, 5);
    b.append(warm, nullptr, {});
    Session::append_together(together, pieces, nullptr);
    for (size_t i = 0; i < 3; ++i) {
      Session alone(model, 128, DType::F16);
      if (i == 1) alone.append(warm, nullptr, {});
      alone.append(pieces[i], nullptr, {});
      CHECK(same_bits(together[i]->logits(), alone.logits()));
    }
  }
}

TEST_CASE("a rewind continues as if the dropped tokens had never been, short or deep") {
  for (const char* name : kModels) {
    const auto model = load(name, {.n_ubatch = 32});
    const auto tokens = some_tokens(*model, 700);
    for (const size_t keep : {0, 1, 10, 400, 690, 699, 700}) {
      Session session(model, 1024, DType::F16), fresh(model, 1024, DType::F16);
      session.append(tokens, nullptr, {});
      session.rewind(static_cast<int64_t>(keep));
      CHECK(session.tokens().size() == keep);
      const auto more = some_tokens(*model, 40, 9);
      session.append(more, nullptr, {});
      if (keep > 0) fresh.append(std::span(tokens).first(keep), nullptr, {});
      fresh.append(more, nullptr, {});
      CHECK(same_bits(session.logits(), fresh.logits()));
    }
  }
}

TEST_CASE("the logits after a rewind are those of the token it kept") {
  const auto model = load(kModels[1]);
  const auto tokens = some_tokens(*model, 20);
  Session session(model, 64, DType::F16);
  session.append(std::span(tokens).first(12), nullptr, {});
  const auto expected = copy(session.logits());
  session.append(std::span(tokens).subspan(12), nullptr, {});
  session.rewind(12);
  CHECK(same_bits(session.logits(), expected));
}

TEST_CASE("a cancelled call keeps what the session had before it") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 200);
  Session session(model, 512, DType::F16);
  session.append(std::span(tokens).first(50), nullptr, {});
  StopToken stop;
  int64_t steps = 0;
  const auto cancel_later = [&](int64_t, int64_t) {
    if (++steps == 5) stop.cancel();
  };
  CHECK_THROWS_AS(session.append(std::span(tokens).subspan(50), &stop, cancel_later), Cancelled);
  CHECK(session.tokens().size() == 50);
  stop.reset();
  session.append(std::span(tokens).subspan(50), &stop, {});
  Session fresh(model, 512, DType::F16);
  fresh.append(tokens, nullptr, {});
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("too many tokens are refused with both numbers, before anything runs") {
  const auto model = load(kModels[0]);
  Session session(model, 16, DType::F16);
  session.append(some_tokens(*model, 10), nullptr, {});
  try {
    session.append(some_tokens(*model, 7), nullptr, {});
    FAIL("accepted");
  } catch (const ContextLengthError& e) {
    CHECK(e.n_prompt == 17);
    CHECK(e.n_ctx == 16);
  }
  CHECK(session.tokens().size() == 10);
  session.append(some_tokens(*model, 6), nullptr, {});
}

TEST_CASE("ids outside the vocabulary and an empty session are refused") {
  const auto model = load(kModels[0]);
  Session session(model, 16, DType::F16);
  CHECK_THROWS_AS(session.logits(), std::invalid_argument);
  const std::vector<int32_t> bad[] = {{-1}, {0, static_cast<int32_t>(model->config().n_vocab)}};
  for (const auto& tokens : bad) CHECK_THROWS_AS(session.append(tokens, nullptr, {}), std::invalid_argument);
  CHECK(session.tokens().empty());
  CHECK_THROWS_AS(session.rewind(1), std::invalid_argument);
}

TEST_CASE("two threads on one model get the answers they would get alone") {
  const auto model = load(kModels[1]);
  const auto tokens = some_tokens(*model, 300);
  std::vector<std::vector<float>> results(2);
  const auto work = [&](size_t i) {
    Session session(model, 512, DType::F16);
    for (size_t at = 0; at < tokens.size(); at += 3)
      session.append(std::span(tokens).subspan(at, 3), nullptr, {});
    results[i] = copy(session.logits());
  };
  std::thread other([&] { work(1); });
  work(0);
  other.join();
  CHECK(same_bits(results[0], results[1]));
  Session alone(model, 512, DType::F16);
  alone.append(tokens, nullptr, {});
  CHECK(same_bits(alone.logits(), results[0]));
}

TEST_CASE("a context that cannot fit is refused with a smaller one that does") {
  const auto model = load(kModels[1]);
  try {
    Session session(model, kMaxContext, DType::F32);
    MESSAGE("this machine has the memory for ", kMaxContext, " positions");
  } catch (const NotEnoughMemoryError& e) {
    CHECK(std::string(e.what()).find("n_ctx=") != std::string::npos);
  }
}

TEST_CASE("logits that were interrupted leave the tokens alone") {
  const auto model = load(kModels[0], {.n_ubatch = 8});
  Session session(model, 64, DType::F16);
  const auto tokens = some_tokens(*model, 20);
  session.append(tokens, nullptr, {});
  session.rewind(10);
  StopToken stop;
  stop.cancel();
  for (int i = 0; i < 2; ++i) {
    CHECK_THROWS_AS(session.logits(&stop), Cancelled);
    CHECK(session.tokens().size() == 10);
  }
  Session fresh(model, 64, DType::F16);
  fresh.append(std::span(tokens).first(10), nullptr, {});
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("a callback that comes back to the model it runs in gets an error, not a deadlock") {
  const auto model = load(kModels[0]);
  Session session(model, 64, DType::F16), other(model, 64, DType::F16);
  const auto tokens = some_tokens(*model, 5);
  const Tap tap = [&](const char*, int64_t, Rows) { other.append(tokens, nullptr, {}); };
  CHECK_THROWS_AS(session.append(tokens, nullptr, {}, &tap), Error);
  CHECK(session.tokens().empty());
  session.append(tokens, nullptr, {});
}
