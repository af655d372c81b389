// A model that is ready to run: file, shape, weights, backend. Weights are used from the mapping; what a step
// needs beyond them is reserved here once. Sessions share one model and take turns: `run` is the only way in.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "backend/backend.h"
#include "core/owned_mutex.h"
#include "gguf/gguf_reader.h"
#include "model/config.h"
#include "model/gemma4.h"
#include "model/weights.h"

namespace gemmule {

// Whether weights are brought into the kernels' own order in memory (backend/cpu/packed_weights.h).
enum class Packing { Auto, Always, Never };  // Auto: where all of them fit into free memory

struct LoadOptions {
  int n_threads = 0;       // 0: the physical cores
  std::string isa;         // empty: the best level this machine can run
  int64_t n_ubatch = 256;  // rows of one step at most
  Packing packing = Packing::Auto;
  int decode_threads = 0;  // that are likely to be enough for one-row steps; 0: not known
};
inline constexpr int64_t kMaxUbatch = 4096;
inline constexpr int64_t kLogitRows = 16;  // rows of logits held at a time: 16 MB at Gemma's vocabulary

// Rows of the longest block, which is always one step: the largest number of tokens an image may have.
inline constexpr int64_t kMaxBlock = 1120;

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
  int64_t packed_bytes() const;  // of weights that are in the kernels' order by now, from the file or since

  // fn(gemma) with the model to itself, for a step of up to n_rows rows; checks first that the file is still
  // whole. Steps of more than n_ubatch rows (a long image) throw NotEnoughMemoryError where they cannot fit.
  // Throws what stop->check() throws wherever the step is when `stop` is cancelled.
  template <class Fn>
  void run(int64_t n_rows, const StopToken* stop, Fn&& fn) {
    const OwnedLock lock(mutex_);
    file_->file().check_not_truncated();
    Gemma4& gemma = for_rows(n_rows);
    const Watch watch(*backend_, stop);
    backend_->begin_step(n_rows);
    fn(gemma);
    backend_->end_step();
  }

  // Lets the backend pack matrices of a file, as the options say; the file stays open as long as the model.
  void allow_packing(const std::shared_ptr<const GgufFile>& file, std::span<const Tensor> matrices);

  // fn(backend) with the model to itself, for what is computed beside the forward pass.
  template <class Fn>
  auto run_beside(const StopToken* stop, Fn&& fn) {
    const OwnedLock lock(mutex_);
    const Watch watch(*backend_, stop);
    backend_->begin_step(0);  // what the last step was like does not matter here
    return fn(*backend_);
  }

 private:
  // The operations of a scope can be cancelled; `stop` need not outlive it.
  class Watch {
   public:
    Watch(Backend& backend, const StopToken* stop) : backend_(backend) { backend_.watch(stop); }
    ~Watch() { backend_.watch(nullptr); }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Backend& backend_;
  };

  Gemma4& for_rows(int64_t n_rows);

  std::shared_ptr<const GgufFile> file_;
  Config config_;
  std::unique_ptr<Backend> backend_;
  Weights weights_;
  int64_t n_ubatch_;
  Packing packing_;
  Gemma4 gemma_;
  // For steps of up to kMaxBlock rows. Made when the first such step comes, so that a model that only reads
  // text never reserves their memory; of what it reserves, pages are taken as rows are used.
  std::unique_ptr<Gemma4> large_gemma_;
  int64_t large_rows_ = 0;  // of the largest step so far that had the memory
  OwnedMutex mutex_;
};

}  // namespace gemmule
