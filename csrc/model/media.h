// Images and sound as rows of a text model's residual stream, without an encoder (Gemma 4 12B). An image is
// cut into square tiles, each with a position (x, y); sound is cut into frames of samples.
//   image: u = layer_norm_2(dense layer_norm_1(pixels / 255) + bias)
//          e = projection rms_norm(layer_norm_3(u + pos_x[x] + pos_y[y]))
//   sound: e = projection rms_norm(frame)
// The formulas, names and keys: docs/MODEL.md, "Images and sound".
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "gguf/gguf_reader.h"

namespace gemmule {

struct MediaConfig {
  bool has_image = false;
  bool has_audio = false;
  int64_t d_model = 0;            // of the text model
  int64_t tile = 0;               // pixels of a tile's side; 0 without images, like the next three
  int64_t width = 0;              // of the image embedder, before its projection
  int64_t n_positions = 0;        // tiles along one side of an image, at most
  bool image_attention = false;   // the rows of an image see each other on sliding layers
  int64_t samples_per_token = 0;  // 0 without sound
  std::array<float, 3> mean{};    // of red, green, blue; taken off after / 255
  std::array<float, 3> std{1, 1, 1};
  float image_eps = 0, audio_eps = 0;  // of the norms before the projections

  int64_t tile_numbers() const { return 3 * tile * tile; }

  // Reads the metadata and the shape of the position table. Throws FormatError or UnsupportedError naming
  // file and key; d_model is the text model's.
  static MediaConfig from_gguf(const GgufFile& file, int64_t d_model);
};

struct MediaWeights {
  Tensor norm_1_w, norm_1_b;  // [tile_numbers]
  Tensor dense;               // [width, tile_numbers], columns in planar order: all red, all green, all blue
  Tensor dense_bias;          // [width]
  Tensor norm_2_w, norm_2_b;  // [width]
  Tensor positions;           // [2 * n_positions, width]: the rows of x, then those of y
  Tensor norm_3_w, norm_3_b;  // [width]
  Tensor image_out;           // [d_model, width]
  Tensor audio_out;           // [d_model, samples_per_token]

  // Throws as Weights::bind does.
  static MediaWeights bind(const GgufFile& file, const MediaConfig& config, Backend& backend);
};

class MediaEmbedder {
 public:
  MediaEmbedder(const MediaConfig& config, const MediaWeights& weights, Backend& backend);

  int64_t max_rows() const { return max_rows_; }  // of one call: bounds the scratch, whatever the image

  // Tiles [first, first + n_rows) of an image in raster order; pixels [height, width, 3], the width a
  // multiple of the tile. -> [n_rows, d_model], valid until the next call.
  Rows embed_tiles(const uint8_t* pixels, int64_t image_width, int64_t first, int64_t n_rows);

  // Frames [first, first + n_rows) of the samples, the last one filled up with zeros. -> [n_rows, d_model],
  // valid until the next call.
  Rows embed_frames(std::span<const float> samples, int64_t first, int64_t n_rows);

 private:
  const MediaConfig& cfg_;
  const MediaWeights& w_;
  Backend& be_;
  int64_t max_rows_ = 0;
  std::vector<float> host_;  // [max_rows, tile_numbers or samples_per_token]: what goes in
  Rows in_;                  // the same on the device
  Rows u_;                   // [max_rows, width]
  Rows p_;                   // [max_rows, width]   positions
  Rows e_;                   // [max_rows, d_model]
};

}  // namespace gemmule
