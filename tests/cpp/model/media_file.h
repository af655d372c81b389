// A small file of image and sound embedders with random weights, changed as a test likes.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gguf/gguf_builder.h"
#include "quant/codec.h"

namespace gemmule::testing {

struct MediaFile {
  struct Entry {
    std::vector<uint64_t> shape;  // the contiguous dimension first
    DType dtype = DType::F32;
    std::vector<float> values;
  };
  int64_t d_model = 40, width = 64, patch = 4, pool = 3, n_positions = 30, samples = 96;
  std::string image_projector = "gemma4uv", audio_projector = "gemma4ua", architecture = "clip";
  bool has_image = true, has_audio = true;
  std::map<std::string, Entry> tensors;
  std::vector<std::pair<std::string, std::pair<ValueType, std::string>>> more_keys;  // written last

  MediaFile() { fill(); }

  int64_t side() const { return patch * pool; }
  int64_t tile_numbers() const { return 3 * side() * side(); }

  // Draws every tensor again, for the numbers above.
  void fill() {
    tensors.clear();
    const auto x = static_cast<uint64_t>(tile_numbers()), c = static_cast<uint64_t>(width),
               h = static_cast<uint64_t>(d_model), n = static_cast<uint64_t>(n_positions),
               s = static_cast<uint64_t>(samples);
    draw("v.patch_norm.1.weight", {x}, 0.2, 1);
    draw("v.patch_norm.1.bias", {x}, 0.2);
    draw("v.patch_embd.weight", {x, c}, 1 / std::sqrt(static_cast<double>(x)));
    draw("v.patch_embd.bias", {c}, 0.3);
    for (const char* norm : {"v.patch_norm.2", "v.patch_norm.3"}) {
      draw(std::string(norm) + ".weight", {c}, 0.2, 1);
      draw(std::string(norm) + ".bias", {c}, 0.2);
    }
    draw("v.position_embd.weight", {c, n, 2}, 0.5);
    draw("mm.input_projection.weight", {c, h}, 1 / std::sqrt(static_cast<double>(c)));
    draw("mm.a.input_projection.weight", {s, h}, 1 / std::sqrt(static_cast<double>(s)));
  }

  // Stores a matrix as blocks; `values` become what the blocks stand for.
  void store_as(const std::string& name, DType dtype) {
    Entry& entry = tensors.at(name);
    std::vector<uint8_t> bytes(bytes_of(entry, dtype));
    const auto n = static_cast<int64_t>(entry.values.size());
    codec(dtype).quantize_row(entry.values.data(), bytes.data(), n);
    codec(dtype).dequantize_row(bytes.data(), entry.values.data(), n);
    entry.dtype = dtype;
  }

  std::string image() const {
    GgufBuilder builder;
    builder.string("general.architecture", architecture);
    const auto u32 = [&](const std::string& key, int64_t value) {
      builder.scalar(key, ValueType::U32, static_cast<uint32_t>(value));
    };
    if (has_image) {
      builder.scalar("clip.has_vision_encoder", ValueType::Bool, uint8_t{1});
      builder.string("clip.vision.projector_type", image_projector);
      u32("clip.vision.projection_dim", d_model);
      u32("clip.vision.patch_size", patch);
      u32("clip.vision.embedding_length", width);
      if (pool != 3) u32("clip.vision.projector.scale_factor", pool);
    }
    if (has_audio) {
      builder.scalar("clip.has_audio_encoder", ValueType::Bool, uint8_t{1});
      builder.string("clip.audio.projector_type", audio_projector);
      u32("clip.audio.projection_dim", d_model);
      u32("clip.audio.embedding_length", samples);
    }
    for (const auto& [key, value] : more_keys) builder.add(key, value.first, value.second);
    std::string data;
    for (const auto& [name, entry] : tensors) {
      const size_t n_bytes = bytes_of(entry, entry.dtype);
      builder.tensor({name, entry.shape, static_cast<uint32_t>(entry.dtype), n_bytes, {}, {}});
      data.resize((data.size() + 31) / 32 * 32);
      std::string bytes(n_bytes, '\0');
      codec(entry.dtype)
          .quantize_row(entry.values.data(), reinterpret_cast<uint8_t*>(bytes.data()),
                        static_cast<int64_t>(entry.values.size()));
      data += bytes;
    }
    std::string out = builder.header();
    out.resize((out.size() + 31) / 32 * 32);
    return out + data;
  }

 private:
  static size_t bytes_of(const Entry& entry, DType dtype) {
    return static_cast<size_t>(row_bytes(dtype, static_cast<int64_t>(entry.values.size())));
  }
  void draw(const std::string& name, std::vector<uint64_t> shape, double scale, double mean = 0) {
    std::mt19937 rng(static_cast<unsigned>(tensors.size()) + 1);
    std::normal_distribution<float> normal(static_cast<float>(mean), static_cast<float>(scale));
    size_t n = 1;
    for (const uint64_t dim : shape) n *= dim;
    Entry entry{std::move(shape), DType::F32, std::vector<float>(n)};
    for (float& v : entry.values) v = normal(rng);
    tensors[name] = std::move(entry);
  }
};

}  // namespace gemmule::testing
