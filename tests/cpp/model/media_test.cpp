// The embedders against the formulas in double precision, and files that must be refused.
#include "model/media.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "model/media_file.h"

using namespace gemmule;
using gemmule::testing::gguf_array;
using gemmule::testing::gguf_string;
using gemmule::testing::le;
using gemmule::testing::MediaFile;
using gemmule::testing::TempFile;

namespace {

using Doubles = std::vector<double>;

std::vector<uint8_t> some_pixels(int64_t n, uint32_t seed) {
  std::vector<uint8_t> pixels;
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    pixels.push_back(static_cast<uint8_t>(seed >> 24));
  }
  return pixels;
}

Doubles layer_norm(const Doubles& x, const std::vector<float>& w, const std::vector<float>& b) {
  const auto n = static_cast<double>(x.size());
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double variance = 0;
  for (const double v : x) variance += (v - mean) * (v - mean) / n;
  Doubles y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back((x[i] - mean) / std::sqrt(variance + 1e-5) * w[i] + b[i]);
  return y;
}

Doubles rms_norm(const Doubles& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  Doubles y;
  for (const double v : x) y.push_back(v / std::sqrt(sum / static_cast<double>(x.size()) + 1e-6));
  return y;
}

Doubles product(const std::vector<float>& w, const Doubles& x) {
  Doubles y(w.size() / x.size());
  for (size_t r = 0; r < y.size(); ++r)
    for (size_t i = 0; i < x.size(); ++i) y[r] += w[r * x.size() + i] * x[i];
  return y;
}

// One tile of an image, by the formulas of docs/MODEL.md.
Doubles reference_tile(const MediaFile& file, const std::vector<uint8_t>& pixels, int64_t width, int64_t x,
                       int64_t y) {
  const auto w = [&](const char* name) -> const std::vector<float>& { return file.tensors.at(name).values; };
  const int64_t side = file.side();
  Doubles tile;
  for (int64_t colour = 0; colour < 3; ++colour)
    for (int64_t r = 0; r < side; ++r)
      for (int64_t c = 0; c < side; ++c)
        tile.push_back(pixels[static_cast<size_t>(((y * side + r) * width + x * side + c) * 3 + colour)] /
                       255.0);
  Doubles u = product(w("v.patch_embd.weight"),
                      layer_norm(tile, w("v.patch_norm.1.weight"), w("v.patch_norm.1.bias")));
  for (size_t i = 0; i < u.size(); ++i) u[i] += w("v.patch_embd.bias")[i];
  u = layer_norm(u, w("v.patch_norm.2.weight"), w("v.patch_norm.2.bias"));
  const auto& positions = w("v.position_embd.weight");
  for (size_t i = 0; i < u.size(); ++i)
    u[i] += static_cast<double>(positions[static_cast<size_t>(x) * u.size() + i]) +
            positions[static_cast<size_t>(file.n_positions + y) * u.size() + i];
  return product(w("mm.input_projection.weight"),
                 rms_norm(layer_norm(u, w("v.patch_norm.3.weight"), w("v.patch_norm.3.bias"))));
}

// |a - b| / |b|
double distance(const float* a, const Doubles& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(error / norm);
}

struct Opened {
  explicit Opened(const MediaFile& content, int n_threads = 2)
      : on_disk(content.image()),
        file(GgufFile::open(on_disk.path())),
        backend(open_cpu("", n_threads)),
        config(MediaConfig::from_gguf(*file, content.d_model)),
        weights(MediaWeights::bind(*file, config, *backend)),
        embedder(config, weights, *backend) {}
  TempFile on_disk;
  std::shared_ptr<const GgufFile> file;
  std::unique_ptr<Backend> backend;
  MediaConfig config;
  MediaWeights weights;
  MediaEmbedder embedder;
};

double worst_tile(const MediaFile& content, const std::vector<uint8_t>& pixels, int64_t width,
                  int64_t height) {
  Opened opened(content);
  const int64_t across = width / content.side(), n = across * (height / content.side());
  REQUIRE(n <= opened.embedder.max_rows());
  const Rows rows = opened.embedder.embed_tiles(pixels.data(), width, 0, n);
  double worst = 0;
  for (int64_t i = 0; i < n; ++i)
    worst = std::max(worst, distance(rows.data + i * rows.cols,
                                     reference_tile(content, pixels, width, i % across, i / across)));
  return worst;
}

template <class E>
void refused(const MediaFile& content, const std::string& named, int64_t d_model = 40) {
  const TempFile on_disk(content.image());
  const auto backend = open_cpu("", 1);
  try {
    const auto file = GgufFile::open(on_disk.path());
    const MediaConfig config = MediaConfig::from_gguf(*file, d_model);
    MediaWeights::bind(*file, config, *backend);
    FAIL("accepted: ", named);
  } catch (const E& e) {
    CHECK_MESSAGE(std::string(e.what()).find(named) != std::string::npos, e.what());
    CHECK(std::string(e.what()).find(on_disk.path()) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("tiles of an image become the rows of the formulas") {
  MediaFile file;
  CHECK(worst_tile(file, some_pixels(84 * 60 * 3, 1), 84, 60) < 1e-6);
  // Nearly one colour: what is left after the mean is small, and must keep its digits.
  std::vector<uint8_t> flat(24 * 24 * 3, 200);
  CHECK(worst_tile(file, flat, 24, 24) < 1e-6);
  flat[500] = 201;
  CHECK(worst_tile(file, flat, 24, 24) < 1e-6);
}

TEST_CASE("widths may differ from the text model's, and the pool from three") {
  MediaFile file;
  file.width = 24;
  file.pool = 2;
  file.patch = 5;
  file.n_positions = 9;
  file.fill();
  CHECK(worst_tile(file, some_pixels(90 * 30 * 3, 2), 90, 30) < 1e-6);
}

TEST_CASE("mean and deviation of the file are used") {
  MediaFile plain, file;
  const std::string means = le(0.5f) + le(0.25f) + le(0.0f), stds = le(0.5f) + le(1.0f) + le(2.0f);
  file.more_keys = {{"clip.vision.image_mean", {ValueType::Array, gguf_array(ValueType::F32, 3, means)}},
                    {"clip.vision.image_std", {ValueType::Array, gguf_array(ValueType::F32, 3, stds)}}};
  const auto pixels = some_pixels(12 * 12 * 3, 3);
  Opened a(plain), b(file);
  CHECK(b.config.mean[1] == 0.25f);
  const Rows x = a.embedder.embed_tiles(pixels.data(), 12, 0, 1),
             y = b.embedder.embed_tiles(pixels.data(), 12, 0, 1);
  CHECK(distance(y.data, Doubles(x.data, x.data + 40)) > 0.01);
}

TEST_CASE("frames of sound become the rows of the formulas, the last one filled with zeros") {
  const MediaFile content;
  Opened opened(content);
  std::vector<float> samples;
  for (int i = 0; i < 500; ++i) samples.push_back(0.1f * std::sin(0.3f * static_cast<float>(i)));
  opened.embedder.embed_frames(std::vector<float>(6 * 96, 0.7f), 0, 6);  // leaves nothing behind
  const Rows rows = opened.embedder.embed_frames(samples, 0, 6);
  for (int64_t frame = 0; frame < 6; ++frame) {
    Doubles x(96);
    for (int64_t i = 0; i < 96 && frame * 96 + i < 500; ++i)
      x[static_cast<size_t>(i)] = samples[static_cast<size_t>(frame * 96 + i)];
    const Doubles expected = product(content.tensors.at("mm.a.input_projection.weight").values, rms_norm(x));
    CHECK(distance(rows.data + frame * rows.cols, expected) < 1e-6);
  }
  const std::vector<float> silence(96, 0.0f);
  const Rows none = opened.embedder.embed_frames(silence, 0, 1);
  for (int64_t i = 0; i < none.cols; ++i) CHECK(none.data[i] == 0);
}

TEST_CASE("matrices and the position table may have any type") {
  for (const DType dtype : {DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q5_1}) {
    MediaFile file;
    file.patch = 8;  // tiles of 24 x 24: rows of 1728 = 54 * 32
    file.fill();
    for (const char* name : {"v.patch_embd.weight", "v.position_embd.weight", "mm.input_projection.weight",
                             "mm.a.input_projection.weight"})
      file.store_as(name, dtype);
    const bool is_float = dtype == DType::F16 || dtype == DType::BF16;
    // Blocks are multiplied by rows of 8-bit numbers.
    CHECK(worst_tile(file, some_pixels(48 * 24 * 3, 4), 48, 24) < (is_float ? 1e-6 : 0.02));
  }
  MediaFile file;
  file.width = 256;
  file.patch = 16;
  file.fill();
  file.store_as("v.patch_embd.weight", DType::Q4_K);
  file.store_as("mm.input_projection.weight", DType::Q6_K);
  CHECK(worst_tile(file, some_pixels(48 * 48 * 3, 5), 48, 48) < 0.02);
}

TEST_CASE("a file may hold one kind of embedder") {
  MediaFile images, sound;
  images.has_audio = false;
  images.tensors.erase("mm.a.input_projection.weight");
  sound.has_image = false;
  std::erase_if(sound.tensors, [](const auto& t) { return t.first.find("mm.a.") != 0; });
  Opened a(images), b(sound);
  CHECK(a.config.has_image);
  CHECK_FALSE(a.config.has_audio);
  CHECK(a.config.samples_per_token == 0);
  CHECK(b.config.has_audio);
  CHECK_FALSE(b.config.has_image);
  CHECK(b.config.tile == 0);
  const std::vector<float> samples(96, 0.5f);
  CHECK(b.embedder.embed_frames(samples, 0, 1).cols == 40);
  MediaFile neither = sound;
  neither.has_audio = false;
  refused<UnsupportedError>(neither, "neither");
}

TEST_CASE("missing, misshapen and unknown tensors are refused by name") {
  const MediaFile good;
  for (const auto& [name, entry] : good.tensors) {
    MediaFile file;
    file.tensors.erase(name);
    refused<FormatError>(file, name);
    file = good;
    auto& changed = file.tensors.at(name);
    changed.shape.back() -= 1;
    const uint64_t rest = entry.values.size() / entry.shape.back();
    changed.values.resize(rest * changed.shape.back());
    refused<FormatError>(file, entry.shape.size() == 3 ? "v.position_embd.weight" : name);
  }
  MediaFile more;
  more.tensors["v.blk.0.attn_q.weight"] = more.tensors.at("mm.input_projection.weight");
  refused<UnsupportedError>(more, "v.blk.0.attn_q.weight");
  MediaFile half;
  half.store_as("v.patch_norm.2.bias", DType::F16);
  refused<UnsupportedError>(half, "v.patch_norm.2.bias");
  MediaFile damaged;
  damaged.tensors.at("v.patch_embd.bias").values[3] = NAN;
  refused<FormatError>(damaged, "v.patch_embd.bias");
}

TEST_CASE("other projectors, other widths and files of another kind are refused") {
  MediaFile file;
  file.image_projector = "gemma4v";
  refused<UnsupportedError>(file, "gemma4v");
  file = {};
  file.audio_projector = "gemma4a";
  refused<UnsupportedError>(file, "gemma4a");
  refused<FormatError>(MediaFile(), "32", 32);
  file = {};
  file.architecture = "gemma4";
  refused<UnsupportedError>(file, "mmproj");
}

TEST_CASE("sizes that no honest file has are refused at once") {
  const auto with = [](const std::string& key, uint32_t value) {
    MediaFile file;
    file.more_keys = {{key, {ValueType::U32, le(value)}}};
    return file;
  };
  MediaFile file;
  for (const int64_t patch : {0, 4096, 200}) {
    file = {};
    file.patch = patch;
    file.tensors.clear();
    refused<FormatError>(file, "patch_size");
  }
  refused<FormatError>(with("clip.vision.projector.scale_factor", 0), "scale_factor");
  refused<FormatError>(with("clip.vision.projector.scale_factor", 1u << 30), "scale_factor");
  file = {};
  file.width = int64_t{1} << 31;
  refused<FormatError>(file, "clip.vision.embedding_length");
  file = {};
  file.samples = int64_t{1} << 31;
  refused<FormatError>(file, "clip.audio.embedding_length");
  file = {};
  file.tensors.at("v.position_embd.weight") = {{1, 1 << 17, 2}, DType::F32, std::vector<float>(1 << 18)};
  refused<FormatError>(file, "v.position_embd.weight");
  file = {};
  file.more_keys = {{"clip.vision.attention.layer_norm_epsilon", {ValueType::F32, le(-1.0f)}}};
  refused<FormatError>(file, "layer_norm_epsilon");
  for (const std::string& stds : {le(0.0f) + le(1.0f) + le(1.0f), le(1.0f) + le(1.0f)}) {
    file = {};
    file.more_keys = {
        {"clip.vision.image_std", {ValueType::Array, gguf_array(ValueType::F32, stds.size() / 4, stds)}}};
    refused<FormatError>(file, "image_std");
  }
}

TEST_CASE("whether rows of an image see each other is read from the file") {
  const auto attention = [](const char* value) {
    MediaFile file;
    file.more_keys = {{"gemmule.media.image.attention", {ValueType::String, gguf_string(value)}}};
    return Opened(file).config.image_attention;
  };
  CHECK(Opened(MediaFile()).config.image_attention);
  CHECK(attention("bidirectional"));
  CHECK_FALSE(attention("causal"));
  CHECK_THROWS_AS(attention("sideways"), UnsupportedError);
}
