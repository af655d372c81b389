#include "model/media.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/utf8.h"
#include "model/binder.h"
#include "model/config.h"

namespace gemmule {
namespace {

constexpr float kLayerNormEps = 1e-5f;  // in no key: the default of the framework the model was made with
constexpr int64_t kMaxPositions = 1 << 16;
constexpr int64_t kMaxRows = 64;                  // rows of a call: enough to share each weight that is read
constexpr int64_t kMaxNumbers = kMaxRows * 8192;  // that go into a call, whatever tiles a file asks for
constexpr const char* kPositions = "v.position_embd.weight";

int64_t checked(const GgufFile& file, const char* key, int64_t value, int64_t high) {
  if (value < 1 || value > high)
    throw FormatError(cat(file.path(), ": ", key, " is ", value, "; it must lie between 1 and ", high));
  return value;
}

float checked_eps(const GgufFile& file, const char* key) {
  const double eps = file.float_or(key, 1e-6);
  if (!(eps >= 1e-12 && eps <= 0.1))
    throw FormatError(cat(file.path(), ": ", key, " is ", eps, "; it must lie between 1e-12 and 0.1"));
  return static_cast<float>(eps);
}

std::array<float, 3> three_or(const GgufFile& file, const char* key, float fallback, double low) {
  if (file.find(key) == nullptr) return {fallback, fallback, fallback};
  const std::vector<double> values = file.get_floats(key);
  if (values.size() != 3 ||
      std::any_of(values.begin(), values.end(), [&](double v) { return v < low || v > 1000; }))
    throw FormatError(cat(file.path(), ": ", key, " must be three numbers between ", low, " and 1000"));
  return {static_cast<float>(values[0]), static_cast<float>(values[1]), static_cast<float>(values[2])};
}

// Files with one kind of media may name their projector without saying of what.
void check_projector(const GgufFile& file, const char* key, std::string_view wanted) {
  const std::string_view found =
      file.find(key) ? file.get_string(key) : file.string_or("clip.projector_type", "");
  if (found != wanted)
    throw UnsupportedError(cat(file.path(), ": the projector ", printable(found), " (", key,
                               ") is not supported; this version runs ", wanted));
}

void check_width(const GgufFile& file, const char* key, int64_t d_model) {
  const int64_t found = file.int_or(key, d_model);
  if (found != d_model)
    throw FormatError(cat(file.path(), ": the embeddings have ", found, " numbers (", key,
                          ") and the text model reads ", d_model, "; give the file of the same model"));
}

bool image_attention(const GgufFile& file) {
  constexpr const char* kKey = "gemmule.media.image.attention";
  const std::string_view kind = file.string_or(kKey, "bidirectional");
  if (kind == "bidirectional" || kind == "vision") return true;
  if (kind == "causal" || kind == "none") return false;
  throw UnsupportedError(
      cat(file.path(), ": ", kKey, " is ", printable(kind), "; this version knows bidirectional and causal"));
}

}  // namespace

MediaConfig MediaConfig::from_gguf(const GgufFile& file, int64_t d_model) {
  if (file.string_or("general.architecture", "") != "clip")
    throw UnsupportedError(cat(file.path(), ": this is no file of image and sound embedders (its ",
                               "general.architecture is not \"clip\"); give the mmproj file of the model"));
  MediaConfig c;
  c.d_model = d_model;
  c.has_image = file.bool_or("clip.has_vision_encoder", false);
  c.has_audio = file.bool_or("clip.has_audio_encoder", false);
  if (!c.has_image && !c.has_audio)
    throw UnsupportedError(cat(file.path(), ": the file embeds neither images nor sound"));
  if (c.has_image) {
    check_projector(file, "clip.vision.projector_type", "gemma4uv");
    check_width(file, "clip.vision.projection_dim", d_model);
    const int64_t patch =
        checked(file, "clip.vision.patch_size", file.get_int("clip.vision.patch_size"), 4096);
    const int64_t pool = checked(file, "clip.vision.projector.scale_factor",
                                 file.int_or("clip.vision.projector.scale_factor", 3), 256);
    c.tile = patch * pool;
    if (c.tile_numbers() > kMaxWidth)
      throw FormatError(cat(file.path(), ": clip.vision.patch_size ", patch, " makes tiles of ", c.tile,
                            " x ", c.tile, " pixels; at most ", kMaxWidth, " numbers are allowed"));
    c.width = checked(file, "clip.vision.embedding_length", file.get_int("clip.vision.embedding_length"),
                      kMaxWidth);
    c.mean = three_or(file, "clip.vision.image_mean", 0, -1000);
    c.std = three_or(file, "clip.vision.image_std", 1, 1e-3);
    c.image_eps = checked_eps(file, "clip.vision.attention.layer_norm_epsilon");
    c.image_attention = gemmule::image_attention(file);
    // The number of positions is in no key that every file has; the table says it.
    const GgufTensor* table = file.find_tensor(kPositions);
    c.n_positions = table && table->shape.size() == 3 ? table->shape[1]
                                                      : file.int_or("gemmule.media.image.n_positions", 1120);
    if (c.n_positions > kMaxPositions)
      throw FormatError(cat(file.path(), ": tensor ", kPositions, " has ", c.n_positions,
                            " positions; at most ", kMaxPositions, " are allowed"));
  }
  if (c.has_audio) {
    check_projector(file, "clip.audio.projector_type", "gemma4ua");
    check_width(file, "clip.audio.projection_dim", d_model);
    c.samples_per_token =
        checked(file, "clip.audio.embedding_length", file.get_int("clip.audio.embedding_length"), kMaxWidth);
    c.audio_eps = checked_eps(file, "clip.audio.attention.layer_norm_epsilon");
  }
  return c;
}

MediaWeights MediaWeights::bind(const GgufFile& file, const MediaConfig& c, Backend& backend) {
  Binder bind(file, backend);
  MediaWeights w;
  if (c.has_image) {
    w.norm_1_w = bind.vector("v.patch_norm.1.weight", c.tile_numbers());
    w.norm_1_b = bind.vector("v.patch_norm.1.bias", c.tile_numbers());
    w.dense = bind.matrix("v.patch_embd.weight", c.width, c.tile_numbers());
    w.dense_bias = bind.vector("v.patch_embd.bias", c.width);
    w.norm_2_w = bind.vector("v.patch_norm.2.weight", c.width);
    w.norm_2_b = bind.vector("v.patch_norm.2.bias", c.width);
    w.positions = bind.stack(kPositions, 2, c.n_positions, c.width);
    w.norm_3_w = bind.vector("v.patch_norm.3.weight", c.width);
    w.norm_3_b = bind.vector("v.patch_norm.3.bias", c.width);
    w.image_out = bind.matrix("mm.input_projection.weight", c.d_model, c.width);
  }
  if (c.has_audio) w.audio_out = bind.matrix("mm.a.input_projection.weight", c.d_model, c.samples_per_token);
  bind.refuse_unused();
  return w;
}

MediaEmbedder::MediaEmbedder(const MediaConfig& config, const MediaWeights& weights, Backend& backend)
    : cfg_(config), w_(weights), be_(backend) {
  const int64_t n_in = std::max(cfg_.tile_numbers(), cfg_.samples_per_token);
  max_rows_ = std::clamp<int64_t>(kMaxNumbers / n_in, 1, kMaxRows);
  host_.resize(static_cast<size_t>(max_rows_ * n_in));
  in_ = be_.alloc(max_rows_, n_in);
  u_ = be_.alloc(max_rows_, cfg_.width);
  p_ = be_.alloc(max_rows_, cfg_.width);
  e_ = be_.alloc(max_rows_, cfg_.d_model);
  be_.reserve(max_rows_, std::max(n_in, cfg_.width), 0);
}

Rows MediaEmbedder::embed_tiles(const uint8_t* pixels, int64_t image_width, int64_t first, int64_t n_rows) {
  const int64_t side = cfg_.tile, across = image_width / side;
  std::array<std::array<float, 256>, 3> value;  // of a byte, by colour
  for (size_t colour = 0; colour < 3; ++colour)
    for (size_t byte = 0; byte < 256; ++byte)
      value[colour][byte] = (static_cast<float>(byte) / 255.0f - cfg_.mean[colour]) / cfg_.std[colour];
  std::vector<int32_t> x_at, y_at;  // rows of the position table
  float* out = host_.data();
  for (int64_t tile = first; tile < first + n_rows; ++tile) {
    const int64_t x = tile % across, y = tile / across;
    x_at.push_back(static_cast<int32_t>(x));
    y_at.push_back(static_cast<int32_t>(cfg_.n_positions + y));
    for (size_t colour = 0; colour < 3; ++colour)
      for (int64_t r = 0; r < side; ++r) {
        const uint8_t* row = pixels + ((y * side + r) * image_width + x * side) * 3 + colour;
        for (int64_t c = 0; c < side; ++c) *out++ = value[colour][row[3 * c]];
      }
  }
  const Rows in = in_.as(n_rows, cfg_.tile_numbers()), u = u_.first(n_rows), p = p_.first(n_rows),
             e = e_.first(n_rows);
  be_.write(in, host_.data());
  be_.layer_norm(in, in, w_.norm_1_w, w_.norm_1_b, kLayerNormEps);
  be_.matmul(u, w_.dense, in);
  be_.add_vector(u, w_.dense_bias);
  be_.layer_norm(u, u, w_.norm_2_w, w_.norm_2_b, kLayerNormEps);
  be_.embed(p, w_.positions, x_at, 1);
  be_.add(u, p);
  be_.embed(p, w_.positions, y_at, 1);
  be_.add(u, p);
  be_.layer_norm(u, u, w_.norm_3_w, w_.norm_3_b, kLayerNormEps);
  be_.rms_norm(u, u, {}, cfg_.image_eps);
  be_.matmul(e, w_.image_out, u);
  return e;
}

Rows MediaEmbedder::embed_frames(std::span<const float> samples, int64_t first, int64_t n_rows) {
  const int64_t n = cfg_.samples_per_token, begin = first * n;
  const int64_t given = std::min(n_rows * n, static_cast<int64_t>(samples.size()) - begin);
  std::copy_n(samples.begin() + begin, given, host_.begin());
  std::fill(host_.begin() + given, host_.begin() + n_rows * n, 0.0f);
  const Rows in = in_.as(n_rows, n), e = e_.first(n_rows);
  be_.write(in, host_.data());
  be_.rms_norm(in, in, {}, cfg_.audio_eps);
  be_.matmul(e, w_.audio_out, in);
  return e;
}

}  // namespace gemmule
