// A model that is ready to run: file, shape, weights, backend. Weights are used from the mapping; what a step
// needs beyond them is reserved here once. Sessions share one model and take turns: `run` is the only way in.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "core/owned_mutex.h"
#include "gguf/gguf_reader.h"
#include "model/config.h"
#include "model/gemma4.h"
#include "model/weights.h"

namespace gemmule {

struct LoadOptions {
  int n_threads = 0;       // 0: the physical cores
  std::string isa;         // empty: the best level this machine can run
  int64_t n_ubatch = 256;  // rows of one step at most
};
inline constexpr int64_t kMaxUbatch = 4096;
inline constexpr int64_t kLogitRows = 16;  // rows of logits held at a time: 16 MB at Gemma's vocabulary

void check_ubatch(int64_t n_ubatch);  // throws std::invalid_argument

class LoadedModel {
 public:
  // Checks the whole header and every tensor's shape; reads no weights but the norms.
  // Throws FormatError, UnsupportedError, ModelNotFoundError, DeviceError, NotEnoughMemoryError.
  LoadedModel(std::shared_ptr<const GgufFile> file, const LoadOptions& options);

  const GgufFile& file() const { return *file_; }
  std::shared_ptr<const GgufFile> shared_file() const { return file_; }
  const Config& config() const { return config_; }
  const Backend& backend() const { return *backend_; }
  int64_t n_ubatch() const { return n_ubatch_; }
  int64_t n_params() const;
  int64_t weight_bytes() const;

  // fn(gemma) with the model to itself; checks first that the file is still whole.
  template <class Fn>
  auto run(Fn&& fn) {
    const OwnedLock lock(mutex_);
    file_->file().check_not_truncated();
    return fn(gemma_);
  }

 private:
  std::shared_ptr<const GgufFile> file_;
  Config config_;
  std::unique_ptr<Backend> backend_;
  Weights weights_;
  int64_t n_ubatch_;
  Gemma4 gemma_;
  OwnedMutex mutex_;
};

}  // namespace gemmule
