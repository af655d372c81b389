#include "engine/loaded_media.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "engine/sampler.h"

namespace gemmule {

LoadedMedia::LoadedMedia(std::shared_ptr<LoadedModel> model, std::shared_ptr<const GgufFile> file)
    : model_(std::move(model)),
      file_(std::move(file)),
      config_(MediaConfig::from_gguf(*file_, model_->config().d_model)) {
  file_->file().check_not_truncated();
  model_->run_beside(nullptr, [&](Backend& backend) {
    weights_ = MediaWeights::bind(*file_, config_, backend);
    embedder_ = std::make_unique<MediaEmbedder>(config_, weights_, backend);
  });
}

int64_t LoadedMedia::image_rows(int64_t height, int64_t width) const {
  if (!config_.has_image) throw UnsupportedError(cat(file_->path(), ": the file has no image embedder"));
  const int64_t tile = config_.tile;
  if (height < 1 || width < 1 || height % tile != 0 || width % tile != 0)
    throw std::invalid_argument(
        cat("the image has ", height, " x ", width, " pixels; both sides must be multiples of ", tile));
  if (std::max(height, width) / tile > config_.n_positions)
    throw std::invalid_argument(cat("the image has ", height, " x ", width, " pixels; a side has at most ",
                                    config_.n_positions * tile));
  return height / tile * (width / tile);
}

int64_t LoadedMedia::audio_rows(int64_t n_samples) const {
  if (!config_.has_audio) throw UnsupportedError(cat(file_->path(), ": the file has no sound embedder"));
  if (n_samples < 1) throw std::invalid_argument("there are no samples; give at least one");
  return (n_samples + config_.samples_per_token - 1) / config_.samples_per_token;
}

template <class Fn>
void LoadedMedia::in_pieces(int64_t n_rows, float* out, const char* what, const StopToken* stop, Fn&& piece) {
  for (int64_t first = 0; first < n_rows; first += embedder_->max_rows()) {
    if (stop) stop->check();
    file_->file().check_not_truncated();
    model_->run_beside(stop, [&](Backend&) {
      const Rows rows = piece(first, std::min(embedder_->max_rows(), n_rows - first));
      for (int64_t i = 0; i < rows.n; ++i)
        require_finite({rows.data + i * rows.cols, static_cast<size_t>(rows.cols)}, what, first + i);
      std::copy_n(rows.data, rows.n * rows.cols, out + first * rows.cols);
    });
  }
}

void LoadedMedia::embed_image(const uint8_t* pixels, int64_t height, int64_t width, float* out,
                              const StopToken* stop) {
  in_pieces(image_rows(height, width), out, "embeddings of the image", stop,
            [&](int64_t first, int64_t n) { return embedder_->embed_tiles(pixels, width, first, n); });
}

void LoadedMedia::embed_audio(std::span<const float> samples, float* out, const StopToken* stop) {
  const int64_t n_rows = audio_rows(static_cast<int64_t>(samples.size()));
  in_pieces(n_rows, out, "embeddings of the sound", stop,
            [&](int64_t first, int64_t n) { return embedder_->embed_frames(samples, first, n); });
}

}  // namespace gemmule
