// hostile_check FILE...: opens each file as GGUF, walks every accessor, touches the first and last byte of
// every tensor, then loads it as a model and draws a token after a short prompt. Prints one line per file,
// "name: ok" or "name: <class>: message". Exit status 2 when a file ends in an exception that is not one of
// the core's, or in a message of more than one line; otherwise 0.
#include <cstdio>
#include <exception>
#include <string>

#include "core/error.h"
#include "engine/session.h"
#include "gguf/gguf_reader.h"

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
