// The drafter of a loaded model. It shares the model's backend and runs in its turns, between the steps of a
// session.
#pragma once

#include <memory>

#include "engine/loaded_model.h"
#include "model/drafter.h"

namespace gemmule {

class LoadedDrafter {
 public:
  // draft_vocab: only the first so many tokens are drafted; 0: all. Throws FormatError or UnsupportedError
  // naming the file and the key or tensor, for a drafter of another model too; std::invalid_argument for
  // draft_vocab. Its scratch (some MB) stays with the model.
  LoadedDrafter(std::shared_ptr<LoadedModel> model, std::shared_ptr<const GgufFile> file,
                int64_t draft_vocab = 0);
  LoadedDrafter(const LoadedDrafter&) = delete;  // the drafter refers to its neighbours
  LoadedDrafter& operator=(const LoadedDrafter&) = delete;

  const DrafterConfig& config() const { return config_; }
  const LoadedModel& model() const { return *model_; }
  const GgufFile& file() const { return *file_; }
  int64_t weight_bytes() const;

  // To be used while the model is held (LoadedModel::run, run_beside) only. Throws FormatError when its file
  // or the model's, whose embeddings it reads, was cut.
  Drafter& drafter() {
    file_->file().check_not_truncated();
    model_->file().file().check_not_truncated();
    return *drafter_;
  }

 private:
  std::shared_ptr<LoadedModel> model_;
  std::shared_ptr<const GgufFile> file_;
  DrafterConfig config_;
  DrafterWeights weights_;
  std::unique_ptr<Drafter> drafter_;
};

}  // namespace gemmule
