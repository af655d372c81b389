// The image and sound embedders of a loaded model. They share its backend, and its turns: every piece of rows
// is a turn of its own, so that sessions of the model can run in between and a long image can be cancelled.
#pragma once

#include <memory>
#include <span>

#include "core/stop_token.h"
#include "engine/loaded_model.h"
#include "model/media.h"

namespace gemmule {

class LoadedMedia {
 public:
  // Throws FormatError or UnsupportedError naming the file and the key, tensor or projector. Its scratch (a
  // few MB) stays with the model.
  LoadedMedia(std::shared_ptr<LoadedModel> model, std::shared_ptr<const GgufFile> file);
  LoadedMedia(const LoadedMedia&) = delete;  // the embedder refers to its neighbours
  LoadedMedia& operator=(const LoadedMedia&) = delete;

  const MediaConfig& config() const { return config_; }

  // Rows that an image or a clip becomes. Throws UnsupportedError where the file has no embedder for them and
  // std::invalid_argument for sides that are no multiple of the tile, more tiles along a side than there are
  // positions, and nothing at all.
  int64_t image_rows(int64_t height, int64_t width) const;
  int64_t audio_rows(int64_t n_samples) const;

  // pixels [height, width, 3] -> out [image_rows, d_model]. Throws Cancelled, FormatError (file cut
  // meanwhile), Error (results that are not finite).
  void embed_image(const uint8_t* pixels, int64_t height, int64_t width, float* out, const StopToken* stop);
  // samples -> out [audio_rows, d_model]
  void embed_audio(std::span<const float> samples, float* out, const StopToken* stop);

 private:
  template <class Fn>
  void in_pieces(int64_t n_rows, float* out, const char* what, const StopToken* stop, Fn&& piece);

  std::shared_ptr<LoadedModel> model_;
  std::shared_ptr<const GgufFile> file_;
  MediaConfig config_;
  MediaWeights weights_;
  std::unique_ptr<MediaEmbedder> embedder_;
};

}  // namespace gemmule
