#include "engine/loaded_drafter.h"

#include <vector>

namespace gemmule {

LoadedDrafter::LoadedDrafter(std::shared_ptr<LoadedModel> model, std::shared_ptr<const GgufFile> file,
                             int64_t draft_vocab)
    : model_(std::move(model)),
      file_(std::move(file)),
      config_(DrafterConfig::from_gguf(*file_, model_->config(), draft_vocab)) {
  file_->file().check_not_truncated();
  model_->run_beside(nullptr, [&](Backend& backend) {
    weights_ = DrafterWeights::bind(*file_, config_, model_->file(), backend);
    drafter_ = std::make_unique<Drafter>(config_, weights_, backend);
    std::vector<Tensor> matrices;
    for (const GgufTensor& tensor : file_->tensors())
      if (tensor.shape.size() == 2) matrices.push_back(file_->view(tensor));
    // Of the head, what is read: with clusters it is read by the row.
    std::erase_if(matrices, [&](const Tensor& w) { return w.data == weights_.head.data; });
    if (config_.n_clusters == 0) matrices.push_back(weights_.head);
    model_->allow_packing(file_, matrices);
  });
}

int64_t LoadedDrafter::weight_bytes() const {
  int64_t n = 0;
  for (const GgufTensor& tensor : file_->tensors()) n += static_cast<int64_t>(tensor.n_bytes);
  return n;
}

}  // namespace gemmule
