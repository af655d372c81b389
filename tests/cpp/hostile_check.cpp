// hostile_check FILE...: opens each file as GGUF, walks every accessor, touches the first and last byte of
// every tensor, then loads it as a model and draws a token after a short prompt, or embeds an image and sound
// with it. Prints one line per file,
// "name: ok" or "name: <class>: message". Exit status 2 when a file ends in an exception that is not one of
// the core's, or in a message of more than one line; otherwise 0.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "core/error.h"
#include "engine/session.h"
#include "gguf/gguf_reader.h"
#include "model/media.h"

namespace gemmule {
namespace {

volatile uint64_t sink;  // keeps the reads below

// Calls `get` and swallows the refusals that the getters document.
template <class Get>
void allow_format_error(const Get& get) {
  try {
    get();
  } catch (const FormatError&) {
  }
}

void walk(const GgufFile& file) {
  uint64_t sum = file.version() + file.alignment() + file.data_offset() + file.size();
  file.file().check_not_truncated();
  for (const auto& [key, value] : file.entries()) {
    if (file.find(key) != &value) throw std::runtime_error("find() does not return the entry of its key");
    sum += value_type_name(value.type)[0];
    if (value.n_bytes > 0) sum += value.data[0] + value.data[value.n_bytes - 1];
    allow_format_error([&] { sum += static_cast<uint64_t>(file.get_int(key)); });
    allow_format_error([&] { sum += file.get_float(key) > 0; });
    allow_format_error([&] { sum += file.get_bool(key); });
    allow_format_error([&] { sum += file.get_string(key).size(); });
    allow_format_error([&] { sum += file.get_ints(key).size(); });
    allow_format_error([&] { sum += file.get_floats(key).size(); });
    allow_format_error([&] {
      for (const std::string_view text : file.get_strings(key))
        if (!text.empty()) sum += static_cast<uint8_t>(text.front()) + static_cast<uint8_t>(text.back());
    });
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (file.find_tensor(tensor.name) != &tensor) throw std::runtime_error("find_tensor() misses a tensor");
    const Tensor view = file.view(tensor);
    if (view.data != file.data(tensor) || static_cast<uint64_t>(view.size_bytes()) != tensor.n_bytes)
      throw std::runtime_error("view() and the tensor table differ");
    sum += view.data[0] + view.data[tensor.n_bytes - 1];
    sum += view.row(view.rows - 1)[view.row_size() - 1];
  }
  sink = sum;
}

// Embeds a tile and two frames with a file of embedders, whatever width it claims.
void run_media(const GgufFile& file) {
  const char* const kWidths[] = {"clip.vision.projection_dim", "clip.audio.projection_dim"};
  const int64_t d_model = file.int_or(kWidths[0], file.int_or(kWidths[1], 64));
  const MediaConfig config = MediaConfig::from_gguf(file, d_model);
  const auto backend = open_cpu("", 1);
  const MediaWeights weights = MediaWeights::bind(file, config, *backend);
  MediaEmbedder embedder(config, weights, *backend);
  float sum = 0;
  if (config.has_image) {
    const std::vector<uint8_t> pixels(static_cast<size_t>(config.tile_numbers()), 77);
    const Rows rows = embedder.embed_tiles(pixels.data(), config.tile, 0, 1);
    sum += rows.data[0] + rows.data[rows.cols - 1];
  }
  if (config.has_audio) {
    const std::vector<float> samples(static_cast<size_t>(config.samples_per_token + 1), 0.5f);
    const Rows rows = embedder.embed_frames(samples, 1, 1);
    sum += rows.data[0] + rows.data[rows.cols - 1];
  }
  sink = static_cast<uint64_t>(sum > 0);
}

// Loads the model and draws one token greedily: every weight takes part.
void run(const std::shared_ptr<const GgufFile>& file) {
  const auto model = std::make_shared<LoadedModel>(file, LoadOptions{1, "", 8});
  Session session(model, 32, DType::F16);
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 12; ++i) prompt.push_back(static_cast<int32_t>((i * 37) % model->config().n_vocab));
  session.append(prompt, nullptr, {});
  Sampler sampler({.temperature = 0});
  sink = static_cast<uint64_t>(session.sample(sampler, prompt.size()).token);
}

// The outcome of one file; `is_core` turns false when the exception is not one of the core's.
std::string check(const std::string& path, bool& is_core) {
  const auto line = [](const char* kind, const std::exception& e) {
    return std::string(kind) + ": " + e.what();
  };
  try {
    const auto file = GgufFile::open(path);
    walk(*file);
    if (file->string_or("general.architecture", "") == "clip")
      run_media(*file);
    else
      run(file);
    return "ok";
  } catch (const ModelNotFoundError& e) {
    return line("ModelNotFoundError", e);
  } catch (const FormatError& e) {
    return line("FormatError", e);
  } catch (const UnsupportedError& e) {
    return line("UnsupportedError", e);
  } catch (const NotEnoughMemoryError& e) {
    return line("NotEnoughMemoryError", e);
  } catch (const Error& e) {  // from the run: logits that are not finite
    return line("Error", e);
  } catch (const std::exception& e) {
    is_core = false;
    return line("unexpected", e);
  }
}

}  // namespace
}  // namespace gemmule

int main(int argc, char** argv) {
  bool all_fine = true;
  for (int i = 1; i < argc; ++i) {
    const std::string path = argv[i];
    bool is_core = true;
    const std::string outcome = gemmule::check(path, is_core);
    all_fine = all_fine && is_core && outcome.find('\n') == std::string::npos;
    std::printf("%s: %s\n", path.substr(path.rfind('/') + 1).c_str(), outcome.c_str());
  }
  return all_fine ? 0 : 2;
}
