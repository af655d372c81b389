// The promises of a session on small random models of the family: the same bits whatever the threads, the
// size of the steps, the level or the company; rewinds, cancellation and errors leave it as it was.
#include "engine/session.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "backend/cpu/kernel_select.h"
#include "core/error.h"
#include "engine/session_helpers.h"

using namespace gemmule;

TEST_CASE("the bits do not depend on threads, steps, rows of a step or the level") {
  struct Way {
    int n_threads;
    int64_t n_ubatch;
    size_t step;
  };
  for (const char* name : kModels) {
    for (const DType kv : {DType::F16, DType::F32}) {
      const auto model = load(name, {.n_threads = 1});
      const auto tokens = some_tokens(*model, 150);
      Session reference(model, 256, kv);
      const auto expected = hidden_states(reference, tokens, tokens.size());
      for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
        if (!level.supported) continue;
        for (const Way& way : {Way{1, 5, 150}, {1, 64, 7}, {1, 64, 1}, {3, 5, 7}, {3, 64, 1}, {3, 64, 150}}) {
          Session session(load(name, {way.n_threads, level.table->name, way.n_ubatch}), 256, kv);
          CHECK(same_bits(hidden_states(session, tokens, way.step), expected));
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

TEST_CASE("a context that cannot fit is refused") {
  const auto model = load(kModels[1]);
  try {
    Session session(model, kMaxContext, DType::F32);
    MESSAGE("this machine has the memory for ", kMaxContext, " positions");
  } catch (const NotEnoughMemoryError& e) {
    CHECK(std::string(e.what()).find("n_ctx") != std::string::npos);
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

namespace {

// Models without a per-layer embedding. Their windows have 16 positions or fewer.
const char* const kMediaModels[] = {"tiny-gemma3-f32.gguf", "tiny-gemma4-f32.gguf",
                                    "tiny-gemma4-26b-f16.gguf"};

// Blocks at the start and the end, next to each other, longer than the window and than a step; sound between.
std::vector<MediaRows> mixed_media(const LoadedModel& model) {
  return {some_media(model, 0, 40), some_media(model, 45, 20, false), some_media(model, 70, 9),
          some_media(model, 79, 1), some_media(model, 80, 12),        some_media(model, 140, 20)};
}

}  // namespace

TEST_CASE("images and sound: the bits do not depend on threads, steps, the level or the pieces") {
  struct Way {
    int n_threads;
    int64_t n_ubatch;
  };
  for (const char* name : kMediaModels) {
    for (const DType kv : {DType::F16, DType::F32}) {
      const auto model = load(name, {.n_threads = 1});
      const auto tokens = some_tokens(*model, 160);
      const auto media = mixed_media(*model);
      Session reference(model, 256, kv);
      const auto expected = append_part(reference, tokens, media, 0, 160);
      Session text(model, 256, kv);
      CHECK_FALSE(same_bits(hidden_states(text, tokens, 160), expected));
      for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
        if (!level.supported) continue;
        for (const Way& way : {Way{1, 1}, {1, 64}, {3, 5}, {3, 64}}) {
          const auto other = load(name, {way.n_threads, level.table->name, way.n_ubatch});
          Session whole(other, 256, kv), pieces(other, 256, kv);
          CHECK(same_bits(append_part(whole, tokens, media, 0, 160), expected));
          std::vector<float> joined;
          int64_t begin = 0;
          for (const int64_t end : {40, 50, 63, 79, 80, 92, 140, 160}) {
            const auto part = append_part(pieces, tokens, media, begin, end);
            joined.insert(joined.end(), part.begin(), part.end());
            begin = end;
          }
          CHECK(same_bits(joined, expected));
        }
      }
    }
  }
}

TEST_CASE("rows of a block see each other; sound and other blocks do not") {
  const auto model = load("tiny-gemma4-f32.gguf");
  const auto tokens = some_tokens(*model, 60);
  const auto with_last_row = [&](float value, bool is_block) {
    std::vector<MediaRows> media = {some_media(*model, 10, 12, is_block),
                                    some_media(*model, 22, 12, is_block)};
    const std::shared_ptr<float[]> vectors(new float[12 * 40]);
    std::copy_n(media[1].vectors.get(), 12 * 40, vectors.get());
    vectors[11 * 40] = value;
    media[1].vectors = vectors;
    Session session(model, 64, DType::F32);
    return append_part(session, tokens, media, 0, 60);
  };
  const auto first_change = [](const std::vector<float>& a, const std::vector<float>& b) {
    return std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin();
  };
  CHECK(first_change(with_last_row(0, true), with_last_row(1, true)) / 40 == 22);
  CHECK(first_change(with_last_row(0, false), with_last_row(1, false)) / 40 == 33);
}

TEST_CASE("a block longer than the rings lets them grow, and nothing else changes") {
  for (const char* name : kMediaModels) {
    const auto model = load(name, {.n_ubatch = 16}), large = load(name, {.n_ubatch = 1024});
    const auto tokens = some_tokens(*model, 900);
    const std::vector<MediaRows> media = {some_media(*model, 5, 10), some_media(*model, 420, 400)};
    Session session(model, 1024, DType::F16), text(model, 1024, DType::F16),
        reference(large, 1024, DType::F16);
    const auto expected = append_part(reference, tokens, media, 0, 900);
    text.append(tokens, nullptr, {});
    CHECK(same_bits(append_part(session, tokens, media, 0, 900), expected));
    CHECK(session.kv_bytes() > text.kv_bytes());
    // Continuing after the growth.
    const auto more = some_tokens(*model, 100, 5);
    session.append(more, nullptr, {});
    reference.append(more, nullptr, {});
    CHECK(same_bits(session.logits(), reference.logits()));
  }
}

TEST_CASE("a rewind over images continues as if the dropped ones had never been") {
  for (const char* name : kMediaModels) {
    const auto model = load(name, {.n_ubatch = 32});
    const auto tokens = some_tokens(*model, 700);
    const std::vector<MediaRows> media = {some_media(*model, 0, 30), some_media(*model, 60, 20, false),
                                          some_media(*model, 100, 290), some_media(*model, 660, 40)};
    for (const int64_t keep : {0, 30, 31, 60, 65, 100, 390, 400, 660, 700}) {
      CAPTURE(keep);
      Session session(model, 1024, DType::F16), fresh(model, 1024, DType::F16);
      append_part(session, tokens, media, 0, 700);
      session.rewind(keep);
      CHECK(session.tokens().size() == static_cast<size_t>(keep));
      if (keep > 0) {
        append_part(fresh, tokens, media, 0, keep);
        CHECK(same_bits(session.logits(), fresh.logits()));
        session.rewind(keep);  // after the rows were run again
        CHECK(same_bits(session.logits(), fresh.logits()));
      }
      const auto more = some_tokens(*model, 80, 9);
      const std::vector<MediaRows> again = {some_media(*model, 3, 50)};
      append_part(session, more, again, 0, 80);
      append_part(fresh, more, again, 0, 80);
      CHECK(same_bits(session.logits(), fresh.logits()));
    }
  }
}

TEST_CASE("sound that a rewind has cut stays cut when the tokens are read again") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 600);
  const std::vector<MediaRows> media = {some_media(*model, 40, 20, false)};
  const std::vector<MediaRows> cut = {some_media(*model, 40, 5, false)};
  Session session(model, 1024, DType::F16), fresh(model, 1024, DType::F16);
  append_part(session, tokens, media, 0, 60);
  session.rewind(45);
  append_part(session, tokens, {}, 45, 600);
  session.rewind(300);  // far behind the window: everything is read again
  append_part(fresh, tokens, cut, 0, 300);
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("a rewind into a block is refused with the positions that work") {
  const auto model = load(kModels[1]);
  const auto tokens = some_tokens(*model, 100);
  const std::vector<MediaRows> media = {some_media(*model, 20, 30), some_media(*model, 60, 10, false)};
  Session session(model, 128, DType::F16);
  append_part(session, tokens, media, 0, 100);
  const auto expected = copy(session.logits());
  for (const int64_t n : {21, 35, 49})
    CHECK_THROWS_WITH_AS(session.rewind(n), doctest::Contains("rewind to 20 or 50"), std::invalid_argument);
  CHECK(session.tokens().size() == 100);
  CHECK(same_bits(session.logits(), expected));
  session.rewind(65);  // sound may be cut
  session.rewind(50);
  session.rewind(20);
  session.rewind(0);
}

TEST_CASE("a cancelled image is as if it had never been appended") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 400);
  const std::vector<MediaRows> media = {some_media(*model, 100, 300)};
  Session session(model, 512, DType::F16), fresh(model, 512, DType::F16);
  append_part(session, tokens, media, 0, 50);
  StopToken stop;
  const Tap cancel_in_block = [&](const char* what, int64_t layer, Rows values) {
    if (values.n == 300 && layer == 2 && std::string(what) == "attn_in") stop.cancel();
  };
  const auto rest = media_within(*model, media, 50, 400);
  CHECK_THROWS_AS(session.append(std::span(tokens).subspan(50), rest, &stop, {}, &cancel_in_block),
                  Cancelled);
  CHECK(session.tokens().size() == 50);
  append_part(session, tokens, media, 50, 400);
  append_part(fresh, tokens, media, 0, 400);
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("a re-reading that is interrupted again and again goes on where it was") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 600);
  const std::vector<MediaRows> media = {some_media(*model, 20, 30), some_media(*model, 200, 100)};
  Session session(model, 1024, DType::F16), fresh(model, 1024, DType::F16);
  append_part(session, tokens, media, 0, 600);
  session.rewind(310);  // far behind the window: the next call reads all 310 again
  for (int64_t patience = 1; patience < 200; patience += 1 + patience / 2) {
    StopToken stop;
    int64_t asked = 0;
    stop.set_poll([&] {
      if (++asked == patience) stop.cancel();
    });
    CHECK_THROWS_AS(session.logits(&stop), Cancelled);
    CHECK(session.tokens().size() == 310);
  }
  const auto more = some_tokens(*model, 10, 3);
  session.append(more, nullptr, {});
  append_part(fresh, tokens, media, 0, 310);
  fresh.append(more, nullptr, {});
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("sessions with images share steps with others and get the bits of each alone") {
  const auto model = load(kModels[1]);
  const auto tokens = some_tokens(*model, 120);
  const std::vector<MediaRows> media = {some_media(*model, 7, 70)};
  const std::vector<std::vector<int32_t>> pieces = {some_tokens(*model, 3, 2), some_tokens(*model, 40, 3)};
  Session a(model, 256, DType::F16), b(model, 256, DType::F16), alone(model, 256, DType::F16);
  append_part(a, tokens, media, 0, 120);
  a.rewind(90);
  Session* const together[] = {&a, &b};
  Session::append_together(together, pieces, nullptr);
  append_part(alone, tokens, media, 0, 90);
  alone.append(pieces[0], nullptr, {});
  CHECK(same_bits(a.logits(), alone.logits()));
}

TEST_CASE("media that do not fit their tokens, their block or their model are refused before anything runs") {
  const auto model = load(kModels[1]), e2b = load("tiny-gemma4-e2b-f16.gguf");
  const auto tokens = some_tokens(*model, 1300);
  const auto refused = [&](std::vector<MediaRows> media) {
    Session session(model, 2048, DType::F16);
    CHECK_THROWS_AS(session.append(tokens, media, nullptr, {}), std::invalid_argument);
    CHECK(session.tokens().empty());
  };
  const MediaRows good = some_media(*model, 10, 10), none = some_media(*model, 10, 0);
  refused({good, some_media(*model, 19, 3)});
  refused({some_media(*model, 30, 3), good});
  refused({some_media(*model, 1295, 6)});
  refused({some_media(*model, -1, 6)});
  refused({none});
  refused({some_media(*model, 5, 1121)});
  MediaRows endless = good;
  endless.n_rows = std::numeric_limits<int64_t>::max();
  refused({endless});
  Session session(e2b, 64, DType::F16);
  const std::vector<MediaRows> media = {some_media(*e2b, 0, 4)};
  CHECK_THROWS_AS(session.append(std::span(tokens).first(8), media, nullptr, {}), UnsupportedError);
  session.append(std::span(tokens).first(8), nullptr, {});
  // The longest block, and sound of any length.
  Session longest(model, 2048, DType::F16);
  const std::vector<MediaRows> most = {some_media(*model, 5, 1120), some_media(*model, 1125, 175, false)};
  longest.append(tokens, most, nullptr, {});
  CHECK(longest.tokens().size() == 1300);
}
