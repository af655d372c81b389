// Random operations on several sessions of one model, in random order, against a reference that reads every
// token again: append, single tokens, images, rewind, fork, save, load, cancel, free. The seed is fixed;
// GEMMULE_SOAK_STEPS sets how many operations (80), GEMMULE_SOAK_SEED another seed.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "core/error.h"
#include "engine/session_file.h"
#include "engine/session_helpers.h"

using namespace gemmule;

namespace {

int64_t setting(const char* name, int64_t fallback) {
  const char* const text = std::getenv(name);
  return text == nullptr ? fallback : std::atoll(text);
}

// A session and what it should hold.
struct Tracked {
  Session session;
  std::vector<int32_t> tokens;
  std::vector<MediaRows> media;  // by position
};

class Soak {
 public:
  Soak(const char* name, uint32_t seed)
      : model_(load(name, {.n_threads = 2, .n_ubatch = 24})),
        takes_media_(model_->config().d_ple == 0),
        random_(seed),
        path_(
            (std::filesystem::temp_directory_path() / cat("gemmule-soak-", ::getpid(), "-", seed)).string()) {
    open();
  }
  ~Soak() { std::filesystem::remove(path_); }
  Soak(const Soak&) = delete;
  Soak& operator=(const Soak&) = delete;

  void step() {
    if (all_.empty() || (all_.size() < kMost && pick(20) == 0)) open();
    const size_t i = static_cast<size_t>(pick(static_cast<int64_t>(all_.size())));
    Tracked& t = all_[i];
    switch (pick(12)) {
      case 0:
      case 1:
        append(t, some(t, 1 + pick(60)), nullptr);
        break;
      case 2:
        append(t, some(t, 1 + pick(250)), nullptr);
        break;
      case 3:
      case 4:
        for (int64_t n = pick(24); n > 0; --n) append(t, some(t, 1), nullptr);
        break;
      case 5:
        append_image(t);
        break;
      case 6:
      case 7:
        rewind(t);
        break;
      case 8:
        fork(t);
        break;
      case 9:
        save_and_load(t);
        break;
      case 10:
        cancel(t);
        break;
      default:
        if (all_.size() > 1 && pick(2) == 0)
          all_.erase(all_.begin() + static_cast<std::ptrdiff_t>(i));
        else
          check(t);
    }
  }

  void check_all() {
    for (Tracked& t : all_) check(t);
  }

 private:
  static constexpr int64_t kContext = 700;  // the rings have 256 slots
  static constexpr size_t kMost = 4;

  int64_t pick(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint32_t>(n)); }

  void open() {
    const int64_t chunk = KvSnapshots::chunk_bytes(KvCache(model_->config(), 256, DType::F16, 24));
    const int64_t limits[] = {kAutoSnapshots, 0, 3 * chunk, 7 * chunk};
    all_.push_back({Session(model_, kContext, DType::F16, limits[pick(4)]), {}, {}});
  }

  std::vector<int32_t> some(const Tracked& t, int64_t n) {
    return some_tokens(*model_, std::min(n, kContext - static_cast<int64_t>(t.tokens.size())), random_());
  }

  void append(Tracked& t, const std::vector<int32_t>& tokens, const StopToken* stop) {
    t.session.append(tokens, stop, {});
    t.tokens.insert(t.tokens.end(), tokens.begin(), tokens.end());
  }

  void append_image(Tracked& t) {
    const int64_t n = 3 + pick(80);
    const std::vector<int32_t> tokens = some(t, n);
    if (!takes_media_ || static_cast<int64_t>(tokens.size()) < n) return;
    MediaRows rows = some_media(*model_, 1 + pick(2), n - 2, pick(3) > 0);
    rows.first = 1;
    t.session.append(tokens, std::span(&rows, 1), nullptr, {});
    rows.first += static_cast<int64_t>(t.tokens.size());
    t.media.push_back(rows);
    t.tokens.insert(t.tokens.end(), tokens.begin(), tokens.end());
  }

  void rewind(Tracked& t) {
    int64_t n = pick(static_cast<int64_t>(t.tokens.size()) + 1);
    if (pick(2) == 0) n = std::max(n, static_cast<int64_t>(t.tokens.size()) - pick(40));
    for (const MediaRows& m : t.media)
      if (m.is_block && m.first < n && n < m.end()) n = m.first;
    t.session.rewind(n);
    t.tokens.resize(static_cast<size_t>(n));
    while (!t.media.empty() && t.media.back().first >= n) t.media.pop_back();
    if (!t.media.empty()) t.media.back().n_rows = std::min(t.media.back().n_rows, n - t.media.back().first);
  }

  void fork(Tracked& t) {
    if (all_.size() >= kMost) return;
    Tracked copy{t.session.fork(), t.tokens, t.media};
    all_.push_back(std::move(copy));
  }

  void save_and_load(Tracked& t) {
    FILE* const file = std::fopen(path_.c_str(), "wb");
    REQUIRE(file != nullptr);
    SessionFile::save(t.session, fileno(file), "", nullptr);
    std::fclose(file);
    Tracked back{SessionFile::load(model_, path_, 0, kAutoSnapshots, nullptr).session, t.tokens, t.media};
    if (pick(2) == 0)
      t = std::move(back);
    else if (all_.size() < kMost)
      all_.push_back(std::move(back));
  }

  void cancel(Tracked& t) {
    StopToken stop;
    int64_t left = pick(60);
    stop.set_poll([&] {
      if (--left < 0) stop.cancel();
    });
    const std::vector<int32_t> tokens = some(t, 1 + pick(120));
    try {
      append(t, tokens, &stop);
    } catch (const Cancelled&) {
    }
    CHECK(t.session.tokens() == t.tokens);
  }

  void check(Tracked& t) {
    CHECK(t.session.tokens() == t.tokens);
    if (t.tokens.empty()) return;
    Session reference(model_, kContext, DType::F16, 0);
    append_part(reference, t.tokens, t.media, 0, static_cast<int64_t>(t.tokens.size()));
    REQUIRE(same_bits(t.session.logits(), reference.logits()));
  }

  std::shared_ptr<LoadedModel> model_;
  bool takes_media_;
  std::mt19937 random_;
  std::string path_;
  std::vector<Tracked> all_;
};

}  // namespace

TEST_CASE("random operations on sessions never change a bit") {
  const int64_t n_steps = setting("GEMMULE_SOAK_STEPS", 80);
  const auto seed = static_cast<uint32_t>(setting("GEMMULE_SOAK_SEED", 6));
  for (const char* name : {"tiny-gemma4-f32.gguf", "tiny-gemma4-e2b-f16.gguf"}) {
    CAPTURE(name);
    Soak soak(name, seed);
    for (int64_t i = 0; i < n_steps; ++i) {
      CAPTURE(i);
      soak.step();
    }
    soak.check_all();
  }
}
