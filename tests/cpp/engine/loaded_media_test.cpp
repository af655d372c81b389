// The embedders of a loaded model: the same bits however they are computed, and refusals of what cannot be.
#include "engine/loaded_media.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/kernel_select.h"
#include "core/error.h"
#include "engine/session.h"
#include "model/media_file.h"

using namespace gemmule;
using gemmule::testing::MediaFile;
using gemmule::testing::TempFile;

namespace {

std::shared_ptr<LoadedModel> load(LoadOptions options = {}) {
  return std::make_shared<LoadedModel>(
      GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/tiny-gemma4-f32.gguf"), options);
}

std::vector<uint8_t> some_pixels(int64_t n) {
  std::vector<uint8_t> pixels;
  for (int64_t i = 0; i < n; ++i) pixels.push_back(static_cast<uint8_t>(i * i / 7 + 31 * i));
  return pixels;
}

std::vector<float> image(LoadedMedia& media, const std::vector<uint8_t>& pixels, int64_t height,
                         int64_t width, const StopToken* stop = nullptr) {
  std::vector<float> out(static_cast<size_t>(media.image_rows(height, width) * media.config().d_model));
  media.embed_image(pixels.data(), height, width, out.data(), stop);
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr int64_t kHeight = 120, kWidth = 156;  // 10 x 13 tiles: three pieces

}  // namespace

TEST_CASE("embeddings do not depend on threads or the level, nor on the rest of the image or clip") {
  MediaFile content;
  content.store_as("mm.input_projection.weight", DType::Q8_0);
  const TempFile on_disk(content.image());
  const auto pixels = some_pixels(kHeight * kWidth * 3);
  std::vector<float> samples, expected, expected_sound;
  for (int i = 0; i < 96 * 200; ++i) samples.push_back(std::sin(static_cast<float>(i * i)));
  for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
    if (!level.supported) continue;
    for (const int n_threads : {1, 3}) {
      LoadedMedia media(load({n_threads, level.table->name, 256}), GgufFile::open(on_disk.path()));
      const auto rows = image(media, pixels, kHeight, kWidth);
      std::vector<float> sound(static_cast<size_t>(media.audio_rows(96 * 200) * 40));
      media.embed_audio(samples, sound.data(), nullptr);
      if (expected.empty()) {
        expected = rows;
        expected_sound = sound;
      }
      CHECK(same_bits(rows, expected));
      CHECK(same_bits(sound, expected_sound));
      // The first row of tiles alone, and the first frames alone.
      CHECK(same_bits(image(media, pixels, 12, kWidth), {expected.begin(), expected.begin() + 13 * 40}));
      std::vector<float> few(5 * 40);
      media.embed_audio(std::span(samples).first(5 * 96), few.data(), nullptr);
      CHECK(same_bits(few, {sound.begin(), sound.begin() + 5 * 40}));
    }
  }
}

TEST_CASE("an embedder wider than everything in its model works, and the model goes on") {
  MediaFile content;
  content.patch = 32;  // tiles of 27648 numbers
  content.width = 8;
  content.fill();
  content.store_as("v.patch_embd.weight", DType::Q8_0);
  const TempFile on_disk(content.image());
  const auto model = load({.n_ubatch = 4});
  const std::vector<int32_t> tokens = {2, 3, 4, 5, 6, 7};
  Session before(model, 64, DType::F16), after(model, 64, DType::F16);
  before.append(tokens, nullptr, {});
  LoadedMedia media(model, GgufFile::open(on_disk.path()));
  const auto rows = image(media, some_pixels(960 * 768 * 3), 960, 768);
  CHECK(rows.size() == 80 * 40);  // in pieces of 18, so that the scratch stays small
  for (const float v : rows) CHECK(std::isfinite(v));
  after.append(tokens, nullptr, {});
  CHECK(std::memcmp(before.logits().data(), after.logits().data(), 4 * before.logits().size()) == 0);
}

TEST_CASE("sizes that the embedder cannot take are refused") {
  const TempFile on_disk(MediaFile().image());
  LoadedMedia media(load(), GgufFile::open(on_disk.path()));
  CHECK(media.image_rows(24, 360) == 60);
  for (const auto& [height, width] : {std::pair(12, 13), std::pair(0, 12), std::pair(12, 0),
                                      std::pair(-12, 12), std::pair(12, 372), std::pair(372, 12)})
    CHECK_THROWS_AS(media.image_rows(height, width), std::invalid_argument);
  CHECK(media.audio_rows(1) == 1);
  CHECK(media.audio_rows(96) == 1);
  CHECK(media.audio_rows(97) == 2);
  CHECK_THROWS_AS(media.audio_rows(0), std::invalid_argument);
}

TEST_CASE("a file without the embedder says so") {
  MediaFile content;
  content.has_image = false;
  std::erase_if(content.tensors, [](const auto& t) { return t.first.find("mm.a.") != 0; });
  const TempFile on_disk(content.image());
  LoadedMedia media(load(), GgufFile::open(on_disk.path()));
  CHECK_THROWS_AS(media.image_rows(12, 12), UnsupportedError);
  CHECK(media.audio_rows(10) == 1);
}

TEST_CASE("a long image can be cancelled between its pieces") {
  const TempFile on_disk(MediaFile().image());
  LoadedMedia media(load(), GgufFile::open(on_disk.path()));
  StopToken stop;
  int asked = 0;
  stop.set_poll([&] {
    if (++asked == 3) stop.cancel();
  });
  CHECK_THROWS_AS(image(media, some_pixels(kHeight * kWidth * 3), kHeight, kWidth, &stop), Cancelled);
  CHECK(asked == 3);
}

TEST_CASE("results that are not finite are refused, and so is a file that was cut") {
  MediaFile content;
  content.tensors.at("mm.input_projection.weight").values[7] = std::numeric_limits<float>::infinity();
  const TempFile damaged(content.image()), whole(MediaFile().image());
  LoadedMedia bad(load(), GgufFile::open(damaged.path()));
  CHECK_THROWS_AS(image(bad, some_pixels(12 * 12 * 3), 12, 12), Error);
  LoadedMedia cut(load(), GgufFile::open(whole.path()));
  std::filesystem::resize_file(whole.path(), 4096);
  CHECK_THROWS_AS(image(cut, some_pixels(12 * 12 * 3), 12, 12), FormatError);
}

TEST_CASE("an embedder that waits for the model it is called from gets an error, not a deadlock") {
  const TempFile on_disk(MediaFile().image());
  const auto model = load();
  LoadedMedia media(model, GgufFile::open(on_disk.path()));
  Session session(model, 64, DType::F16);
  const std::vector<int32_t> tokens = {1, 2, 3};
  const Tap tap = [&](const char*, int64_t, Rows) { image(media, some_pixels(12 * 12 * 3), 12, 12); };
  CHECK_THROWS_AS(session.append(tokens, nullptr, {}, &tap), Error);
}
