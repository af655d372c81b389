// Going back, forking, saving and loading: whatever was kept, dropped or read again, the timeline goes on
// with the bits of one that was never interrupted.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "engine/session_file.h"
#include "engine/session_helpers.h"

using namespace gemmule;

namespace {

// A file that goes when the test does.
struct TemporaryFile {
  TemporaryFile() {
    std::string name = (std::filesystem::temp_directory_path() / "gemmule-session-XXXXXX").string();
    fd = mkstemp(name.data());
    REQUIRE(fd >= 0);
    path = name;
  }
  ~TemporaryFile() {
    ::close(fd);
    std::filesystem::remove(path);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string bytes() const {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void put(const std::string& bytes) const {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  int fd = -1;
  std::string path;
};

Session reload(const Session& session, const std::shared_ptr<LoadedModel>& model, int64_t n_ctx = 0) {
  const TemporaryFile file;
  SessionFile::save(session, file.fd, "front", nullptr);
  SavedSession saved = SessionFile::load(model, file.path, n_ctx, kAutoSnapshots, nullptr);
  CHECK(saved.front == "front");
  return std::move(saved.session);
}

}  // namespace

TEST_CASE("a rewind to where a prompt ended reads nothing again, however long the answer was") {
  for (const char* name : kModels) {
    const auto model = load(name, {.n_ubatch = 8});
    const auto tokens = some_tokens(*model, 700);
    for (const int64_t prompt : {1, 64, 500}) {
      CAPTURE(name);
      CAPTURE(prompt);
      Session session(model, 1024, DType::F16), fresh(model, 1024, DType::F16);
      session.append(std::span(tokens).first(2), nullptr, {});
      session.append(std::span(tokens).subspan(2, static_cast<size_t>(prompt)), nullptr, {});
      for (size_t i = static_cast<size_t>(prompt) + 2; i < 700; ++i)
        session.append(std::span(tokens).subspan(i, 1), nullptr, {});
      // A few tokens before the mark as well: the next prompt may part earlier than the last one ended.
      for (const int64_t before : {int64_t{0}, std::min<int64_t>(5, prompt - 1)}) {
        const int64_t keep = prompt + 2 - before;
        session.rewind(keep);
        if (prompt > 1) CHECK(session.n_ready() == keep);
        const auto more = some_tokens(*model, 300, 9);
        session.append(more, nullptr, {});
        fresh.rewind(0);
        fresh.append(std::span(tokens).first(static_cast<size_t>(keep)), nullptr, {});
        fresh.append(more, nullptr, {});
        CHECK(same_bits(session.logits(), fresh.logits()));
      }
    }
  }
}

TEST_CASE("without a mark, or without the memory for it, tokens are read again from the nearest place") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 1500);
  Session fresh(model, 2048, DType::F16);
  fresh.append(std::span(tokens).first(700), nullptr, {});
  const auto expected = copy(fresh.logits());
  const int64_t chunk = KvSnapshots::chunk_bytes(KvCache(model->config(), 512, DType::F16, 8));
  for (const int64_t limit : {int64_t{0}, int64_t{1}, chunk, 2 * chunk, 4 * chunk, 100 * chunk}) {
    CAPTURE(limit / chunk);
    Session session(model, 2048, DType::F16, limit);
    session.append(std::span(tokens).first(600), nullptr, {});
    for (size_t i = 600; i < tokens.size(); ++i) {
      session.append(std::span(tokens).subspan(i, 1), nullptr, {});
      REQUIRE(session.snapshot_bytes() <= limit);
    }
    session.rewind(700);
    const int64_t ready = session.n_ready();
    CHECK((ready == 0 || (600 <= ready && ready <= 640)));  // the chunk of the mark reaches to 640
    if (limit >= 2 * chunk) CHECK(ready > 0);
    if (limit < chunk) CHECK(ready == 0);
    CHECK(same_bits(session.logits(), expected));
    session.rewind(0);
    CHECK(session.n_ready() == 0);
  }
}

TEST_CASE("progress counts what is read again") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 900);
  Session session(model, 1024, DType::F16, 0);
  session.append(tokens, nullptr, {});
  session.rewind(300);
  CHECK(session.n_ready() == 0);
  int64_t last = 0;
  session.append(std::span(tokens).first(50), nullptr, [&](int64_t done, int64_t all) {
    CHECK(all == 350);
    CHECK(done > last);
    last = done;
  });
  CHECK(last == 350);
}

TEST_CASE("the latest place outlives older ones, a used one outlives unused ones") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 400);
  const KvCache shape(model->config(), 512, DType::F16, 8);
  // Room for two places and a bit.
  Session session(model, 8192, DType::F16, 2 * KvSnapshots::window_bytes(shape));
  std::vector<int64_t> ends;
  for (int turn = 0; turn < 6; ++turn) {
    session.append(std::span(tokens).first(100), nullptr, {});
    ends.push_back(static_cast<int64_t>(session.tokens().size()));
    for (size_t i = 0; i < 400; ++i) session.append(std::span(tokens).subspan(i, 1), nullptr, {});
  }
  CHECK(session.snapshot_bytes() <= session.snapshot_limit());
  session.rewind(ends[5]);
  CHECK(session.n_ready() == ends[5]);
  session.rewind(ends[4] + 400);
  CHECK(session.n_ready() == ends[4] + 400);
  session.rewind(ends[0]);
  CHECK(session.n_ready() < ends[0]);
}

TEST_CASE("long prompts are marked on the way") {
  const auto model = load(kModels[1], {.n_ubatch = 256});
  const auto tokens = some_tokens(*model, 9000);
  Session session(model, 9216, DType::F16), fresh(model, 9216, DType::F16);
  session.append(tokens, nullptr, {});
  session.rewind(8500);
  CHECK(session.n_ready() >= 8192);
  CHECK(session.n_ready() < 8500);
  fresh.append(std::span(tokens).first(8500), nullptr, {});
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("a long prompt that is cancelled costs nothing again") {
  const auto model = load(kModels[1], {.n_ubatch = 8});
  const auto tokens = some_tokens(*model, 1500);
  Session session(model, 2048, DType::F16), fresh(model, 2048, DType::F16);
  for (size_t i = 0; i < 500; ++i) session.append(std::span(tokens).subspan(i, 1), nullptr, {});
  StopToken stop;
  const auto cancel_late = [&](int64_t done, int64_t) {
    if (done > 900) stop.cancel();
  };
  CHECK_THROWS_AS(session.append(std::span(tokens).subspan(500), &stop, cancel_late), Cancelled);
  CHECK(session.n_ready() == 500);
  fresh.append(std::span(tokens).first(500), nullptr, {});
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("going back over images") {
  const auto model = load("tiny-gemma4-f32.gguf", {.n_ubatch = 32});
  const auto tokens = some_tokens(*model, 1600);
  const std::vector<MediaRows> media = {some_media(*model, 10, 30), some_media(*model, 700, 290),
                                        some_media(*model, 1200, 20, false)};
  for (const int64_t keep : {40, 300, 650, 700, 990, 991, 1205, 1300}) {
    CAPTURE(keep);
    Session session(model, 2048, DType::F16), fresh(model, 2048, DType::F16);
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 40}, {40, 300}, {300, 700}, {700, 990}, {990, 1210}, {1210, 1600}})
      append_part(session, tokens, media, begin, end);
    session.rewind(keep);
    append_part(fresh, tokens, media, 0, keep);
    CHECK(same_bits(session.logits(), fresh.logits()));
    const auto more = some_tokens(*model, 80, 9);
    const std::vector<MediaRows> again = {some_media(*model, 3, 50)};
    append_part(session, more, again, 0, 80);
    append_part(fresh, more, again, 0, 80);
    CHECK(same_bits(session.logits(), fresh.logits()));
  }
}

TEST_CASE("forks go their own ways with the bits of sessions that never parted") {
  for (const char* name : kModels) {
    const auto model = load(name, {.n_ubatch = 8});
    const auto tokens = some_tokens(*model, 900);
    Session session(model, 2048, DType::F16);
    session.append(std::span(tokens).first(300), nullptr, {});
    for (size_t i = 300; i < 900; ++i) session.append(std::span(tokens).subspan(i, 1), nullptr, {});
    Session fork = session.fork();
    CHECK(same_bits(session.logits(), fork.logits()));
    const auto one = some_tokens(*model, 700, 5), two = some_tokens(*model, 700, 6);
    session.append(one, nullptr, {});
    fork.append(two, nullptr, {});
    Session first(model, 2048, DType::F16), second(model, 2048, DType::F16);
    first.append(tokens, nullptr, {});
    first.append(one, nullptr, {});
    second.append(tokens, nullptr, {});
    second.append(two, nullptr, {});
    CHECK(same_bits(session.logits(), first.logits()));
    CHECK(same_bits(fork.logits(), second.logits()));
    // The fork keeps the places to go back to, and a fork of a rewound session is rewound.
    fork.rewind(300);
    CHECK(fork.n_ready() == 300);
    Session third = fork.fork();
    third.append(one, nullptr, {});
    second.rewind(0);
    second.append(std::span(tokens).first(300), nullptr, {});
    second.append(one, nullptr, {});
    CHECK(same_bits(third.logits(), second.logits()));
  }
}

TEST_CASE("a loaded session goes on as if it had never stopped") {
  for (const char* name : kModels) {
    for (const DType kv : {DType::F16, DType::F32}) {
      const auto model = load(name, {.n_ubatch = 8}), other = load(name, {.n_ubatch = 200});
      const auto tokens = some_tokens(*model, 900);
      Session session(model, 1024, kv);
      const Session empty = reload(session, model);
      CHECK(empty.tokens().empty());
      session.append(std::span(tokens).first(300), nullptr, {});
      for (size_t i = 300; i < 900; ++i) session.append(std::span(tokens).subspan(i, 1), nullptr, {});
      Session loaded = reload(session, model), larger = reload(session, other, 4096);
      CHECK(larger.n_ctx() == 4096);
      for (Session* other_session : {&loaded, &larger}) {
        CHECK(other_session->tokens() == session.tokens());
        CHECK(other_session->n_ready() == 900);
        CHECK(same_bits(other_session->logits(), session.logits()));
      }
      const auto more = some_tokens(*model, 100, 9);
      session.append(more, nullptr, {});
      for (Session* other_session : {&loaded, &larger}) {
        other_session->append(more, nullptr, {});
        CHECK(same_bits(other_session->logits(), session.logits()));
        other_session->rewind(300);
        CHECK(other_session->n_ready() == 300);
      }
      session.rewind(300);
      Session rewound = reload(session, model);
      for (Session* s : {&session, &loaded, &rewound}) s->append(more, nullptr, {});
      CHECK(same_bits(loaded.logits(), session.logits()));
      CHECK(same_bits(rewound.logits(), session.logits()));
    }
  }
}

TEST_CASE("images and sound come back with a session") {
  const auto model = load("tiny-gemma4-f32.gguf", {.n_ubatch = 32});
  const auto tokens = some_tokens(*model, 700);
  const std::vector<MediaRows> media = {some_media(*model, 10, 300), some_media(*model, 400, 50, false)};
  Session session(model, 1024, DType::F16), fresh(model, 1024, DType::F16);
  append_part(session, tokens, media, 0, 430);
  Session loaded = reload(session, model);
  append_part(loaded, tokens, media, 430, 700);
  append_part(fresh, tokens, media, 0, 700);
  CHECK(same_bits(loaded.logits(), fresh.logits()));
  loaded.rewind(420);  // cuts the sound; read again with the vectors of the file
  fresh.rewind(420);
  CHECK(same_bits(loaded.logits(), fresh.logits()));
}

TEST_CASE("files that are damaged, cut, foreign or of another model are refused with one sentence") {
  const auto model = load(kModels[1], {.n_ubatch = 8}), stranger = load(kModels[0]);
  const auto tokens = some_tokens(*model, 90);
  const std::vector<MediaRows> media = {some_media(*model, 10, 20)};
  Session session(model, 128, DType::F16);
  append_part(session, tokens, media, 0, 90);
  session.logits();
  const TemporaryFile file;
  SessionFile::save(session, file.fd, "front", nullptr);
  const std::string good = file.bytes();
  const auto refused = [&](const std::string& bytes) {
    file.put(bytes);
    CHECK_THROWS_AS(SessionFile::load(model, file.path, 0, kAutoSnapshots, nullptr), FormatError);
  };
  CHECK_NOTHROW(SessionFile::load(model, file.path, 0, kAutoSnapshots, nullptr));
  CHECK_THROWS_WITH_AS(SessionFile::load(stranger, file.path, 0, kAutoSnapshots, nullptr),
                       doctest::Contains("another model"), FormatError);
  CHECK_THROWS_AS(SessionFile::load(model, file.path, 80, kAutoSnapshots, nullptr), ContextLengthError);
  CHECK_THROWS_AS(SessionFile::load(model, file.path + "x", 0, kAutoSnapshots, nullptr), ModelNotFoundError);
  StopToken stop;
  stop.cancel();
  CHECK_THROWS_AS(SessionFile::load(model, file.path, 0, kAutoSnapshots, &stop), Cancelled);
  for (size_t i = 0; i < good.size(); i += i < 200 ? 1 : 997) {  // every byte of the head, then a sample
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x40);
    refused(bad);
  }
  for (size_t n = 0; n < good.size(); n += n < 300 ? 7 : 9973) refused(good.substr(0, n));
  refused(good + "x");
  refused(std::string(good.size(), 'x'));
  file.put(good);
  CHECK_NOTHROW(SessionFile::load(model, file.path, 0, kAutoSnapshots, nullptr));
}
