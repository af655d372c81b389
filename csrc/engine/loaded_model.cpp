#include "engine/loaded_model.h"

#include <algorithm>

#include "core/error.h"
#include "engine/memory_plan.h"
#include "quant/packed.h"

namespace gemmule {
namespace {

// What a step needs beyond the weights must fit before it is reserved.
int64_t checked_ubatch(const Config& config, int64_t n_ubatch) {
  check_ubatch(n_ubatch);
  const int64_t need = Gemma4::scratch_bytes(config, n_ubatch, kLogitRows), have = available_memory();
  if (have > 0 && need > have)
    throw NotEnoughMemoryError(cat("steps of ", n_ubatch, " tokens need ", need >> 20, " MiB and ",
                                   have >> 20, " MiB are free; choose a smaller n_ubatch or another model"));
  return n_ubatch;
}

}  // namespace

void check_ubatch(int64_t n_ubatch) {
  if (n_ubatch < 1 || n_ubatch > kMaxUbatch)
    throw std::invalid_argument(cat("n_ubatch is ", n_ubatch, "; choose 1 to ", kMaxUbatch));
}

LoadedModel::LoadedModel(std::shared_ptr<const GgufFile> file, const LoadOptions& options)
    : file_(std::move(file)),
      config_(Config::from_gguf(*file_)),
      backend_(open_cpu(options.isa, options.n_threads, options.decode_threads)),
      weights_(Weights::bind(*file_, config_, *backend_)),
      n_ubatch_(checked_ubatch(config_, options.n_ubatch)),
      packing_(options.packing),
      gemma_(config_, weights_, *backend_, n_ubatch_, kLogitRows) {
  std::vector<Tensor> matrices;
  for (const GgufTensor& tensor : file_->tensors()) {
    // The matrices of a tensor with more dimensions (experts) must each begin with a panel.
    const bool is_aligned = tensor.shape.size() <= 2 || tensor.shape[1] % kPanelRows == 0;
    if (tensor.shape.size() >= 2 && is_aligned) matrices.push_back(file_->view(tensor));
  }
  allow_packing(file_, matrices);
}

void LoadedModel::allow_packing(const std::shared_ptr<const GgufFile>& file,
                                std::span<const Tensor> matrices) {
  if (packing_ == Packing::Never) return;
  constexpr int64_t kKeptFree = int64_t{1} << 30;
  // Pages of the file give way to other programs; packed weights would have to be swapped out.
  const auto fits = [](int64_t n_bytes) {
    const int64_t have = available_memory();
    return have == 0 || have > n_bytes + kKeptFree;
  };
  int64_t n_bytes = 0;
  for (const Tensor& w : matrices) n_bytes += w.size_bytes();
  const bool always = packing_ == Packing::Always;
  if (!always && !fits(n_bytes)) return;
  file->file().use_small_pages();
  backend_->allow_repacking(
      matrices, {[fits, always](int64_t wanted) { return always || fits(wanted); },
                 [file](const uint8_t* begin, int64_t size) { file->file().release(begin, size); }});
}

Gemma4& LoadedModel::for_rows(int64_t n_rows) {
  if (n_rows <= n_ubatch_) return gemma_;
  if (n_rows > large_rows_) {
    const int64_t need = Gemma4::scratch_bytes(config_, n_rows - large_rows_, 0), have = available_memory();
    if (have > 0 && need > have)
      throw NotEnoughMemoryError(cat("an image of ", n_rows, " tokens needs ", need >> 20, " MiB and ",
                                     have >> 20, " MiB are free; use fewer tokens for it"));
  }
  if (!large_gemma_)
    large_gemma_ = std::make_unique<Gemma4>(config_, weights_, *backend_, kMaxBlock, kLogitRows);
  large_rows_ = std::max(large_rows_, n_rows);
  return *large_gemma_;
}

int64_t LoadedModel::n_params() const {
  int64_t n = 0;
  for (const GgufTensor& tensor : file_->tensors()) {
    int64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= dim;
    n += elements;
  }
  return n;
}

int64_t LoadedModel::weight_bytes() const {
  int64_t n = 0;
  for (const GgufTensor& tensor : file_->tensors()) n += static_cast<int64_t>(tensor.n_bytes);
  return n;
}

int64_t LoadedModel::packed_bytes() const {
  int64_t n = backend_->repacked_bytes();
  for (const GgufTensor& tensor : file_->tensors())
    if (file_->view(tensor).layout == Layout::R8P64) n += static_cast<int64_t>(tensor.n_bytes);
  return n;
}

}  // namespace gemmule
